"""Gradients summed over processes through a compressor, which owes what it did not let through."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from drivetrain.train.together.buckets import share_buffers, start_equal
from drivetrain.train.together.compressors import Compressor
from drivetrain.train.together.group import Group


class Compressed:
    """The :class:`drivetrain.train.loop.step.Exchange` of data parallel training on a slow network.

    Args:
        model: on its device; the parameters and buffers of rank 0 become those of all.
        group: the processes.
        compressor: sums updates in few bytes.
    """

    def __init__(self, model: nn.Module, group: Group, compressor: Compressor) -> None:
        start_equal(model, group)
        self._group = group
        self._compressor = compressor
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._buffers = [b for b in model.buffers() if b.is_floating_point()]
        self._owed = [torch.zeros_like(p) for p in self._parameters]

    settled = True

    def begin(self, loss: Tensor) -> None:
        """Nothing travels before backward is complete."""

    def finish(self, loss: Tensor) -> Tensor:
        """Put the sums in the place of the gradients; the sum of the losses."""
        for owed, parameter in zip(self._owed, self._parameters, strict=True):
            if parameter.grad is not None:
                owed += parameter.grad
        # A message less, where the loss can travel with what is compressed.
        along = [loss.detach().reshape(1)] if self._compressor.exact_vectors else []
        total, own = self._compressor([*self._owed, *along], self._group)
        for parameter, owed, gradient, sent in zip(
            self._parameters, self._owed, total, own, strict=False
        ):
            owed -= sent
            parameter.grad = gradient.detach()
        share_buffers(self._buffers, self._group)
        return total[-1].reshape(()) if along else self._group.sum(loss.clone())

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What all processes have in common, and what this one owes."""
        owed = {str(number): tensor for number, tensor in enumerate(self._owed)}
        return self._compressor.state(), owed

    def load(self, common: Mapping[str, Tensor], own: Sequence[Mapping[str, Tensor]]) -> None:
        """Go back to what :meth:`state` gave, by rank.

        Another number of processes than then share what all of them owed.
        """
        self._compressor.load({name: t.to(self._owed[0].device) for name, t in common.items()})
        same = len(own) == self._group.size
        for number, mine in enumerate(self._owed):
            if same:
                mine.copy_(own[self._group.rank][str(number)])
            else:
                parts = [part[str(number)] for part in own]
                mine.copy_(torch.stack(parts).sum(0) / self._group.size)
