"""Names for what a model answers."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from drivetrain.core.errors import wrong


def named(outputs: Any) -> dict[str, Tensor]:
    """A tensor as ``output``, a tuple's as ``output_0`` and so on, others under their own names.

    A tensor ``[rows, 1]`` becomes ``[rows]``.

    Raises:
        ValueError: something else than tensors.
    """
    if isinstance(outputs, Tensor):
        found: dict[str, Any] = {"output": outputs}
    elif isinstance(outputs, Mapping):
        found = dict(outputs)
    elif isinstance(outputs, tuple) and hasattr(outputs, "_fields"):
        found = outputs._asdict()  # pyright: ignore[reportAttributeAccessIssue]
    elif isinstance(outputs, tuple | list):
        found = {f"output_{number}": value for number, value in enumerate(outputs)}
    else:
        raise wrong("model output", type(outputs).__name__, "tensors, alone or in a tuple or dict")
    for name, value in found.items():
        if not isinstance(value, Tensor):
            raise wrong(f"model output {name!r}", type(value).__name__, "a tensor")
    return {n: v.squeeze(1) if v.dim() == 2 and v.shape[1] == 1 else v for n, v in found.items()}
