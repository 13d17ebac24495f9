"""Values as a line of text and tensors: what one stage of a model sends to another."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from drivetrain.core.errors import wrong

LABEL_BYTES = 2048
"""Of the line of text, which has one length so that it can be received before it is known."""

_PLAIN = (bool, int, float, str, type(None))


def label(value: Any) -> str:
    """The text that says what ``value`` is, less what its tensors hold.

    Raises:
        ValueError: it is, or has in it, what is neither a tensor nor plain data.
    """
    return json.dumps(_described(value), separators=(",", ":"))


def travels(value: Any) -> bool:
    """Whether ``value`` can be sent."""
    try:
        label(value)
    except ValueError:
        return False
    return True


def _described(value: Any) -> Any:
    if isinstance(value, Tensor):
        return ["tensor", str(value.dtype)[6:], list(value.shape), value.requires_grad]
    if type(value) in _PLAIN:
        return ["plain", value]
    if isinstance(value, torch.Size) or type(value) is tuple:
        return ["tuple", [_described(each) for each in value]]
    if type(value) is list:
        return ["list", [_described(each) for each in value]]
    if type(value) is dict and all(type(key) is str for key in value):
        return ["dict", {key: _described(each) for key, each in value.items()}]
    raise wrong(
        "a value from one stage to the next", type(value).__name__, "tensors, and plain data"
    )


def tensors(value: Any) -> list[Tensor]:
    """The tensors in ``value``, in the order of its label."""
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if type(value) is dict else value
    return [t for part in parts for t in tensors(part)] if isinstance(value, _MANY) else []


_MANY = (tuple, list, dict)


def blanks(text: str, device: torch.device) -> list[Tensor]:
    """Tensors to receive into, of the shapes and types that a label says."""
    return [
        torch.empty(shape, dtype=getattr(torch, dtype), device=device)
        for dtype, shape, _ in _places(json.loads(text))
    ]


def wanted(text: str) -> list[bool]:
    """For each tensor of a label whether it wants a gradient back."""
    return [gradient for _, _, gradient in _places(json.loads(text))]


def _places(described: Any) -> Iterator[tuple[str, list[int], bool]]:
    kind, *rest = described
    if kind == "tensor":
        yield tuple(rest)
    elif kind != "plain":
        for part in rest[0].values() if kind == "dict" else rest[0]:
            yield from _places(part)


def put_together(text: str, found: Sequence[Tensor]) -> Any:
    """The value that a label says, with these tensors in it."""
    left = iter(found)

    def made(described: Any) -> Any:
        kind, *rest = described
        if kind == "tensor":
            return next(left)
        if kind == "plain":
            return rest[0]
        if kind == "dict":
            return {key: made(part) for key, part in rest[0].items()}
        return (tuple if kind == "tuple" else list)(made(part) for part in rest[0])

    return made(json.loads(text))


def sealed(text: str) -> Tensor:
    """A label as bytes ``[LABEL_BYTES]``.

    Raises:
        ValueError: it is too long.
    """
    data = text.encode()
    if len(data) > LABEL_BYTES:
        raise wrong(
            "the text that says what goes from one stage to the next",
            f"{len(data)} bytes",
            f"{LABEL_BYTES}: let fewer values pass, or cut elsewhere",
        )
    return torch.frombuffer(bytearray(data.ljust(LABEL_BYTES)), dtype=torch.uint8)


def opened(data: Tensor) -> str:
    """The label in :func:`sealed` bytes."""
    return bytes(data.numpy()).rstrip().decode()
