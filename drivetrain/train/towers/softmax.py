"""The softmax over some of all items, with its gradient, in one pass through a buffer."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

NUMBERS = 1 << 17
"""Logits that are held at once: half a megabyte, which stays near the processor."""


class Sampled(NamedTuple):
    """What the towers give of a batch.

    Attributes:
        users: float32 ``[rows, dim]``.
        items: float32 ``[candidates, dim]``: each item that some row has or that was drawn, once.
        own: int64 ``[rows]``: which of the candidates each row has.
        correction: float32 ``[candidates]``: the logarithm of how often each came over how often
            it was to be expected, for the rows that have another one.
    """

    users: Tensor
    items: Tensor
    own: Tensor
    correction: Tensor


def drawn(
    ids: Tensor, frequency: Tensor, negatives: Tensor, among: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The candidates of a batch, each once, and what corrects for how they were drawn.

    For a row with the item ``y`` the others are draws: ``rows - 1`` by how often items are had,
    since the rows of a batch are drawn from all rows, and ``negatives`` uniformly. An item ``j``
    other than ``y`` is then expected ``(rows - 1) f_j + negatives / among`` times, with ``f_j``
    its share of all rows but one, and its term in the sum of the softmax, times how often it came
    over that, has the mean ``exp(score)``: so the sum has the mean of the sum over all items.
    What else came of ``y`` itself (an accidental hit) is left out, and the row's own term needs no
    correction, since it is always there.

    Args:
        ids: int64 ``[rows]``.
        frequency: float32 ``[items]``: of each item, its share of all rows but one.
        negatives: int64, any number, drawn uniformly.
        among: how many items those were drawn from.

    Returns:
        The ids of the candidates, ascending; which of them each row has; the correction.
    """
    together = torch.cat([ids, negatives])
    candidates, places, times = torch.unique(together, return_inverse=True, return_counts=True)
    expected = (len(ids) - 1) * frequency[candidates] + len(negatives) / among
    # One row alone, and no negatives: nothing but its own is there, which is not corrected.
    correction = times.log() - expected.clamp(min=torch.finfo(expected.dtype).tiny).log()
    return candidates, places[: len(ids)], correction


def softmax_loss(found: Sampled, scale: float, weights: Tensor | None = None) -> Tensor:
    """The mean over rows of the cross-entropy of each row's own item among the candidates.

    Args:
        found: of the towers.
        scale: of the products of vectors: one over the temperature.
        weights: float32 ``[rows]``; None is 1 for each.
    """
    if weights is None:
        weights = torch.ones_like(found.users[:, 0])
    return _Softmax.apply(*found, weights, scale)  # pyright: ignore[reportReturnType]


class _Softmax(torch.autograd.Function):
    """Both gradients come with the loss: logits are made once, and never all at a time."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        users: Tensor,
        items: Tensor,
        own: Tensor,
        correction: Tensor,
        weights: Tensor,
        scale: float,
    ) -> Tensor:
        learns = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        scaled = users * scale
        to_users, to_items = torch.empty_like(users), torch.zeros_like(items)
        total = torch.zeros((), device=users.device, dtype=users.dtype)
        across = items.t()
        step = max(1, NUMBERS // max(1, len(items)))
        for first in range(0, len(users), step):
            rows = slice(first, first + step)
            mine, weight, at = scaled[rows], weights[rows, None], own[rows, None]
            logits = torch.addmm(correction, mine, across)
            score = logits.gather(1, at) - correction[at]
            logits.scatter_(1, at, score)
            highest = logits.amax(1, keepdim=True)
            sums = logits.sub_(highest).exp_().sum(1, keepdim=True)
            total += ((sums.log() + highest - score) * weight).sum()
            if learns:
                logits.mul_(weight / sums)
                logits.scatter_add_(1, at, -weight)
                torch.mm(logits, items, out=to_users[rows])
                to_items.addmm_(logits.t(), mine)
        rows = max(1, len(users))
        if learns:
            ctx.save_for_backward(to_users.mul_(scale / rows), to_items.div_(rows))
        return total / rows

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        to_users, to_items = ctx.saved_tensors
        return to_users * gradient, to_items * gradient, None, None, None, None
