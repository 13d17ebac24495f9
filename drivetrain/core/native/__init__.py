"""The compiled kernel of windows, which backfills, streams and servers share."""

from importlib import import_module
from typing import Any


def kernel() -> Any:
    """The module ``windows``.

    Raises:
        ImportError: there was no C compiler where this was installed, so it was not built.
    """
    try:
        return import_module("drivetrain.core.native.windows")
    except ImportError as error:
        raise ImportError(
            "windows need the compiled part of drivetrain, which was not built here: found no "
            f"drivetrain.core.native.windows ({error}), allowed: an installation from a wheel, or "
            "from source where there is a C compiler (gcc or clang) and POSIX threads."
        ) from error
