"""The compiled kernel of windows, which backfills, streams and servers share."""

from typing import Any


def kernel() -> Any:
    """The module ``windows``.

    Raises:
        ImportError: there was no C compiler where this was installed, so it was not built.
    """
    try:
        from drivetrain.core.native import windows  # pyright: ignore[reportAttributeAccessIssue]
    except ImportError as error:
        raise ImportError(
            "windows need the compiled part of drivetrain, which was not built here: found no "
            f"drivetrain.core.native.windows ({error}), allowed: an installation from a wheel, or "
            "from source where there is a C compiler (gcc or clang) and POSIX threads."
        ) from error
    return windows  # pyright: ignore[reportUnknownVariableType]
