"""What an executor does with records of a micro-batch: rows made, cleaned and laid down as files.

The files belong to no table until the driver commits all of a micro-batch at once, so whatever
becomes of an executor or of a task that is tried twice, a table has each row once or not at all.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import pyarrow as pa

from drivetrain.core.batch import Array
from drivetrain.core.need import need
from drivetrain.events.duckdb import Engine, Limits, engine
from drivetrain.events.follow.cleaning import Cleaned, Cleaning
from drivetrain.events.follow.dead import Buried, letters
from drivetrain.events.follow.pace import SAMPLED
from drivetrain.events.lake.additions import Addition, lay
from drivetrain.events.lake.lake import Lake
from drivetrain.events.plan import Plan, compile_plan
from drivetrain.events.spark.rows import local_directory
from drivetrain.events.stream import Stream
from drivetrain.events.table import Table
from drivetrain.events.topic.bounded import misfit
from drivetrain.events.topic.messages import Messages, Reading, Refused

pc = need("pyarrow.compute", "data")

REPORT = "report STRING"
"""What comes back of each part of a micro-batch: one text of JSON."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What became of the records of one task.

    Attributes:
        behind: for each partition among them the offset behind its last one.
        messages: how many.
        rows: that they became.
        dead: messages that did not fit and were not in the table of dead letters.
        files: of the rows.
        letters: of the dead letters.
        times: what the clock of some messages said, in microseconds; -1 where unknown.
        problem: what ended it, as the name of the error and its text.
        laid: where its rows lie that wait for their windows; none where there is none.
        refused: of those the messages that a step behind windows fails on, and why.
    """

    behind: Mapping[int, int] = field(default_factory=dict[int, int])
    messages: int = 0
    rows: int = 0
    dead: int = 0
    files: Sequence[Addition] = ()
    letters: Sequence[Addition] = ()
    times: Sequence[int] = ()
    problem: tuple[str, str] | None = None
    laid: Mapping[str, str] = field(default_factory=dict[str, str])
    refused: Mapping[int, str] = field(default_factory=dict[int, str])

    def to_json(self) -> str:
        """A text that :meth:`from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The report that became ``text``."""
        data = json.loads(text)
        for name in ("behind", "refused"):
            data[name] = {int(number): value for number, value in data[name].items()}
        for name in ("files", "letters"):
            data[name] = tuple(map(Addition.from_json, data[name]))
        return cls(**data)


@dataclass(frozen=True, kw_only=True)
class Target:
    """A table that files are laid down for.

    Attributes:
        path: its path or URL.
        columns: it has.
        partition_by: those of them that it is partitioned by.
    """

    path: str
    columns: pa.Schema
    partition_by: Sequence[str]

    @classmethod
    def of(cls, lake: Lake) -> Self:
        """A table as it was last seen."""
        by = lake.table.metadata().partition_columns
        return cls(path=lake.path, columns=lake.due, partition_by=by)

    def lay(self, rows: pa.Table) -> list[Addition]:
        """Write rows as files that are not in the table yet."""
        return lay(rows, self.path, self.columns, self.partition_by)


@dataclass(frozen=True, kw_only=True)
class Landing:
    """What the driver tells executors of a stream.

    Attributes:
        run: names this run of the stream: what executors hold of it they hold no longer.
        stream: with the columns of its topic told.
        columns: of its rows.
        into: of its table.
        dead: of its table of dead letters, if it has one.
        limits: of the engine that runs its steps.
        at: where each partition stands in the table; what lies before is there.
        buried: what lies in the table of dead letters, if it has one.
    """

    run: str
    stream: Stream
    columns: Sequence[str]
    into: Target
    dead: Target | None
    limits: Limits
    at: Mapping[int, int] = field(default_factory=dict[int, int])
    buried: Buried | None = None

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The report on a task's records, as a row of :data:`REPORT`."""
        report = told(lambda: self._land(batches))
        yield pa.record_batch({"report": pa.array([report], pa.string())})

    def _land(self, batches: Iterator[pa.RecordBatch]) -> Report:
        tables: list[pa.Table] = []
        report = self.take(batches, lambda messages, found: tables.append(found.table))
        if not report.messages:
            return report
        rows = pa.concat_tables(tables)
        return replace(report, rows=len(rows), files=self.into.lay(rows))

    def take(
        self,
        batches: Iterator[pa.RecordBatch],
        keep: Callable[["Records", Cleaned], None],
    ) -> Report:
        """Clean a task's records and lay down those that do not fit.

        Args:
            batches: the records.
            keep: is given the messages of each batch that are new, and what they became.

        Returns:
            The report, as yet without the rows.
        """
        ready = self.ready
        reading = ready.reading()
        dead: list[pa.Table] = []
        behind: dict[int, int] = {}
        times: list[int] = []
        count = 0
        for batch in batches:
            messages = self._new(batch)
            if not len(messages):
                continue
            found = self.fitting(ready.cleaning(0)(reading(messages)), messages)
            keep(messages, found)
            offsets, partitions = messages.offsets, messages.partitions
            for number in np.unique(partitions):
                behind[int(number)] = int(offsets[partitions == number].max()) + 1
            dead += self.letters(messages, found.refused)
            count += len(messages)
            times += messages.times(max(len(messages) // SAMPLED, 1)).tolist()
        laid = self.bury(dead)
        rows = sum(file.rows for file in laid)
        return Report(behind=behind, messages=count, dead=rows, letters=laid, times=times)

    def letters(self, messages: Messages, refused: Sequence[Refused]) -> list[pa.Table]:
        """The rows of those refused messages that are not in the table of dead letters yet."""
        lies = self.ready.buried
        new = [i for i in refused if lies is None or lies.lacks(messages.raw[i.message])]
        return [letters(messages, new)] if new else []

    def bury(self, found: Sequence[pa.Table]) -> Sequence[Addition]:
        """Lay dead letters down."""
        if self.dead is None or not found:
            return ()
        return self.dead.lay(pa.concat_tables(found))

    def fitting(self, found: Cleaned, messages: Messages) -> Cleaned:
        """What messages became.

        Raises:
            ValueError: one is refused, and there is no table for such.
        """
        if found.refused and self.stream.dead is None:
            first = found.refused[0]
            raise misfit(self.stream.topic, messages.raw[first.message], first.reason)
        return found

    @property
    def ready(self) -> "Ready":
        """The steps of the run, made ready once for each process of an executor."""
        global _held
        if _held is None or _held.landing.run != self.run:
            if _held is not None:
                _held.held.close()
                _held = None
            _held = Ready.of(self)
        return _held

    @property
    def parts(self) -> Sequence[tuple[Table, Sequence[str]]]:
        """Steps that need no rows but their own, and the columns that are wanted of each."""
        return ((self.stream.events, self.columns),)

    def _new(self, batch: pa.RecordBatch) -> "Records":
        """The records that are not in the table yet: all of them, or a batch was read again."""
        table = pa.Table.from_batches([batch])
        partitions, offsets = (table[name].to_numpy() for name in ("partition", "offset"))
        known = np.zeros(len(table), bool)
        for number, at in self.at.items():
            known |= (partitions == number) & (offsets < at)
        return Records.of(self.stream.topic.topic, table.filter(pa.array(~known)))


# -- records as messages ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    """One message, as the client of Kafka would give it."""

    _topic: str
    _columns: Mapping[str, Any]

    def topic(self) -> str:
        """The topic's name."""
        return self._topic

    def partition(self) -> int:
        """The number of its partition."""
        return self._columns["partition"]

    def offset(self) -> int:
        """Its offset there."""
        return self._columns["offset"]

    def timestamp(self) -> tuple[int, int]:
        """Whether it has one (not 0), and its time in milliseconds."""
        time = self._columns["timestamp"]
        return (0, 0) if time < 0 else (1, time // 1000)

    def key(self) -> bytes | None:
        """Its key."""
        return self._columns["key"]

    def value(self) -> bytes | None:
        """Its value; None is a tombstone."""
        return self._columns["value"]


@dataclass(frozen=True)
class _Raw(Sequence[Record]):
    """Records as objects, each made when it is asked for."""

    topic: str
    table: pa.Table

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return [self[number] for number in range(*at.indices(len(self)))]
        columns = {n: self.table[n][at].as_py() for n in self.table.column_names}
        return Record(self.topic, columns)


@dataclass(frozen=True)
class Records(Messages):
    """Messages that lie in columns."""

    table: pa.Table = field(default_factory=lambda: pa.table({}))

    @classmethod
    def of(cls, topic: str, table: pa.Table) -> Self:
        """Records of a topic as its source gives them."""
        return cls(raw=_Raw(topic, table), values=table["value"].to_pylist(), table=table)

    @cached_property
    def partitions(self) -> Array:
        """int64 ``[messages]``."""
        return self.table["partition"].to_numpy().astype(np.int64)

    @cached_property
    def offsets(self) -> Array:
        """int64 ``[messages]``."""
        return self.table["offset"].to_numpy()

    def times(self, step: int = 1) -> Array:
        """What the clock of every ``step``-th message said, in microseconds; -1 where unknown."""
        return self.table["timestamp"].to_numpy()[::step]


# -- what an executor holds ------------------------------------------------------------------------


@dataclass(frozen=True)
class Ready:
    """A stream's steps, ready to run; what they join with is held, and what is buried once read.

    No message is read twice in a run of Spark's query, so what lies in the table of dead letters
    when it begins is all that matters.

    Attributes:
        landing: of the run.
        engine: runs the steps.
        limits: of it.
        buried: what lies in the table of dead letters, if there is one.
        held: frees it all.
    """

    landing: Landing
    engine: Engine
    limits: Limits
    buried: Buried | None
    held: ExitStack
    _plans: dict[int, Plan] = field(default_factory=dict[int, Plan])

    @classmethod
    def of(cls, landing: Landing) -> Self:
        """For a run."""
        with ExitStack() as stack:
            directory = local_directory() or landing.limits.directory
            limits = replace(landing.limits, directory=directory)
            running = stack.enter_context(engine(limits))
            return cls(landing, running, limits, landing.buried, stack.pop_all())

    def plan(self, part: int) -> Plan:
        """One of the parts of the steps."""
        if part not in self._plans:
            table, names = self.landing.parts[part]
            made = compile_plan(table, names, self.engine, self.limits, split=False)
            self._plans[part] = made
        return self._plans[part]

    def cleaning(self, part: int) -> Cleaning:
        """What runs one of the parts."""
        return Cleaning(self.plan(part), aside=self.landing.stream.dead is not None)

    def reading(self) -> Reading:
        """What makes rows of messages."""
        return Reading(self.landing.stream.topic, self.plan(0).reads)


_held: Ready | None = None


def told(report: Callable[[], Report]) -> str:
    """A report as text, or what ended it."""
    try:
        return report().to_json()
    except (ValueError, OSError, MemoryError) as error:
        return Report(problem=(type(error).__name__, str(error))).to_json()
