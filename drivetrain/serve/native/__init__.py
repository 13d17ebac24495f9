"""The compiled part of the hot path, where the installation has it; it serves without.

``DRIVETRAIN_COMPILED=0`` in the environment leaves it out. Whatever is unusual in a request the
compiled part does not take, so that the Python path says what is wrong, in its own words.
"""

import os
from types import ModuleType
from typing import Any

SWITCH = "DRIVETRAIN_COMPILED"


def _found() -> ModuleType | None:
    if os.environ.get(SWITCH) == "0":
        return None
    try:
        from drivetrain.serve.native import compiled  # pyright: ignore[reportAttributeAccessIssue]
    except ImportError:  # there was no compiler where this was installed
        return None
    return compiled  # pyright: ignore[reportUnknownVariableType]


compiled: Any = _found()
"""The module, or None."""
path = "python" if compiled is None else "compiled"
"""Which path runs."""
