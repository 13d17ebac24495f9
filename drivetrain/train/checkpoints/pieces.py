"""What one process holds of a tensor that several share, and where in the whole it lies."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeGuard

import torch
from torch import Tensor

from drivetrain.train.together.group import Group

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


class Piece(NamedTuple):
    """A box of a larger tensor.

    Attributes:
        tensor: what is in it; of all dimensions of the whole.
        shape: of the whole.
        offsets: where the box begins, for each dimension.
    """

    tensor: Tensor
    shape: tuple[int, ...]
    offsets: tuple[int, ...]


class Stored(Protocol):
    """A tensor on disk, of which a process reads what it holds."""

    def read(self, like: Tensor | None) -> Tensor:
        """What this process holds, laid out as ``like``; the whole if that is None or plain."""
        ...


def shared(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Whether ``tensor`` is a DTensor; to import that type would take most of a second."""
    return hasattr(tensor, "device_mesh")


def is_cut(parameter: Tensor) -> bool:
    """Whether this process holds a part of it and another the rest."""
    return shared(parameter) and not all(p.is_replicate() for p in parameter.placements)


@torch.no_grad()
def piece(tensor: Tensor) -> Piece:
    """What this process holds of ``tensor``: all of one that is not shared."""
    shape = tuple(tensor.shape)
    if not shared(tensor):
        return Piece(tensor.detach(), shape, (0,) * len(shape))
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, offsets = compute_local_shape_and_global_offset(shape, tensor.device_mesh, tensor.placements)
    return Piece(tensor.to_local().detach(), shape, offsets)


def alike(tensors: Iterable[Tensor]) -> list[list[int]]:
    """The places of tensors that one operation may take together: those that lie alike."""
    found: dict[object, list[int]] = {}
    for place, tensor in enumerate(tensors):
        found.setdefault(tensor.device_mesh if shared(tensor) else None, []).append(place)
    return list(found.values())


def writes(tensor: Tensor, rank: int) -> bool:
    """Whether this is the process that writes its piece, of those that hold an equal one."""
    if not shared(tensor):
        return rank == 0
    mesh = tensor.device_mesh
    if int(mesh.mesh.min()):  # another mesh, with the first process in it, holds the same
        return False
    place = mesh.get_coordinate()
    assert place is not None, "every process is part of the mesh"
    copied = [at for at, p in zip(place, tensor.placements, strict=True) if p.is_replicate()]
    return not any(copied)


def laid(found: Tensor | Stored, like: Tensor | None) -> Tensor:
    """A tensor of a checkpoint, laid out as ``like`` if it was stored in pieces."""
    return found if isinstance(found, Tensor) else found.read(like)


def of_pieces(local: Tensor, like: "DTensor") -> "DTensor":
    """The shared tensor of which this process holds ``local``, laid out as ``like``."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        local.to(like.device),
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


@torch.no_grad()
def cut(whole: Tensor, like: Tensor) -> Tensor:
    """What this process holds of ``whole``, laid out as ``like``; all of it if that is not shared.

    A piece is copied, so that the whole can be let go.
    """
    if not shared(like):
        return whole
    held = piece(like)
    ends = (first + length for first, length in zip(held.offsets, held.tensor.shape, strict=True))
    box = tuple(slice(first, end) for first, end in zip(held.offsets, ends, strict=True))
    return of_pieces(whole[box].clone(), like)


@torch.no_grad()
def clip(parameters: Iterable[Tensor], most: float, group: Group) -> None:
    """Scale gradients so that their norm over all pieces of all processes is at most ``most``."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    pieces = [piece(gradient).tensor for gradient in gradients]
    shares = [1 / _copies(gradient, group.size) for gradient in gradients]
    norms = torch._foreach_norm(pieces)  # pyright: ignore[reportPrivateImportUsage]
    squares = torch.stack(list(norms)).square() * torch.tensor(shares, device=norms[0].device)
    total = group.sum(squares.sum()).sqrt()
    scale = (most / (total + 1e-6)).clamp(max=1.0)  # as torch's own clip_grad_norm_
    torch._foreach_mul_(pieces, scale)  # pyright: ignore[reportPrivateImportUsage]


def _copies(tensor: Tensor, size: int) -> int:
    """How many of ``size`` processes hold the same piece."""
    if not shared(tensor):
        return size
    mesh = tensor.device_mesh
    copies = size // mesh.size()
    for dimension, placement in enumerate(tensor.placements):
        if placement.is_replicate():
            copies *= mesh.size(dimension)
    return copies
