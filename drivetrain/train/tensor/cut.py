"""A model whose layers are cut over processes, and the sums of its gradients: DTensor."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    parallelize_module,
)

from drivetrain.core.errors import wrong
from drivetrain.train.checkpoints.pieces import clip, is_cut, piece, shared
from drivetrain.train.loop.step import Step
from drivetrain.train.tensor.attention import closed
from drivetrain.train.tensor.plan import Plan
from drivetrain.train.tensor.trial import Tried
from drivetrain.train.together.buckets import Sums, share_buffers
from drivetrain.train.together.group import Group, naming
from drivetrain.train.together.mesh import MODEL, Mesh
from drivetrain.train.together.sharding import Shards

# -- cutting -----------------------------------------------------------------------------------


def cut(model: nn.Module, plan: Plan, mesh: Mesh, devices: DeviceMesh) -> None:
    """Cut the layers of a model, in place; all processes have equal weights.

    Args:
        model: on its device.
        plan: how.
        mesh: the processes.
        devices: those that hold a copy together, as torch's mesh of one dimension.
    """
    for name, style in plan.styles.items():
        module = model.get_submodule(name)
        chosen = _style(module, style) if isinstance(style, str) else style
        # Who holds the whole takes its part of it: nothing needs to be sent.
        parallelize_module(module, devices, chosen, src_data_rank=None)
    for pair in plan.pairs:
        if pair.draws:
            own = _OwnDraws(mesh.model, next(model.parameters()).device)
            model.get_submodule(pair.columns[0]).register_forward_hook(own.begin)
            model.get_submodule(pair.row).register_forward_pre_hook(own.end, prepend=True)


def _style(module: nn.Module, style: str) -> ParallelStyle:
    if style == "row":
        return _Rows() if isinstance(module, nn.Embedding) else RowwiseParallel()
    return ColwiseParallel(output_layouts=Replicate() if style == "gathered" else None)


class _Rows(ParallelStyle):
    """A table of embeddings cut by rows: torch's own style makes the whole table's gradient."""

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        assert isinstance(module, nn.Embedding)
        weight = module.weight
        held = distribute_tensor(weight, device_mesh, [Shard(0)], src_data_rank=None)
        module.weight = nn.Parameter(held, requires_grad=weight.requires_grad)
        module.forward = partial(_look_up, module, device_mesh)
        return module


def _look_up(module: nn.Embedding, devices: DeviceMesh, input: Tensor) -> Tensor:
    """The vectors of ids, of which each process has some and zeros for others: their sum."""
    weight = module.weight
    assert isinstance(weight, DTensor)
    rows, first = weight.to_local(), piece(weight).offsets[0]
    here = (input >= first) & (input < first + len(rows))
    padding = module.padding_idx
    if padding is not None and not 0 <= padding - first < len(rows):
        padding = None
    places = (input - first).clamp(0, len(rows) - 1)
    found = nn.functional.embedding(places, rows, None if padding is None else padding - first)
    found = found * here.unsqueeze(-1).to(found.dtype)
    summed = DTensor.from_local(found, devices, [Partial()], run_check=False)
    answer = summed.redistribute(placements=[Replicate()]).to_local()
    assert isinstance(answer, Tensor)
    return answer


class _OwnDraws:
    """Draws that differ between the processes of a copy, from one step of a model to another.

    They are seeded from what all draw alike, so there is nothing more for a checkpoint to keep.
    """

    def __init__(self, group: Group, device: torch.device) -> None:
        self._group = group
        self._cuda = device if device.type == "cuda" else None
        self._held: list[Tensor] = []

    def begin(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """From here on."""
        if not module.training:
            return
        seed = int(torch.randint(1 << 48, ())) * self._group.size + self._group.rank
        self._held = [torch.get_rng_state()]
        torch.default_generator.manual_seed(seed)
        if self._cuda is not None:
            self._held.append(torch.cuda.get_rng_state(self._cuda))
            torch.cuda.manual_seed(seed)

    def end(self, module: nn.Module, inputs: Any) -> None:
        """Up to here."""
        if not self._held:
            return
        torch.set_rng_state(self._held[0])
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._held[1], self._cuda)
        self._held = []


class CutDropout(nn.Module):
    """Dropout of a part of a tensor: that part of the mask that the whole would have.

    Args:
        rate: the share of numbers that is dropped.
        dimension: along which the tensor is cut.
        part: which part this process has.
        ways: of how many.
    """

    def __init__(self, rate: float, dimension: int, part: int, ways: int) -> None:
        super().__init__()
        self.rate = rate
        self.dimension = dimension
        self.part = part
        self.ways = ways

    def forward(self, x: Tensor) -> Tensor:
        """The numbers that stay, scaled up; all of them in evaluation."""
        if not self.training or not self.rate:
            return x
        if self.rate == 1:
            return x * 0
        shape = list(x.shape)
        shape[self.dimension] *= self.ways
        kept = 1 - self.rate
        mask = x.new_empty(shape).bernoulli_(kept).div_(kept)
        return x * mask.chunk(self.ways, self.dimension)[self.part]


def cut_dropouts(model: nn.Module, found: Tried, whole: Tried, mesh: Mesh) -> None:
    """Let dropout of what is cut drop what it would drop of the whole, in place.

    Raises:
        ValueError: one module drops of what is cut and of what is whole.
    """
    ways, part = mesh.model.size, mesh.model.rank
    for name, shapes in found.dropouts.items():
        calls = {
            tuple(d for d, (a, b) in enumerate(zip(shape, before, strict=True)) if a != b)
            for shape, before in zip(shapes, whole.dropouts[name], strict=True)
        }
        if len(calls) > 1:
            raise wrong(
                f"TensorParallel: {name!r}",
                "a dropout of what is cut and of what is not",
                'a nn.Dropout for each of them, or "whole" in plan for the layers around it',
            )
        (dimensions,) = calls
        if not dimensions:
            continue
        module = model.get_submodule(name)
        assert isinstance(module, nn.Dropout)
        parent = model.get_submodule(name.rpartition(".")[0])
        made = CutDropout(module.p, dimensions[0], part, ways).train(module.training)
        setattr(parent, name.rpartition(".")[2], made)


# -- training ----------------------------------------------------------------------------------


class Parts:
    """The :class:`drivetrain.train.loop.step.Exchange` of copies that several processes hold.

    Gradients of what is cut are summed over the copies. Those of what is whole are summed over all
    processes and divided by the ways: those of a copy found the same, and this keeps their weights
    the same to the bit, whatever machines they are on.

    Args:
        model: cut.
        mesh: the processes.
        bucket_bytes: of gradients that are sent at once.
    """

    def __init__(self, model: nn.Module, mesh: Mesh, bucket_bytes: int) -> None:
        self.group = mesh
        self._buffers = [b for b in model.buffers() if b.is_floating_point()]
        learned = [p for p in model.parameters() if p.requires_grad]
        parts = [p for p in learned if is_cut(p)]
        self._whole = [p for p in learned if not is_cut(p)]
        self._sums: list[Sums] = []
        if parts and mesh.data.size > 1:
            self._sums.append(Sums(parts, mesh.data, bucket_bytes))
        if self._whole:
            self._sums.append(Sums(self._whole, mesh, bucket_bytes))

    settled = True

    def begin(self, loss: Tensor) -> None:
        """The last backward before an update comes."""
        for each in self._sums:
            each.begin(loss)

    @torch.no_grad()
    def finish(self, loss: Tensor) -> Tensor:
        """Put the sums in the place of the gradients; the sum of the losses of all copies."""
        totals = [each.finish(loss) for each in self._sums]
        share = 1 / self.group.ways
        if self._whole:
            gradients = [piece(p.grad).tensor for p in self._whole if p.grad is not None]
            torch._foreach_mul_(gradients, share)  # pyright: ignore[reportPrivateImportUsage]
            total = totals[-1] * share
        else:
            total = self.group.sum(loss.clone()) * share
        share_buffers(self._buffers, self.group)
        return total

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Nothing: what is summed is used up."""
        return {}, {}

    def load(self, common: Mapping[str, Tensor], own: Sequence[Mapping[str, Tensor]]) -> None:
        """Nothing to go back to."""


class ShardedParts(Shards):
    """The :class:`drivetrain.train.loop.step.Exchange` of copies that share their parts further.

    What one process holds of a copy it holds a piece of, and the other copies the rest. Gradients
    are summed over the copies while backward goes on.

    Args:
        model: cut, and then sharded over the copies.
        mesh: the processes.
    """

    def __init__(self, model: nn.Module, mesh: Mesh) -> None:
        super().__init__(model, mesh)
        self._mesh = mesh
        learned = [p for p in model.parameters() if p.requires_grad]
        self._whole = [p for p in learned if not _differs_in_a_copy(p)]

    @torch.no_grad()
    def finish(self, loss: Tensor) -> Tensor:
        """The sum of the losses of all copies; equal gradients made so to the bit."""
        share = 1 / self._mesh.ways
        found = [piece(p.grad).tensor for p in self._whole if p.grad is not None]
        if found and self._mesh.ways > 1:
            total = self._mesh.model.sum(torch.cat([t.reshape(-1) for t in found])) * share
            for tensor, part in zip(found, total.split([t.numel() for t in found]), strict=True):
                tensor.copy_(part.view_as(tensor))
        return super().finish(loss) * share


def _differs_in_a_copy(parameter: Tensor) -> bool:
    """Whether the processes of a copy hold different parts of it."""
    if not shared(parameter):
        return False
    names = parameter.device_mesh.mesh_dim_names or ()
    placed = dict(zip(names, parameter.placements, strict=True))
    return MODEL in placed and not placed[MODEL].is_replicate()


class CutStep(Step):
    """A step whose gradients lie in parts."""

    def _clip(self, most: float) -> None:
        assert isinstance(self.exchange, Parts)
        clip(self.parameters, most, self.exchange.group)


@torch.no_grad()
def restored(model: nn.Module, like: nn.Module, group: Group) -> nn.Module:
    """The weights of a trained model in ``like``, the skeleton of what it was made of.

    Args:
        model: cut, or opened only.
        like: its parameters take no memory yet.
        group: all processes.
    """
    found = dict(model.named_parameters())
    empty = dict(like.named_parameters())
    with naming(group), _quiet():
        for name, parts in closed(empty, model):
            whole = [_full(found[part]) for part in parts]
            full = torch.cat(whole) if len(whole) > 1 else whole[0]
            filled = nn.Parameter(full, requires_grad=empty[name].requires_grad)
            torch.utils.swap_tensors(empty[name], filled)
        buffers = dict(model.named_buffers())
        for name, buffer in like.named_buffers():
            buffer.copy_(buffers[name])
            if group.size > 1:
                dist.broadcast(buffer, src=0)  # those that count differ by who had rows
    return like


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch logs of two messages where one would do: this happens once."""
    logger = logging.getLogger("torch.distributed.tensor._redistribute")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _full(parameter: Tensor) -> Tensor:
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter.detach()


@contextmanager
def explaining() -> Iterator[None]:
    """Say which option helps a model that reads a weight of a layer without calling it."""
    try:
        yield
    except RuntimeError as error:
        if "mixed torch.Tensor and DTensor" not in str(error):
            raise
        raise ValueError(
            "TensorParallel: found a model that reads the weights of a layer that is cut without "
            'calling it, allowed: layers that are called. Name that layer in plan as "whole".'
        ) from error


def share_cut(model: nn.Module) -> float:
    """The share of a model's parameters that is cut."""
    total = sum(p.numel() for p in model.parameters())
    return sum(p.numel() for p in model.parameters() if is_cut(p)) / total
