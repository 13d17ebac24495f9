"""Rows of one request on their way through a run, and what may become of them instead."""

import math
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, Protocol

from drivetrain.core.batch import Array
from drivetrain.serve.execution.columns import Values
from drivetrain.serve.execution.models import Model
from drivetrain.serve.execution.packed import Packed
from drivetrain.serve.execution.runs import Run

_VALUE_BYTES = 96
"""The most that CPython takes for a value of a column, its place in a list included: the head of
a string that is not ASCII."""
_TEXT_BYTES = 4
"""For each byte of a string that holds one character beyond the basic plane; an array with a
shape takes no more than that for each byte of its JSON, and one for each of its binary data."""


class OverloadedError(Exception):
    """The queue is full; the text says of what."""


class ExpiredError(Exception):
    """The time that the client gave was over before the run began; nothing was computed."""


def held(columns: Sequence[Values], rows: int, size: int) -> int:
    """The bytes that so many rows take which came in ``size`` bytes, estimated from above."""
    if type(columns) is Packed:
        return len(columns.data) + size
    return _VALUE_BYTES * rows * len(columns) + _TEXT_BYTES * size


class Answering(Protocol):
    """Answers tasks at once: to go through them one by one takes longer than their answers."""

    def answer_together(
        self,
        tasks: Sequence[Any],
        outputs: Sequence[Array],
        fail: Callable[["Task", Exception], object],
    ) -> list["Task"] | None:
        """Answer tasks of one row each, unless somebody wants to know more of each.

        Args:
            tasks: its own.
            outputs: of all of them, ``[tasks, …]`` each.
            fail: called with each that could not be answered, and the reason.

        Returns:
            Those that were answered; None if none was even tried.
        """
        ...


class Task:
    """Rows of one request on their way through a run. Subclasses say what becomes of them.

    Args:
        model: the version that answers, to the end, whatever is loaded meanwhile.
        columns: the checked columns.
        rows: how many rows they have.
        deadline: ``time.monotonic()`` after which nobody wants the answer.
        received: ``time.monotonic()`` at which the request was whole; None is now.
        size: the bytes that it came in.

    Attributes:
        queued: ``time.monotonic()`` at which it began to wait for a run.
        route: answers several tasks of its own at once; None where each is answered alone.
        run: the run that it went through, once that is over; not set where several were answered
            at once.
        holds: the bytes that its columns take, estimated from above.
    """

    __slots__ = (
        *("columns", "deadline", "holds", "model", "queued", "received"),
        *("route", "rows", "run"),
    )

    def __init__(
        self,
        model: Model,
        columns: Sequence[Values],
        rows: int,
        deadline: float = math.inf,
        received: float | None = None,
        size: int = 0,
    ) -> None:
        self.model = model
        self.columns = columns
        self.rows = rows
        self.deadline = deadline
        self.received = self.queued = monotonic() if received is None else received
        self.route: Answering | None = None
        self.run: Run | None = None
        self.holds = held(columns, rows, size)

    def done(self, inputs: Sequence[Array], outputs: list[Array]) -> None:
        """Called on the loop's thread with the columns and predictions of these rows."""
        raise AssertionError("a task says what becomes of its answer")

    def failed(self, error: Exception) -> None:
        """Called on the loop's thread with the reason."""
        raise AssertionError("a task says what becomes of its failure")

    def cancel(self) -> None:
        """Nobody waits for the answer any more."""
        self.deadline = -math.inf
