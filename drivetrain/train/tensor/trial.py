"""A cut model held against the whole one on a few rows: what it answers and what it learns."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from drivetrain.train.checkpoints.pieces import is_cut, piece
from drivetrain.train.together.group import Group
from drivetrain.train.together.mesh import Mesh

TOLERANCE = 1e-3
"""How far the cut model may be from the whole one, relative to the largest number of a tensor."""


@dataclass(frozen=True)
class Tried:
    """What a model answers and learns from a few rows.

    Attributes:
        outputs: every tensor of numbers among its outputs.
        squares: the sum of squares of each parameter's gradient, over all parts of it.
        dropouts: the shapes of what each ``nn.Dropout`` takes, call by call.
    """

    outputs: list[Tensor]
    squares: dict[str, Tensor]
    dropouts: dict[str, list[tuple[int, ...]]]


def tried(model: nn.Module, sample: Sequence[Tensor], group: Group) -> Tried:
    """Go through a model and back, in evaluation mode; no gradient is kept.

    Args:
        model: whole or cut.
        sample: a few rows of its inputs.
        group: those that hold a copy together.
    """
    squares: dict[str, Tensor] = {}
    dropouts: dict[str, list[tuple[int, ...]]] = {}

    def measure(name: str) -> Any:
        def hook(parameter: Tensor) -> None:
            assert parameter.grad is not None
            squares[name] = piece(parameter.grad).tensor.double().square().sum()
            parameter.grad = None

        return hook

    def look(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor]) -> None:
            dropouts.setdefault(name, []).append(tuple(inputs[0].shape))

        return hook

    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    hooks = [p.register_post_accumulate_grad_hook(measure(n)) for n, p in named.items()]
    hooks += [
        module.register_forward_pre_hook(look(name))
        for name, module in model.named_modules()
        if type(module) is nn.Dropout
    ]
    try:
        with torch.enable_grad():
            outputs = [t for t in tree_leaves(model(*sample)) if isinstance(t, Tensor)]
            outputs = [t for t in outputs if t.is_floating_point()]
            # A different weight for each number: none cancels another.
            sum((_weights(t) * t).sum() for t in outputs if t.requires_grad).backward()  # pyright: ignore[reportAttributeAccessIssue]
    finally:
        for hook in hooks:
            hook.remove()
    zero = torch.zeros((), dtype=torch.float64, device=next(model.parameters()).device)
    for name, parameter in named.items():
        squares.setdefault(name, zero.clone())
        if is_cut(parameter):
            squares[name] = group.sum(squares[name])
    return Tried([t.detach() for t in outputs], squares, dropouts)


def _weights(tensor: Tensor) -> Tensor:
    count = torch.arange(tensor.numel(), device=tensor.device, dtype=tensor.dtype)
    return (count + 1).cos().view(tensor.shape)


def hold(found: Tried, whole: Tried, mesh: Mesh) -> None:
    """Refuse a cut model that answers or learns something else than the whole one.

    Raises:
        ValueError: says what differs, in every process alike.
    """
    wrong = next(_differences(found, whole), "")
    told = torch.frombuffer(bytearray(wrong.encode()[:256].ljust(256, b"\0")), dtype=torch.uint8)
    for heard in mesh.gather(told):
        text = bytes(heard.tolist()).rstrip(b"\0").decode(errors="replace")
        if text:
            raise ValueError(
                f"TensorParallel.plan: found {text} of the cut model other than of the whole one, "
                "allowed: cuts that change neither. Layers between one that is cut by column and "
                'the next by row must treat each number by itself; "whole" leaves a layer as it is.'
            )


def _differences(found: Tried, whole: Tried) -> Iterator[str]:
    pairs = zip(found.outputs, whole.outputs, strict=False)
    same = len(found.outputs) == len(whole.outputs)
    if not same or any(a.shape != b.shape or not _close(a, b) for a, b in pairs):
        yield "outputs"
    for name, square in whole.squares.items():
        if not _close(found.squares[name].sqrt(), square.sqrt()):
            yield f"the gradient of {name!r}"


def _close(found: Tensor, expected: Tensor) -> bool:
    if not expected.numel():
        return True
    largest = float(expected.nan_to_num(0, 0, 0).abs().max())
    return torch.allclose(
        found, expected, rtol=TOLERANCE, atol=TOLERANCE * max(largest, 1e-3), equal_nan=True
    )
