"""The compiled part of training, where the installation has it; it trains without."""

import os
from importlib import import_module
from typing import Any


def _found(name: str) -> Any:
    if os.environ.get("DRIVETRAIN_COMPILED") == "0":
        return None
    try:
        return import_module(f"drivetrain.train.native.{name}")
    except ImportError:  # there was no compiler where this was installed
        return None


recall: Any = _found("recall")
"""The inner loops of recall methods over interactions; None where numpy does."""
rows: Any = _found("rows")
"""Updates the rows of a table that a batch touched; None where numpy does."""
