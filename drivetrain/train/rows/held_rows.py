"""The rows of one table that one process holds: they come to exist when they are first seen."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drivetrain.core.errors import wrong
from drivetrain.train.rows.optimizers import RowOptimizer
from drivetrain.train.rows.spread import Ids, Rows, Spread, Start

_FIRST_CAPACITY = 1024


@dataclass(frozen=True)
class TableShape:
    """A table as all processes know it.

    Attributes:
        name: the module that looks up in it.
        rows: ids go from 0 to below it.
        dim: the width of a row.
        start: what rows begin with.
    """

    name: str
    rows: int
    dim: int
    start: Start


class HeldRows:
    """One shard of a table, of which only the rows that were seen take memory.

    An id costs 4 bytes whether it was seen or not, a row that was seen ``4 * dim`` and what the
    optimizer remembers. It is for one thread at a time.

    Args:
        shape: of the whole table.
        spread: which rows are this shard's.
        shard: its number.
        optimizer: updates them.
        seed: of their first values.
    """

    def __init__(
        self, shape: TableShape, spread: Spread, shard: int, optimizer: RowOptimizer, seed: int
    ) -> None:
        self.shape = shape
        self.spread = spread
        self.shard = shard
        self.count = 0
        self.steps = 0
        self._optimizer = optimizer
        self._seed = seed
        widths = optimizer.widths(shape.dim)
        # The row 0 stands for all that were never seen, so the place of one that was is not 0.
        self._row_at: NDArray[np.int32] = np.zeros(spread.held(shard), np.int32)
        self._places: Ids = np.zeros(_FIRST_CAPACITY, np.int64)
        self._values: Rows = np.zeros((_FIRST_CAPACITY, shape.dim), np.float32)
        self._values[0] = shape.start.mean
        self._state: dict[str, Rows] = {
            name: np.zeros((_FIRST_CAPACITY, width), np.float32) for name, width in widths.items()
        }

    def peek(self, places: Ids) -> Rows:
        """The values of rows; of one never seen, what rows begin with in the mean."""
        self._check(places)
        return self._values.take(self._row_at.take(places), 0)

    def read(self, places: Ids) -> Rows:
        """The values of rows; one never seen comes to exist."""
        return self._values.take(self._rows(places), 0)

    def update(self, places: Ids, gradients: Rows, lr: float) -> None:
        """Take a step along gradients ``[places, dim]``; each place comes once."""
        self.steps += 1
        if len(places):
            rows = self._rows(places)
            self._optimizer.update(self._values, self._state, rows, gradients, lr, self.steps)

    def put(self, ids: Ids, values: Rows, state: Mapping[str, Rows]) -> None:
        """Hold those of some rows that are this shard's.

        Args:
            ids: each once.
            values: ``[ids, dim]``.
            state: what the optimizer remembers of them; what is absent begins as 0.
        """
        owners, places = self.spread.places(ids)
        mine = np.flatnonzero(owners == self.shard)
        rows = self._rows(places[mine], draw=False)
        self._values[rows] = values[mine]
        for name, kept in self._state.items():
            kept[rows] = state[name][mine] if name in state else 0

    def kept(self) -> dict[str, Ids | Rows]:
        """Ids, values and what the optimizer remembers of the rows that exist: views."""
        rows = slice(1, self.count + 1)
        found: dict[str, Ids | Rows] = {
            "ids": self.spread.ids(self.shard, self._places[rows]),
            "values": self._values[rows],
        }
        return found | {f"state/{name}": kept[rows] for name, kept in self._state.items()}

    def _rows(self, places: Ids, *, draw: bool = True) -> Ids:
        """Where the values of some places lie; those of new ones are made."""
        self._check(places)
        rows = self._row_at.take(places)
        if not rows.all():
            new = places[rows == 0]
            first, last = self.count + 1, self.count + 1 + len(new)
            self._grow(last)
            self._row_at[new] = np.arange(first, last, dtype=np.int32)
            self._places[first:last] = new
            if draw:
                ids = self.spread.ids(self.shard, new)
                self._values[first:last] = self.shape.start.draw(self._seed, ids, self.shape.dim)
            self.count += len(new)
            rows = self._row_at.take(places)
        return rows.astype(np.int64)

    def _check(self, places: Ids) -> None:
        # One look at all: as numbers without a sign, those below 0 are beyond all others.
        if len(places) and places.view(np.uint64).max() >= len(self._row_at):
            raise wrong(
                f"ids of table {self.shape.name!r}",
                (int(places.min()), int(places.max())),
                f"places below {len(self._row_at)} of shard {self.shard}",
            )

    def _grow(self, rows: int) -> None:
        capacity = len(self._places)
        if rows <= capacity:
            return
        # Half more at a time: memory that nothing has touched is not there yet, and none is copied.
        capacity = max(rows, capacity + capacity // 2)
        for array in (self._places, self._values, *self._state.values()):
            array.resize((capacity, *array.shape[1:]), refcheck=False)


def summed(places: Ids, gradients: Rows) -> tuple[Ids, Rows]:
    """Each place once with the sum of its gradients, added in the order in which they came."""
    order = places.argsort(kind="stable")
    ordered = places[order]
    first = np.flatnonzero(np.diff(ordered, prepend=-1))
    if len(first) == len(places):
        return places, gradients
    return ordered[first], np.add.reduceat(gradients[order], first, axis=0)
