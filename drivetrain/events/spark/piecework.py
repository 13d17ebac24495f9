"""Steps that need no rows but a piece's own: whoever reads a piece takes it through all of them.

No row goes between Python and Spark, which only hands pieces out. What a piece becomes is what
becomes of it without Spark, by the very same code.
"""

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from drivetrain.events.duckdb import Limits, engine
from drivetrain.events.join import Join
from drivetrain.events.plan import Plan, compile_plan
from drivetrain.events.spark.held import few
from drivetrain.events.spark.pieces import PLACE, Piece, chunks
from drivetrain.events.spark.rows import local_directory, named
from drivetrain.events.stages import Tally
from drivetrain.events.table import Assign, Leaf, Table
from drivetrain.events.windows import WithWindows

LIMITS = Limits(memory="512MB", threads=1)
"""Of the steps in each task."""

Write = Callable[[Iterator[pa.Table]], Iterator[dict[str, Any]]]
"""Writes a task's rows somewhere, and says what lies where."""


def fits(table: Table) -> bool:
    """Whether each row becomes what it does without others; what is looked up in must be held."""
    for step in table.chain()[1]:
        if isinstance(step, WithWindows) or (isinstance(step, Join) and not few(step.other)):
            return False
    return True


@dataclass(frozen=True)
class Piecework:
    """A table of which every executor can do a piece.

    Attributes:
        leaf: where the rows come from.
        pieces: of it.
        table: the steps, on a :class:`Held` in the leaf's place, with what they look up in held.
        names: the columns that are wanted.
        name: of this work alone.
    """

    leaf: Leaf
    pieces: Sequence[Piece]
    table: Table
    names: Sequence[str]
    name: str = field(default_factory=lambda: uuid.uuid4().hex)

    def rows(self, numbers: Iterator[pa.Table]) -> Iterator[pa.Table]:
        """The rows of the pieces of these numbers, as a frame has them."""
        return self._rows(_plan(self), Tally("read"), numbers)

    def report(self, write: Write, numbers: Iterator[pa.Table]) -> Iterator[dict[str, Any]]:
        """Write the rows of pieces; what was written, and how many rows came to which step."""
        plan, read = _plan(self), Tally("read")
        for tally in plan.tallies:
            tally.rows = tally.kept = 0
        wrote = list(write(self._rows(plan, read, numbers)))
        tallies = [{"step": t.step, "rows": t.rows, "kept": t.kept} for t in plan.tallies]
        yield {"wrote": wrote, "read": read.rows, "tallies": tallies}

    def _rows(self, plan: Plan, read: Tally, numbers: Iterator[pa.Table]) -> Iterator[pa.Table]:
        for table in numbers:
            for number in table.column(0).to_pylist():
                plan.rows = number << PLACE
                for chunk in chunks(self.leaf, self.pieces[number], plan.reads, LIMITS.chunk):
                    read.rows += len(chunk)
                    first = plan.rows
                    found, places = plan.trace(chunk)
                    yield named(found, pa.array(first + places))


@dataclass
class _Ready:
    name: str
    plan: Plan
    held: ExitStack


_ready: _Ready | None = None


def _plan(work: Piecework) -> Plan:
    """The steps of a work, made ready once in each of Spark's Python processes."""
    global _ready
    if _ready is None or _ready.name != work.name:
        if _ready is not None:
            _ready.held.close()
            _ready = None
        with ExitStack() as stack:
            limits = replace(LIMITS, directory=local_directory())
            running = stack.enter_context(engine(limits))
            split = any(isinstance(step, Assign) for step in work.table.chain()[1])
            plan = compile_plan(work.table, work.names, running, limits, split=split)
            _ready = _Ready(work.name, plan, stack.pop_all())
    return _ready.plan
