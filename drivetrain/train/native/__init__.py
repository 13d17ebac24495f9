"""The compiled part of training, where the installation has it; it trains without."""

import os
from typing import Any


def _found() -> Any:
    if os.environ.get("DRIVETRAIN_COMPILED") == "0":
        return None
    try:
        from drivetrain.train.native import rows  # pyright: ignore[reportAttributeAccessIssue]
    except ImportError:  # there was no compiler where this was installed
        return None
    return rows  # pyright: ignore[reportUnknownVariableType]


rows: Any = _found()
"""Updates the rows of a table that a batch touched; None where numpy does."""
