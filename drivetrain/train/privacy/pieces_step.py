"""The private training step of processes that hold a piece of each weight."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from drivetrain.train.checkpoints.pieces import cut, shared
from drivetrain.train.privacy.private_step import PrivateStep
from drivetrain.train.together.group import naming
from drivetrain.train.together.sharding import JointStep, Shards


class PrivateStepOfPieces(JointStep, PrivateStep):
    """A :class:`PrivateStep` whose weights, gradients, optimizer and average are in pieces.

    The norm of a row's gradient is over all weights, and how it is found looks into each layer. So
    a second model is filled with the whole weights for as long as gradients are made. Their sum
    over the processes is cut into pieces, and so is the noise, which all draw alike.

    Args:
        arguments: as of :class:`PrivateStep`.
        learner: what :func:`emptied` gave of the model before it was cut.
        options: as of :class:`PrivateStep`.
    """

    def __init__(self, *arguments: Any, learner: nn.Module, **options: Any) -> None:
        self._whole = learner
        super().__init__(*arguments, **options)

    @property
    def _learner(self) -> nn.Module:
        return self._whole

    def _learn_privately(
        self, inputs: Sequence[Tensor], targets: Mapping[str, Tensor], rows: int
    ) -> Tensor:
        self._fill()
        loss = super()._learn_privately(inputs, targets, rows)
        self._hand_over()
        return loss

    @torch.no_grad()
    def _fill(self) -> None:
        """Put the weights together; all processes do."""
        assert isinstance(self.exchange, Shards)
        with naming(self.exchange.group):
            for held, whole in zip(self.model.parameters(), self._whole.parameters(), strict=True):
                whole.data = held.full_tensor() if shared(held) else held.data
        for held, whole in zip(self.model.buffers(), self._whole.buffers(), strict=True):
            whole.copy_(held)

    @torch.no_grad()
    def _hand_over(self) -> None:
        """Give each process its piece of the summed gradients, and let the whole weights go."""
        assert isinstance(self.exchange, Shards)
        for held, whole in zip(self.model.parameters(), self._whole.parameters(), strict=True):
            if held.requires_grad:
                # A process without rows has no gradient, and takes part in the sum.
                found = torch.zeros_like(whole) if whole.grad is None else whole.grad
                held.grad = cut(self.exchange.group.sum(found), held)
            whole.grad = None
            whole.data = whole.new_empty(0)
        for held, whole in zip(self.model.buffers(), self._whole.buffers(), strict=True):
            held.copy_(whole)


def emptied(model: nn.Module) -> nn.Module:
    """A copy of ``model`` on its device whose parameters take no memory until they are filled."""
    empty = {
        id(p): nn.Parameter(p.new_empty(0), requires_grad=p.requires_grad)
        for p in model.parameters()
    }
    return copy.deepcopy(model, empty)  # pyright: ignore[reportArgumentType]
