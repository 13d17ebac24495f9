"""What a learner is told: who a user and what an item is, and the events of a whole table."""

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np

from drivetrain.core.batch import Batch
from drivetrain.core.schema import MISSING_INT, Dtype
from drivetrain.core.tracks import Observed

Key = str | int


class Observes(Protocol):
    """Such as :class:`drivetrain.core.learner.Learner`."""

    columns: tuple[str, ...]

    def observe(self, batch: Batch) -> Observed:
        """Learn from events in the order of their rows."""
        ...


def replay(learner: Observes, batches: Iterable[Batch], time: str) -> Observed:
    """Tell a learner the events of a table in the order of their times; of equal times, of rows.

    What it then gives is what a server gives that observed the same events in this order.

    Args:
        learner: as training left it.
        batches: have the learner's columns and ``time``; those columns are held at once.
        time: the column of times, int64; where one is missing the event comes first.

    Raises:
        ValueError: a batch lacks a column.
        TypeError: a user or an item is of another type.
    """
    whole = Batch.concat([batch.select((*learner.columns, time)) for batch in batches])
    return learner.observe(whole.take(np.argsort(whole[time], kind="stable")))


def key_of(value: Any, dtype: Dtype, column: str) -> Key | None:
    """A user or an item; None: it is missing.

    Raises:
        TypeError: it is of another type.
    """
    if value is None or value != value:
        return None
    if dtype == "string" and isinstance(value, str):
        return value or None
    if dtype == "int64" and type(value) in (int, np.int64):
        number = int(value)
        if -(2**63) <= number < 2**63:
            return None if number == MISSING_INT else number
    raise TypeError(f"column {column!r}: found {value!r}, allowed: {dtype}.")
