"""What a lake knows of a writer, and of an append of which nobody knows whether it landed."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from drivetrain.events.lake.additions import Addition


@dataclass
class Held:
    """What a lake knows of one writer: how often it has appended, and where its sources stand."""

    turn: int | None
    positions: dict[str, int]


@dataclass(frozen=True)
class Pending:
    """An append of which nobody knows whether it landed."""

    mark: str
    since: int
    writer: str
    turn: int
    positions: dict[str, int]
    rows: pa.Table | Sequence[Addition] = field(repr=False, compare=False)

    def again(
        self, rows: pa.Table | Sequence[Addition], writer: str, positions: dict[str, int]
    ) -> bool:
        """Whether an append is this one once more: of the same positions, else of the same rows."""
        if (writer, positions) != (self.writer, self.positions):
            return False
        return bool(positions) or rows is self.rows or rows == self.rows
