"""Processes that train apart, and the outer optimizer that brings them together."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from drivetrain.train.loop.loop import Loop
from drivetrain.train.loop.step import Step
from drivetrain.train.together.buckets import start_equal
from drivetrain.train.together.compressors import Compressor
from drivetrain.train.together.group import Group


class Apart:
    """The :class:`drivetrain.train.loop.step.Exchange` of processes that update by themselves.

    Args:
        model: on its device; the parameters and buffers of rank 0 become those of all.
        group: the processes.
    """

    def __init__(self, model: nn.Module, group: Group) -> None:
        start_equal(model, group)
        self._group = group
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self.outer: Outer | None = None
        """Set by the strategy when there is an optimizer; its state is part of this one's."""

    @property
    def settled(self) -> bool:
        """Whether a meeting has just been."""
        return self.outer is not None and self.outer.settled

    def begin(self, loss: Tensor) -> None:
        """Nothing travels."""

    def finish(self, loss: Tensor) -> Tensor:
        """Weight the own rows as if they were all; the loss of them."""
        # The gradient is a part of the whole batch's, which has as many parts as processes.
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        if gradients:
            torch._foreach_mul_(gradients, float(self._group.size))  # pyright: ignore[reportPrivateImportUsage]
        return loss * self._group.size

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The outer momentum; and the own optimizer's state and debts."""
        assert self.outer is not None
        return self.outer.common(), self.outer.own()

    def load(self, common: Mapping[str, Tensor], own: Sequence[Mapping[str, Tensor]]) -> None:
        """Go back to what :meth:`state` gave; a process that was not there takes another's part."""
        assert self.outer is not None
        mine = dict(own[self._group.rank % len(own)]) if own else {}
        if len(own) != self._group.size:  # a meeting takes the mean: each owes the mean of all
            for name in [name for name in mine if name.startswith("owed/")]:
                mine[name] = torch.stack([part[name] for part in own]).mean(0)
        self.outer.load_own(common, mine)


class Outer:
    """The callback that brings processes together: one step of SGD along the mean of their ways.

    Args:
        step: of this process.
        group: the processes.
        every: updates between two meetings.
        lr: the share of the mean way that is gone.
        momentum: Nesterov's.
        compressor: sums ways in few bytes; None sums them as they are.
    """

    def __init__(
        self,
        step: Step,
        group: Group,
        *,
        every: int,
        lr: float,
        momentum: float,
        compressor: Compressor | None = None,
    ) -> None:
        self.every = every
        self.lr = lr
        self.momentum = momentum
        self._step = step
        self._group = group
        self._compressor = compressor
        self._buffers = [b for b in step.model.buffers() if b.is_floating_point()]
        self._start = [p.detach().clone() for p in step.parameters]
        self._speed = [torch.zeros_like(p) for p in self._start]
        self._owed = [torch.zeros_like(p) for p in self._start] if compressor else []
        self._met = 0

    def after_update(self, loop: Loop) -> None:
        """Meet if it is time."""
        if self._step.done % self.every == 0:
            self.meet()

    def after_epoch(self, loop: Loop) -> None:
        """Meet, unless that has just happened: what is validated are the weights of all."""
        if not self.settled:
            self.meet()

    @property
    def settled(self) -> bool:
        """Whether a meeting has just been."""
        return self._met == self._step.done

    @torch.no_grad()
    def meet(self) -> None:
        """Exchange the ways since the last meeting, and go on from one place."""
        ways = [a - p.detach() for a, p in zip(self._start, self._step.parameters, strict=True)]
        means = [total / self._group.size for total in self._summed(ways)]
        for start, speed, mean, parameter in zip(
            self._start, self._speed, means, self._step.parameters, strict=True
        ):
            speed.mul_(self.momentum).add_(mean)
            start.sub_(mean + self.momentum * speed, alpha=self.lr)
            parameter.copy_(start)
        for buffer in self._buffers:
            buffer.copy_(self._group.sum(buffer.clone()) / self._group.size)
        self._met = self._step.done

    def _summed(self, ways: list[Tensor]) -> list[Tensor]:
        if self._compressor is None:
            flat = self._group.sum(torch.cat([way.reshape(-1) for way in ways]))
            parts = flat.split([way.numel() for way in ways])
            return [part.view(way.shape) for part, way in zip(parts, ways, strict=True)]
        for owed, way in zip(self._owed, ways, strict=True):
            owed += way
        total, own = self._compressor(self._owed, self._group)
        for owed, sent in zip(self._owed, own, strict=True):
            owed -= sent
        return total

    # -- checkpoints: written at meetings, so the weights need no keeping here ------------------

    def common(self) -> dict[str, Tensor]:
        """What is the same in every process."""
        found = {f"speed/{number}": speed for number, speed in enumerate(self._speed)}
        if self._compressor is not None:
            found |= {f"way/{name}": t for name, t in self._compressor.state().items()}
        return found

    def own(self) -> dict[str, Tensor]:
        """What is this process's own."""
        found = {f"owed/{number}": owed for number, owed in enumerate(self._owed)}
        for number, slots in self._step.optimizer.state_dict()["state"].items():
            for name, value in slots.items():
                if isinstance(value, Tensor):
                    found[f"optimizer/{number}/{name}"] = value
        return found

    def load_own(self, common: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
        """Go back to a meeting; the step has its weights already."""
        for number, speed in enumerate(self._speed):
            speed.copy_(common[f"speed/{number}"])
        for number, owed in enumerate(self._owed):
            owed.copy_(own[f"owed/{number}"])
        if self._compressor is not None:
            kept = {n.removeprefix("way/"): t for n, t in common.items() if n.startswith("way/")}
            self._compressor.load(kept)
        slots = self._step.optimizer.state_dict()
        for number, held in slots["state"].items():
            for name in held:
                if f"optimizer/{number}/{name}" in own:
                    held[name] = own[f"optimizer/{number}/{name}"]
        self._step.optimizer.load_state_dict(slots)

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """When the last meeting was."""
        return {"met": self._met}, {}

    def load(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Go on from the weights that the step has."""
        self._met = state.get("met", self._step.done)  # one by itself has always met
        for start, parameter in zip(self._start, self._step.parameters, strict=True):
            start.copy_(parameter.detach())
