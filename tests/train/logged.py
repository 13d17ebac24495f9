"""A made log of what users had, in memory: examples that are their own events."""

from collections.abc import Iterator, Mapping
from typing import Any, Self

from drivetrain.core.batch import Batch
from drivetrain.core.schema import Schema


class Logged:
    """Rows of made columns, in batches of so many. Whoever extends it says the rest."""

    targets = Schema(())
    columns: Mapping[str, Any]

    @property
    def events(self) -> Self:
        return self

    def rows(self, split: Any) -> int:
        return len(self.columns["item"])

    def pieces(self, size: int) -> Iterator[Batch]:
        for first in range(0, self.rows("train"), size):
            part = slice(first, first + size)
            yield Batch({name: column[part] for name, column in self.columns.items()})
