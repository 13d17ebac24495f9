"""What a model of any framework answers: arrays, alone, in a tuple or in a dictionary."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from drivetrain.core.errors import wrong

INNER = "outputs/"
"""Before the name of an output inside a graph, which is no name of a prediction."""


def leaves(outputs: Any) -> dict[str, Any]:
    """An array as ``output``, those of a tuple as ``output_0`` and so on, others by their names.

    Raises:
        ValueError: something else than arrays.
    """
    if isinstance(outputs, Mapping):
        found: dict[str, Any] = dict(outputs)
    elif isinstance(outputs, tuple | list):
        found = {f"output_{number}": value for number, value in enumerate(outputs)}
    else:
        found = {"output": outputs}
    for name, value in found.items():
        if not hasattr(value, "shape"):
            allowed = "an array, alone or in a tuple or dict"
            raise wrong(f"model output {name!r}", type(value).__name__, allowed)
    return found


def mapped(outputs: Any, change: Callable[[Any], Any]) -> Any:
    """The same structure with each array changed."""
    changed = {name: change(value) for name, value in leaves(outputs).items()}
    return rebuilt(outputs, list(changed.values()))


def rebuilt(like: Any, arrays: Sequence[Any]) -> Any:
    """Arrays in the structure of ``like``, whose leaves they replace in order."""
    if isinstance(like, Mapping):
        return dict(zip(like, arrays, strict=True))
    if isinstance(like, tuple | list):
        return tuple(arrays)
    (array,) = arrays
    return array


def plain(outputs: Any) -> Any:
    """The outputs with each ``[rows, 1]`` as ``[rows]``, which is what the losses take."""
    return mapped(outputs, lambda a: a[:, 0] if len(a.shape) == 2 and a.shape[1] == 1 else a)


def inner(outputs: Any) -> list[str]:
    """The names that a graph gives the outputs before predictions are made of them."""
    return [f"{INNER}{name}" for name in leaves(outputs)]
