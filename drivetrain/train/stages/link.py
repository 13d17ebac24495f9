"""How a stage of a model hears from the one before it, and tells the one after it."""

import copy
import json
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from drivetrain.train.stages import parcels
from drivetrain.train.together.group import Group, naming
from drivetrain.train.together.mesh import Mesh


class Entering:
    """What came from the stage before, and the gradients that are to go back there.

    Attributes:
        value: what that stage gave.
    """

    def __init__(self, text: str, found: Sequence[Tensor]) -> None:
        self._wanted = parcels.wanted(text)
        self._gradients: list[Tensor | None] = [None] * len(found)
        self._shapes = [(t.shape, t.dtype, t.device) for t in found]
        backward = torch.is_grad_enabled() and any(self._wanted)
        anchor = torch.zeros((), requires_grad=True) if backward else None
        tensors = [
            _Enter.apply(anchor, [tensor], self._gradients, number)
            if wanted and anchor is not None
            else tensor
            for number, (tensor, wanted) in enumerate(zip(found, self._wanted, strict=True))
        ]
        self.value: Any = parcels.put_together(text, tensors)

    def gradients(self) -> list[Tensor]:
        """Of each tensor that wants one; zeros where nothing came of it."""
        return [
            torch.zeros(shape, dtype=dtype, device=device) if gradient is None else gradient
            for gradient, (shape, dtype, device), wanted in zip(
                self._gradients, self._shapes, self._wanted, strict=True
            )
            if wanted
        ]


class _Enter(Function):
    """Makes of a received tensor one that backward comes to.

    A leaf would do the same, but may not be changed in place, as some first layers do.
    """

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, held: list[Tensor], into: list[Any], at: int) -> Tensor:
        ctx.into, ctx.at = into, at
        return held.pop()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (ctx.into[ctx.at],) = gradients
        return None, None, None, None


class Link:
    """This stage's way to those beside it in the same copy of the model.

    Nothing here waits for somebody to take what was sent, until it must be known; every wait ends
    after ``seconds``, with an error that names the rank that was waited for.

    All processes make theirs at the same point.

    Args:
        mesh: whose ``model`` groups are the stages in order.
        device: where tensors live.
        seconds: how long any wait for another process lasts at most.
    """

    def __init__(self, mesh: Mesh, device: torch.device, seconds: float) -> None:
        self._group = mesh.model
        self._device = device
        self._index, self._count = mesh.model.rank, mesh.model.size
        self._before = _neighbour(mesh, -1)
        self._after = _neighbour(mesh, +1)
        self._sent: dict[int, list[Any]] = {}
        self._returned: deque[list[Any]] = deque()
        # A channel for each direction: on a GPU one is a queue, in which two who both send first
        # and receive then wait for each other.
        self._back = _channel(mesh, seconds)

    # -- forward -------------------------------------------------------------------------------

    def send(self, number: int, value: Any) -> None:
        """Give the next stage what it needs of a micro-batch."""
        text = parcels.label(value)
        found = [t.detach().contiguous() for t in parcels.tensors(value)]
        self._sent[number] = self._off([parcels.sealed(text), *found], self._after, None)

    def receive(self) -> Entering:
        """What the stage before gives of the next micro-batch."""
        data = torch.empty(parcels.LABEL_BYTES, dtype=torch.uint8)
        self._in([data], self._before, None)
        text = parcels.opened(data)
        found = parcels.blanks(text, self._device)
        self._in(found, self._before, None)
        return Entering(text, found)

    # -- backward ------------------------------------------------------------------------------

    def send_gradients(self, gradients: Sequence[Tensor]) -> None:
        """Give the stage before the gradients of what it gave."""
        found = [gradient.contiguous() for gradient in gradients]
        self._returned.append(self._off(found, self._before, self._back))
        if len(self._returned) > self._count:  # so old that it was taken
            self._settle(self._returned.popleft(), self._before)

    def receive_gradients(self, number: int, values: Sequence[Tensor]) -> list[Tensor]:
        """The gradients of ``values``, which are what was sent of a micro-batch and wants one."""
        # Who gives gradients has taken what they are of.
        found = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in values]
        self._in(found, self._after, self._back)
        self._settle(self._sent.pop(number), self._after)
        return found

    def settle(self) -> None:
        """Wait until all that was sent was taken."""
        for sent in self._sent.values():
            self._settle(sent, self._after)
        self._sent.clear()
        while self._returned:
            self._settle(self._returned.popleft(), self._before)

    # -- all -----------------------------------------------------------------------------------

    def told(self, figures: Mapping[str, float] | None) -> dict[str, float]:
        """The figures that the last stage knows, in all of this copy's.

        Args:
            figures: None in all others.
        """
        last = self._count - 1
        told = torch.empty(parcels.LABEL_BYTES, dtype=torch.uint8)
        if figures is not None:
            told = parcels.sealed(json.dumps(figures))
        with naming(self._group):
            dist.broadcast(told, group=self._group.channel, group_src=last)
        self._group.traffic.broadcast(told)
        return json.loads(parcels.opened(told))

    def _off(self, found: Sequence[Tensor], to: Group, channel: Any) -> list[Any]:
        """Begin to send; the works and what they send, which must live as long."""
        works: list[Any] = []
        with naming(to):
            for tensor in found:
                if tensor.numel():
                    works.append(
                        (dist.isend(tensor, group=channel or to.channel, group_dst=to.rank), tensor)
                    )
                to.traffic.send(tensor.nbytes)
        return works

    def _in(self, into: Sequence[Tensor], source: Group, channel: Any) -> None:
        with naming(source):
            for tensor in into:
                if tensor.numel():
                    dist.recv(tensor, group=channel or source.channel, group_src=source.rank)

    def _settle(self, works: Sequence[Any], to: Group) -> None:
        with naming(to):
            for work, _ in works:
                work.wait()


def _neighbour(mesh: Mesh, step: int) -> Group:
    """The group of a copy, as the stage ``step`` further on: of its rank and by its name."""
    group = copy.copy(mesh.model)
    group.rank = mesh.model.rank + step
    group.names = mesh.names[0], f"rank {mesh.rank + step}"
    return group


def _channel(mesh: Mesh, seconds: float) -> Any:
    found: Any = None
    with naming(mesh):
        for ranks in torch.arange(mesh.size).view(-1, mesh.ways).tolist():
            channel = dist.new_group(ranks, timeout=timedelta(seconds=seconds))
            found = channel if mesh.rank in ranks else found
    return found
