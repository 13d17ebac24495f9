"""Optional imports whose absence is reported with the command that mends it."""

import os
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType

_SILENCE: Mapping[str, tuple[str, str]] = {
    "onnxruntime": ("ORT_DISABLE_TELEMETRY", "1"),
    "transformers": ("HF_HUB_OFFLINE", "1"),
}
"""What must stand in the environment before a package is imported, or it would ask its makers
over the network, or tell them of its use. What stands there already stays: that is the user's to
say."""


def need(module: str, extra: str) -> ModuleType:
    """Import ``module``, or say which extra of drivetrain brings it.

    Args:
        module: the dotted name, such as ``"torch"``.
        extra: the extra that installs it, such as ``"train"``.

    Raises:
        ImportError: the module, or the package that holds it, is not installed.
    """
    for package, (variable, value) in _SILENCE.items():
        if module.partition(".")[0] == package:
            os.environ.setdefault(variable, value)
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # something that the module itself imports is absent: not ours to explain
        raise ImportError(
            f"{module} is not installed, and this needs it: pip install 'drivetrain[{extra}]'",
            name=error.name,
        ) from error
