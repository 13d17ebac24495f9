"""Gradients summed over processes, in buckets that travel while backward still computes others."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from drivetrain.train.checkpoints.pieces import of_pieces, piece, shared
from drivetrain.train.together.group import Group, naming


class Sums:
    """Sums the gradients of some parameters over a group while backward goes on.

    Backward finishes the gradients of the last layers first. So parameters are put in buckets from
    the last to the first, and a bucket is sent as soon as the gradients in it are complete.

    Source: Li et al., PyTorch Distributed: Experiences on Accelerating Data Parallel Training,
    VLDB 2020.

    Args:
        parameters: at least one; of those that are in pieces, this process's piece is summed.
        group: the processes, which all hold the same.
        bucket_bytes: a bucket is closed when it holds so much.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], group: Group, bucket_bytes: int = 25 << 20
    ) -> None:
        self._group = group
        self._buckets = [
            _Bucket(members, with_loss=number == 0)
            for number, members in enumerate(_divided(parameters, bucket_bytes))
        ]
        self._armed = False
        self._next = 0  # buckets before it were sent
        for bucket in self._buckets:
            for parameter in bucket.parameters:
                parameter.register_post_accumulate_grad_hook(self._noting(bucket))

    def _noting(self, bucket: "_Bucket") -> Any:
        def complete(parameter: Tensor) -> None:
            if self._armed:
                bucket.missing -= 1
                self._send_complete()

        return complete

    def _send_complete(self) -> None:
        """Send what is complete, in the order that all have, for sums are matched by their order.

        Another process may have had no rows, or none that used a parameter.
        """
        while self._next < len(self._buckets) and not self._buckets[self._next].missing:
            self._send(self._buckets[self._next])
            self._next += 1

    def _send(self, bucket: "_Bucket") -> None:
        bucket.fill()
        with naming(self._group):
            bucket.work = dist.all_reduce(bucket.flat, group=self._group.channel, async_op=True)
        self._group.traffic.reduced(bucket.flat)

    def begin(self, loss: Tensor) -> None:
        """The last backward before an update comes."""
        self._buckets[0].loss.copy_(loss)
        self._armed = True

    def finish(self, loss: Tensor) -> Tensor:
        """Put the sums in the place of the gradients; the sum of the losses."""
        if not self._armed:
            self._buckets[0].loss.copy_(loss)
        self._armed = False
        for bucket in self._buckets[self._next :]:
            self._send(bucket)
        self._next = 0
        for bucket in self._buckets:
            with naming(self._group):
                bucket.work.wait()
            bucket.give()
        return self._buckets[0].loss.clone()


class Buckets(Sums):
    """The :class:`drivetrain.train.loop.step.Exchange` of data parallel training.

    Args:
        model: on its device; the parameters and buffers of rank 0 become those of all.
        group: the processes.
        bucket_bytes: a bucket is closed when it holds so much.
    """

    def __init__(self, model: nn.Module, group: Group, bucket_bytes: int = 25 << 20) -> None:
        self._buffers = [b for b in model.buffers() if b.is_floating_point()]
        start_equal(model, group)
        super().__init__([p for p in model.parameters() if p.requires_grad], group, bucket_bytes)

    settled = True

    def finish(self, loss: Tensor) -> Tensor:
        """Put the sums in the place of the gradients; the sum of the losses."""
        total = super().finish(loss)
        share_buffers(self._buffers, self._group)
        return total

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Nothing: what is summed is used up."""
        return {}, {}

    def load(self, common: Mapping[str, Tensor], own: Sequence[Mapping[str, Tensor]]) -> None:
        """Nothing to go back to."""


class _Bucket:
    """Some parameters, and one tensor that holds all of their gradients."""

    def __init__(self, parameters: Sequence[nn.Parameter], *, with_loss: bool) -> None:
        self.parameters = parameters
        held = [piece(p).tensor for p in parameters]
        first = held[0]
        sizes = [tensor.numel() for tensor in held]
        self.flat = torch.zeros(sum(sizes) + with_loss, dtype=first.dtype, device=first.device)
        parts = self.flat.split([*sizes, *([1] if with_loss else [])])
        self.views = [part.view_as(p) for part, p in zip(parts, held, strict=False)]
        self.loss = parts[-1].view(()) if with_loss else torch.zeros(())
        self.missing = len(parameters)
        self.work: Any = None

    def fill(self) -> None:
        """Copy the gradients in; a parameter without one takes part with zeros."""
        found = [
            (view, piece(p.grad).tensor if shared(p.grad) else p.grad)
            for view, p in zip(self.views, self.parameters, strict=True)
            if p.grad is not None and p.grad is not view
        ]
        if len(found) < len(self.views):
            for view, parameter in zip(self.views, self.parameters, strict=True):
                if parameter.grad is None:
                    view.zero_()
        if found:
            views, gradients = zip(*found, strict=True)
            torch._foreach_copy_(views, gradients)  # pyright: ignore[reportPrivateImportUsage]

    def give(self) -> None:
        """Let the parameters' gradients be the sums."""
        for view, parameter in zip(self.views, self.parameters, strict=True):
            parameter.grad = of_pieces(view, parameter) if shared(parameter) else view
        self.missing = len(self.parameters)
        self.work = None


@torch.no_grad()
def start_equal(model: nn.Module, group: Group) -> None:
    """Let the parameters and buffers of rank 0 be those of all."""
    with naming(group):
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor, group=group.channel, group_src=0)
            group.traffic.broadcast(tensor)


def share_buffers(buffers: Sequence[Tensor], group: Group) -> None:
    """Running means differ by what each process saw; those of rank 0 are kept."""
    with naming(group):
        for buffer in buffers:
            dist.broadcast(buffer, group=group.channel, group_src=0)
            group.traffic.broadcast(buffer)


def _divided(parameters: Sequence[nn.Parameter], size: int) -> list[list[nn.Parameter]]:
    """Parameters from the last to the first in buckets of one type and about one size."""
    buckets: list[list[nn.Parameter]] = []
    held = 0
    for parameter in reversed(parameters):
        fits = buckets and held < size and buckets[-1][0].dtype == parameter.dtype
        if not fits:
            buckets.append([])
            held = 0
        buckets[-1].append(parameter)
        held += piece(parameter).tensor.nbytes
    return buckets
