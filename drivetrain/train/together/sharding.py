"""Weights, gradients and optimizer states in pieces, one for each process: FSDP2 under the loop."""

import copy
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map_only

from drivetrain.train.checkpoints.pieces import clip
from drivetrain.train.loop.step import Step
from drivetrain.train.together.buckets import share_buffers, start_equal
from drivetrain.train.together.group import Group, naming

_WHOLE = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
"""Modules that read the weights of those within without calling them."""


class Shards:
    """The :class:`drivetrain.train.loop.step.Exchange` of processes that hold weights in pieces.

    Gradients are summed while backward goes on, each piece where it belongs. So what is left to
    do at its end is the loss.

    Args:
        model: with its weights in pieces.
        group: the processes.
    """

    def __init__(self, model: nn.Module, group: Group) -> None:
        self.group = group
        self._buffers = [b for b in model.buffers() if b.is_floating_point()]

    settled = True

    def begin(self, loss: Tensor) -> None:
        """Nothing: what is complete is sent in any backward."""

    def finish(self, loss: Tensor) -> Tensor:
        """The sum of the losses."""
        share_buffers(self._buffers, self.group)
        return self.group.sum(loss.clone())

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Nothing: what is summed is used up."""
        return {}, {}

    def load(self, common: Mapping[str, Tensor], own: Sequence[Mapping[str, Tensor]]) -> None:
        """Nothing to go back to."""


class JointStep(Step):
    """A step that all processes take at once, since forward and backward fetch what others hold."""

    _seen: tuple[list[Tensor], dict[str, Tensor]] | None = None

    def __call__(
        self,
        inputs: Sequence[Tensor],
        targets: Mapping[str, Tensor],
        rows: int,
        of_all: int | None = None,
    ) -> bool:
        """As :meth:`drivetrain.train.loop.step.Step.__call__`."""
        if rows:
            self._seen = list(inputs), dict(targets)
        return super().__call__(inputs, targets, rows, of_all)

    def go_along(self, inputs: Sequence[Tensor], targets: Mapping[str, Tensor]) -> None:
        """Go through the model with rows that count nothing: seen ones, or zeros before any."""
        if self._seen is None:
            self._seen = [_zeros(t) for t in inputs], {n: _zeros(t) for n, t in targets.items()}
        inputs = [tensor[:1] for tensor in self._seen[0]]
        targets = {name: tensor[:1] for name, tensor in self._seen[1].items()}
        training = self.model.training
        self.model.eval()  # draws nothing, and a batch norm takes one row
        try:
            outputs = self.outputs(inputs)
            if torch.is_grad_enabled():
                loss = self.loss(outputs, targets)
                loss.backward(torch.zeros_like(loss))
        finally:
            self.model.train(training)

    def _clip(self, most: float) -> None:
        assert isinstance(self.exchange, Shards)
        clip(self.parameters, most, self.exchange.group)


def _zeros(tensor: Tensor) -> Tensor:
    return tensor.new_zeros((1, *tensor.shape[1:]))


def shard(model: nn.Module, group: Group, at_least: int) -> None:
    """Cut the weights of ``model`` along their first dimension, in place, a piece for each process.

    Args:
        model: on its device; the weights and buffers of rank 0 are those that count.
        group: the processes.
        at_least: parameters of a module that is fetched by itself; smaller ones come with the
            module that they are in.
    """
    start_equal(model, group)
    device = next(model.parameters()).device.type
    shard_over(model, init_device_mesh(device, (group.size,)), at_least)


def shard_over(model: nn.Module, mesh: DeviceMesh, at_least: int) -> None:
    """Cut weights, or what this process holds of them, over a mesh of one dimension, in place.

    Args:
        model: on its device; equal over the mesh.
        mesh: the processes.
        at_least: as :func:`shard` has it.
    """
    for unit in units(model, at_least):
        unit.register_forward_hook(_own_output)
        fully_shard(unit, mesh=mesh, reshard_after_forward=True)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # Losses are weighted by rows already. Gloo knows no operation but the plain sum.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
            # All reduce the same gradients, whatever a process's rows led through.
            module.set_reduce_scatter_unused_params(True, recurse=False)


def _own_output(module: nn.Module, inputs: Any, outputs: Any) -> Any:
    """Copies of views: changed in place, one would lose the hook that fetches weights again."""
    return tree_map_only(Tensor, lambda t: t.clone() if t._is_view() else t, outputs)


def units(model: nn.Module, at_least: int) -> list[nn.Module]:
    """The modules whose weights are fetched together, inner ones first, the model itself last.

    Weights that several modules share belong to the innermost module that has all of these in it.
    """
    owners = Counter(id(p) for m in model.modules() for p in m._parameters.values())
    found: list[nn.Module] = []
    taken: set[int] = set()

    def left(module: nn.Module) -> int:
        """Parameters of ``module`` that no unit has taken."""
        count = sum(left(child) for child in module.children() if not isinstance(module, _WHOLE))
        within = Counter(id(p) for m in module.modules() for p in m._parameters.values())
        if isinstance(module, _WHOLE):
            count = sum(p.numel() for p in module.parameters())
        else:
            count += sum(p.numel() for p in module.parameters(recurse=False))
        called = type(module).forward is not nn.Module.forward
        closed = all(within[key] == owners[key] for key in within)
        if module is model or (count >= at_least and called and closed and id(module) not in taken):
            taken.add(id(module))
            found.append(module)
            return 0
        return count

    left(model)
    return found


def skeleton(model: nn.Module) -> nn.Module:
    """A copy of ``model`` whose parameters take no memory."""
    empty = {
        id(p): nn.Parameter(p.detach().to("meta"), requires_grad=p.requires_grad)
        for p in model.parameters()
    }
    return copy.deepcopy(model, empty)  # pyright: ignore[reportArgumentType]


@torch.no_grad()
def whole(model: nn.Module, like: nn.Module, group: Group) -> nn.Module:
    """The weights of ``model`` in ``like``, its skeleton; one at a time is put together."""
    with naming(group):
        for (_, parameter), (_, empty) in zip(
            model.named_parameters(), like.named_parameters(), strict=True
        ):
            full = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter.detach()
            filled = nn.Parameter(full, requires_grad=parameter.requires_grad)
            torch.utils.swap_tensors(empty, filled)
        for found, buffer in zip(model.buffers(), like.buffers(), strict=True):
            buffer.copy_(found)
            dist.broadcast(buffer, src=0)  # also those that count, which differ by who had rows
    return like


@contextmanager
def explaining(where: str) -> Iterator[None]:
    """Say which option helps a model that reads a weight of a module without calling it."""
    try:
        yield
    except RuntimeError as error:
        if "mixed torch.Tensor and DTensor" not in str(error):
            raise
        raise ValueError(
            f"{where}: found a model that reads weights of a module without calling it, allowed: "
            "modules that are called. Raise at_least above the size of that module: its weights "
            "then come with the module that it is in."
        ) from error
