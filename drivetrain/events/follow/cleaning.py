"""Rows of messages through a plan's steps, and the messages with values that a step fails on."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from drivetrain.core.batch import Array
from drivetrain.events.plan import Plan
from drivetrain.events.topic.messages import Refused, Rows

Before = Callable[[], bytes]
"""Gives the state that the plan had before the rows."""


@dataclass(frozen=True)
class Cleaned:
    """What rows became.

    Attributes:
        table: the rows after the last step.
        origin: int64 ``[rows]``: the message that each came from.
        refused: the messages that did not fit, whether by themselves or in a step; in order.
    """

    table: pa.Table
    origin: Array
    refused: tuple[Refused, ...] = ()


class Cleaning:
    """Runs a plan.

    Args:
        plan: of the stream.
        aside: whether a message that a step fails on is laid aside; else it is an error.
    """

    def __init__(self, plan: Plan, *, aside: bool) -> None:
        self._plan, self._aside = plan, aside

    def __call__(self, rows: Rows, before: Before | None = None) -> Cleaned:
        """Run the rows of a batch.

        Args:
            rows: as they were read.
            before: of a plan that has a state, needed where a step fails: it has then seen rows
                that it must not have seen.

        Raises:
            ValueError: a step fails on a value, and messages are not laid aside.
        """
        try:
            table, origin = self._plan.trace(rows.table)
            return Cleaned(table, rows.origin[origin], rows.refused)
        except ValueError:
            if not self._aside:
                raise
        state = before() if self._plan.stateful and before is not None else None
        unfit = self._sift(rows, state)
        fits = np.flatnonzero(~np.isin(rows.origin, list(unfit)))
        table, origin = self._try(rows.table.take(pa.array(fits)), state)
        refused = [*rows.refused, *(Refused(message, why) for message, why in unfit.items())]
        refused = tuple(sorted(refused, key=lambda item: item.message))
        return Cleaned(table, rows.origin[fits][origin], refused)

    def _sift(self, rows: Rows, state: bytes | None) -> dict[int, str]:
        """The messages whose rows a step fails on, found by halving."""
        unfit: dict[int, str] = {}
        pending = [np.arange(len(rows.table))]
        while pending:
            part = pending.pop()
            if not len(part):
                continue
            try:
                self._try(rows.table.take(pa.array(part)), state)
            except ValueError as error:
                if len(part) == 1:
                    unfit.setdefault(int(rows.origin[part[0]]), str(error))
                else:
                    pending += np.array_split(part, 2)
        return unfit

    def _try(self, table: pa.Table, state: bytes | None) -> tuple[pa.Table, Array]:
        if state is not None:
            self._plan.restore(state)
        return self._plan.trace(table)
