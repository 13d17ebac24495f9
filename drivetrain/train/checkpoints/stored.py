"""Tensors that lie on disk in pieces, of which a process reads what it holds."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from drivetrain.train.checkpoints.pieces import of_pieces, piece, shared

WHERE = "pieces"
"""In a part's metadata: the whole shape of each of its tensors, and where the piece lies in it."""


@dataclass(frozen=True)
class _Box:
    """A piece on disk: an open part, and where in the whole it begins."""

    part: Any
    offsets: tuple[int, ...]


@dataclass(frozen=True)
class StoredPieces:
    """A tensor in the parts of a checkpoint.

    Attributes:
        name: of the tensor, in each part that has a piece of it.
        shape: of the whole.
        boxes: its pieces.
    """

    name: str
    shape: tuple[int, ...]
    boxes: list[_Box] = field(default_factory=list[_Box])

    def read(self, like: Tensor | None) -> Tensor:
        """What this process holds, laid out as ``like``; the whole if that is None or plain.

        Only the overlapping slices are read.
        """
        if like is None or not shared(like) or tuple(like.shape) != self.shape:
            return self.box((0,) * len(self.shape), self.shape)
        held = piece(like)
        return of_pieces(self.box(held.offsets, tuple(held.tensor.shape)), like)

    def box(self, begin: Sequence[int], lengths: Sequence[int]) -> Tensor:
        """The box that begins at ``begin`` and has so many ``lengths``, out of all pieces."""
        if not self.shape:
            return self.boxes[0].part.get_tensor(self.name)
        found: Tensor | None = None
        filled = 0
        for box in self.boxes:
            on_disk = box.part.get_slice(self.name)
            there, here = _overlap(begin, lengths, box.offsets, on_disk.get_shape())
            part: Tensor = on_disk[there]
            if found is None:
                found = torch.empty(tuple(lengths), dtype=part.dtype)
            found[here] = part
            filled += part.numel()
        assert found is not None
        assert filled == found.numel(), f"{self.name} has pieces left out"
        return found


def _overlap(
    begin: Sequence[int], lengths: Sequence[int], offsets: Sequence[int], sizes: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """What a box on disk and one in memory have in common, as slices of either."""
    there: list[slice] = []
    here: list[slice] = []
    for mine, length, theirs, size in zip(begin, lengths, offsets, sizes, strict=True):
        first = max(mine, theirs)
        last = max(first, min(mine + length, theirs + size))
        if first == last:  # where the one ends the other may not have begun
            there.append(slice(0, 0))
            here.append(slice(0, 0))
        else:
            there.append(slice(first - theirs, last - theirs))
            here.append(slice(first - mine, last - mine))
    return tuple(there), tuple(here)


def stored(parts: Sequence[Path]) -> Mapping[str, StoredPieces]:
    """The tensors of a checkpoint by name; files stay open as long as one of these is kept."""
    found: dict[str, StoredPieces] = {}
    for path in parts:
        part = safe_open(path, framework="pt")
        for name, where in json.loads(part.metadata()[WHERE]).items():
            shape = tuple(where["shape"])
            tensor = found.setdefault(name, StoredPieces(name, shape))
            tensor.boxes.append(_Box(part, tuple(where["offsets"])))
    return found
