"""Updates summed over processes in fewer bytes: each a function of an update to (sum, own part).

Whatever of an update does not go through is kept by whoever compresses and added to its next one
(error feedback; Karimireddy et al., 2019, https://arxiv.org/abs/1901.09847). So the sum of all that
went through, and of what is still kept, is the sum of the true updates. Only collectives that every
back end has are used, on plain types: torch's own hooks for this fail or hang on gloo.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from drivetrain.train.together.group import Group

_Sums = tuple[list[Tensor], list[Tensor]]


class Compressor(Protocol):
    """Sums updates over a group, less what it does not let through.

    Attributes:
        exact_vectors: tensors of one dimension go through whole.
    """

    @property
    def exact_vectors(self) -> bool: ...

    def __call__(self, update: Sequence[Tensor], group: Group) -> _Sums:
        """Exchange one update.

        Args:
            update: this process's tensors; not changed.
            group: whose updates are summed. All call this with tensors of the same shapes.

        Returns:
            The sum of what went through of all updates, and this process's own part of it.
        """
        ...

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must keep, the same in every process."""
        ...

    def load(self, state: dict[str, Tensor]) -> None:
        """Go back to what :meth:`state` gave."""
        ...


class _Stateless:
    """Remembers nothing from one update to the next."""

    exact_vectors = False

    def state(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def load(self, state: dict[str, Tensor]) -> None:
        """Nothing to go back to."""


class Halves(_Stateless):
    """float16, scaled so that the sum of all cannot overflow."""

    def __call__(self, update: Sequence[Tensor], group: Group) -> _Sums:
        """Exchange one update."""
        flat = _flat(update)
        largest = torch.stack(group.gather(flat.abs().max())).max()
        # The sum of all stays below 2**15, and float16 ends at 65504.
        scale = largest.clamp(min=torch.finfo(flat.dtype).tiny) * (group.size / 2**15)
        sent = (flat / scale).half()
        own = sent.to(flat.dtype) * scale
        return _like(group.sum(sent).to(flat.dtype) * scale, update), _like(own, update)


class Steps(_Stateless):
    """int8, each tensor with a step of its own."""

    def __call__(self, update: Sequence[Tensor], group: Group) -> _Sums:
        """Exchange one update."""
        tiny = torch.finfo(update[0].dtype).tiny
        sizes = [part.numel() for part in update]
        steps = torch.stack([part.abs().max() for part in update])
        steps = (steps / 127).clamp(min=tiny)
        each = torch.repeat_interleave(steps, torch.tensor(sizes, device=steps.device))
        sent = (_flat(update) / each).round().to(torch.int8)
        own = sent.to(each.dtype) * each
        total = torch.zeros_like(own)
        for codes, theirs in zip(group.gather(sent), group.gather(steps), strict=True):
            widths = torch.tensor(sizes, device=theirs.device)
            total += codes.to(own.dtype) * torch.repeat_interleave(theirs, widths)
        return _like(total, update), _like(own, update)


class Largest(_Stateless):
    """The largest values of each tensor, and where they stand.

    Args:
        share: of the values; at least one of each tensor goes through.
    """

    def __init__(self, share: float) -> None:
        self.share = share

    def __call__(self, update: Sequence[Tensor], group: Group) -> _Sums:
        """Exchange one update."""
        flat = _flat(update)
        places: list[Tensor] = []
        start = 0
        for part in update:
            values = part.reshape(-1)
            count = min(max(1, round(self.share * len(values))), len(values))
            places.append(values.abs().topk(count, sorted=False).indices + start)
            start += len(values)
        at = torch.cat(places)
        total, own = torch.zeros_like(flat), torch.zeros_like(flat)
        own[at] = flat[at]
        # Places fit 32 bits, unless the model has more parameters than that.
        kind = torch.int32 if len(flat) < 2**31 else torch.int64
        pairs = zip(group.gather(at.to(kind)), group.gather(flat[at]), strict=True)
        for theirs, values in pairs:
            total.index_add_(0, theirs.long(), values)
        return _like(total, update), _like(own, update)


class LowRank:
    """Matrices by a power iteration that goes on from update to update.

    Of the left sides only the space that they span counts, so they travel as float16, in units of
    how large they were in the update before; the right sides are what goes through. Both lie as
    ``[rank, rows]`` and ``[rank, columns]``: BLAS takes a few rows times a matrix four to eight
    times as fast as a matrix times a few columns.

    Args:
        rank: rows of the thin matrices.
    """

    exact_vectors = True

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self._right: dict[int, Tensor] = {}
        self._unit: dict[int, Tensor] = {}

    def __call__(self, update: Sequence[Tensor], group: Group) -> _Sums:
        """Exchange one update."""
        matrices: dict[int, Tensor] = {}
        for number, part in enumerate(update):
            if part.dim() > 1:
                matrix = part.reshape(len(part), -1)
                if self._pays(matrix):
                    matrices[number] = matrix
        bases = self._bases(matrices, group)
        plain = [part for number, part in enumerate(update) if number not in matrices]
        rights = [base @ matrix for base, matrix in zip(bases, matrices.values(), strict=True)]
        sums = _like(group.sum(_flat([*rights, *plain])), [*rights, *plain])
        self._right = dict(zip(matrices, sums, strict=False))
        total, own = list(update), list(update)
        for number, part in zip(
            (n for n in range(len(update)) if n not in matrices), sums[len(rights) :], strict=True
        ):
            total[number] = part
        for number, base, right in zip(matrices, bases, rights, strict=True):
            shape = update[number].shape
            total[number] = (base.T @ self._right[number]).reshape(shape)
            own[number] = (base.T @ right).reshape(shape)
        return total, own

    def _bases(self, matrices: dict[int, Tensor], group: Group) -> list[Tensor]:
        """Orthonormal rows for each matrix: about the space where the columns of its sum are
        largest."""
        if not matrices:
            return []
        lefts = [self._of(number, matrix) @ matrix.T for number, matrix in matrices.items()]
        if self._unit.keys() == matrices.keys():
            most = torch.finfo(torch.float16).max / group.size
            units = [self._unit[number] for number in matrices]
            sent = [(left / u).clamp(-most, most) for left, u in zip(lefts, units, strict=True)]
            summed = group.sum(_flat(sent).half()).to(lefts[0].dtype)
            pairs = zip(_like(summed, lefts), units, strict=True)
            sums = [left * unit for left, unit in pairs]
        else:  # nobody knows yet how large they are
            sums = _like(group.sum(_flat(lefts)), lefts)
        tiny = torch.finfo(lefts[0].dtype).tiny
        self._unit = {
            number: left.abs().max().clamp(min=tiny)
            for number, left in zip(matrices, sums, strict=True)
        }
        return [
            torch.linalg.qr((left / self._unit[number]).T).Q.T
            for number, left in zip(matrices, sums, strict=True)
        ]

    def _pays(self, matrix: Tensor) -> bool:
        rows, columns = matrix.shape
        return self.rank * (rows + columns) < rows * columns

    def _of(self, number: int, matrix: Tensor) -> Tensor:
        """Where the iteration stands; it begins at the same random place in every process."""
        if number not in self._right:
            generator = torch.Generator().manual_seed(number)
            size = (self.rank, matrix.shape[1])
            self._right[number] = torch.randn(size, generator=generator).to(matrix)
        return self._right[number]

    def state(self) -> dict[str, Tensor]:
        """The right sides as ``[columns, rank]``, and how large the left ones were."""
        units = {f"unit/{number}": unit for number, unit in self._unit.items()}
        return {**{str(n): right.T.contiguous() for n, right in self._right.items()}, **units}

    def load(self, state: dict[str, Tensor]) -> None:
        """Go back to what :meth:`state` gave."""
        self._right, self._unit = {}, {}
        for name, tensor in state.items():
            if name.startswith("unit/"):
                self._unit[int(name.removeprefix("unit/"))] = tensor.clone()
            else:
                self._right[int(name)] = tensor.T.contiguous()


def _flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])


def _like(flat: Tensor, parts: Sequence[Tensor]) -> list[Tensor]:
    pieces = flat.split([part.numel() for part in parts])
    return [piece.view(part.shape) for piece, part in zip(pieces, parts, strict=True)]
