"""The gradients of an update: those of rows go to their servers while all others are summed."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from drivetrain.core.batch import Batch
from drivetrain.core.seams import Examples, Order, Shard, Split
from drivetrain.train.loop.step import Exchange, Step
from drivetrain.train.rows.remote_tables import Coming, RemoteTables, to_bytes
from drivetrain.train.together.relayed import Relayed


class RowExchange:
    """The :class:`drivetrain.train.loop.step.Exchange` of rows, around that of all other weights.

    Args:
        tables: the rows.
        inner: sums the gradients of what is not on servers; None in a process by itself.
        lr: the learning rate of rows, from that of the other weights.
    """

    def __init__(
        self, tables: RemoteTables, inner: Exchange | None, lr: Callable[[float], float]
    ) -> None:
        self.tables = tables
        self.step: Step | None = None
        """Set by the strategy when there is one; it says the rate, the scale and the time."""
        self._inner = inner
        self._lr = lr

    @property
    def settled(self) -> bool:
        """Whether all have the same weights."""
        return self._inner is None or self._inner.settled

    def begin(self, loss: Tensor) -> None:
        """The last backward before an update comes."""
        if self._inner is not None:
            self._inner.begin(loss)

    def finish(self, loss: Tensor) -> Tensor:
        """Send the gradients of rows, and sum the others while the servers work."""
        assert self.step is not None
        self.tables.push(self._lr(self.step.rate(self.step.done)), self.step.scale)
        return loss if self._inner is None else self._inner.finish(loss)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The digest of the snapshot that this writes of the own shard; and what ``inner`` has."""
        assert self.step is not None
        digest = self.tables.save(f"{self.step.done:012d}")
        common, own = ({}, {}) if self._inner is None else self._inner.state()
        return common, {"rows": to_bytes(digest), **{f"inner/{n}": t for n, t in own.items()}}

    def load(self, common: Mapping[str, Tensor], own: Sequence[Mapping[str, Tensor]]) -> None:
        """Go back to what :meth:`state` gave, by rank."""
        self.tables.load([part["rows"].numpy().tobytes() for part in own])
        if self._inner is not None:
            prefix = "inner/"
            inner = [
                {n.removeprefix(prefix): t for n, t in part.items() if n.startswith(prefix)}
                for part in own
            ]
            self._inner.load(common, inner)

    def finished(self) -> None:
        """Write the rows of a training that has come to its end, and wait until all have.

        Raises:
            ConnectionError: another process has gone.
            OSError: they can't be written.
        """
        group = self.tables.group
        if group.rank == 0:
            self.tables.snapshots.forget_final()
        group.sum(torch.zeros(1))  # nobody writes before that
        self.tables.save("final")
        group.sum(torch.zeros(1))


class Foreseen(Relayed):
    """Examples whose batches are announced to the servers of rows before they are taken.

    Where rows may lack an update, those of the next batch travel while the present one computes.

    Args:
        examples: gives batches.
        tables: the rows.
        accumulate: batches an update.
    """

    def __init__(self, examples: Examples, tables: RemoteTables, accumulate: int) -> None:
        super().__init__(examples)
        self._examples = examples
        self._tables = tables
        self._accumulate = accumulate

    def batches(
        self,
        split: Split,
        shard: Shard = Shard(),
        *,
        size: int,
        order: Order | None = None,
        start: int = 0,
    ) -> Iterator[Batch]:
        """As those of the examples; of ``train`` one more is read than is taken."""
        found = self._examples.batches(split, shard, size=size, order=order, start=start)
        return self._announced(found) if split == "train" and order is not None else found

    def _announced(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        tables, first = self._tables, self._tables.pushed
        before: tuple[Batch, Coming | None] | None = None
        for number, batch in enumerate(batches):
            coming = tables.foresee(batch, first + number // self._accumulate)
            now = batch, coming
            if tables.staleness:
                before, now = now, before
            if now is not None:
                tables.present(now[1])
                yield now[0]
        if before is not None:
            tables.present(before[1])
            yield before[0]
