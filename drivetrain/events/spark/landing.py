"""What an executor does with records of a micro-batch: rows made, cleaned and laid down as files.

The files belong to no table until the driver commits all of a micro-batch at once, so whatever
becomes of an executor or of a task that is tried twice, a table has each row once or not at all.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import pyarrow as pa

from drivetrain.core.batch import Array
from drivetrain.core.need import need
from drivetrain.events.duckdb import Limits, engine
from drivetrain.events.follow.cleaning import Cleaning
from drivetrain.events.follow.dead import SCHEMA, Buried, letters
from drivetrain.events.follow.pace import SAMPLED
from drivetrain.events.lake.additions import Addition, lay
from drivetrain.events.lake.lake import Lake
from drivetrain.events.plan import compile_plan
from drivetrain.events.reading.arrow import arrow_schema
from drivetrain.events.spark.rows import local_directory
from drivetrain.events.stream import Stream
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
    """

    behind: Mapping[int, int] = field(default_factory=dict[int, int])
    messages: int = 0
    rows: int = 0
    dead: int = 0
    files: Sequence[Addition] = ()
    letters: Sequence[Addition] = ()
    times: Sequence[int] = ()
    problem: tuple[str, str] | None = None

    def to_json(self) -> str:
        """A text that :meth:`from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The report that became ``text``."""
        data = json.loads(text)
        data["behind"] = {int(number): at for number, at in data["behind"].items()}
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
        try:
            report = self._land(batches)
        except (ValueError, OSError, MemoryError) as error:
            report = Report(problem=(type(error).__name__, str(error)))
        yield pa.record_batch({"report": pa.array([report.to_json()], pa.string())})

    def _land(self, batches: Iterator[pa.RecordBatch]) -> Report:
        ready = _ready(self)
        tables, dead = [], []
        behind: dict[int, int] = {}
        times: list[int] = []
        count = 0
        for batch in batches:
            messages = self._new(batch)
            if not len(messages):
                continue
            table, refused = self._clean(ready, messages)
            tables.append(table)
            offsets, partitions = messages.offsets, messages.partitions
            for number in np.unique(partitions):
                behind[int(number)] = int(offsets[partitions == number].max()) + 1
            lies = ready.buried
            new = [i for i in refused if lies is None or lies.lacks(messages.raw[i.message])]
            if new:
                dead.append(letters(messages, new))
            count += len(messages)
            times += messages.times(max(len(messages) // SAMPLED, 1)).tolist()
        if not count:
            return Report()
        rows = pa.concat_tables(tables)
        buried = pa.concat_tables(dead) if dead else arrow_schema(SCHEMA).empty_table()
        return Report(
            behind=behind,
            messages=count,
            rows=len(rows),
            dead=len(buried),
            files=self.into.lay(rows),
            letters=() if self.dead is None else self.dead.lay(buried),
            times=times,
        )

    def _new(self, batch: pa.RecordBatch) -> "Records":
        """The records that are not in the table yet: all of them, or a batch was read again."""
        table = pa.Table.from_batches([batch])
        partitions, offsets = (table[name].to_numpy() for name in ("partition", "offset"))
        known = np.zeros(len(table), bool)
        for number, at in self.at.items():
            known |= (partitions == number) & (offsets < at)
        return Records.of(self.stream.topic.topic, table.filter(pa.array(~known)))

    def _clean(self, ready: "_Ready", messages: Messages) -> tuple[pa.Table, Sequence[Refused]]:
        found = ready.cleaning(ready.reading(messages))
        if found.refused and self.stream.dead is None:
            first = found.refused[0]
            raise misfit(self.stream.topic, messages.raw[first.message], first.reason)
        return found.table, found.refused


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
class _Ready:
    """A stream's steps, ready to run; what they join with is held, and what is buried once read.

    No message is read twice in a run of Spark's query, so what lies in the table of dead letters
    when it begins is all that matters.
    """

    run: str
    reading: Reading
    cleaning: Cleaning
    buried: Buried | None
    held: ExitStack


_held: _Ready | None = None


def _ready(landing: Landing) -> _Ready:
    """The steps of a run, made ready once for each process of an executor."""
    global _held
    if _held is None or _held.run != landing.run:
        if _held is not None:
            _held.held.close()
            _held = None
        with ExitStack() as stack:
            directory = local_directory() or landing.limits.directory
            limits = replace(landing.limits, directory=directory)
            running = stack.enter_context(engine(limits))
            stream = landing.stream
            plan = compile_plan(stream.events, landing.columns, running, limits, split=False)
            reading = Reading(stream.topic, plan.reads)
            cleaning = Cleaning(plan, aside=stream.dead is not None)
            _held = _Ready(landing.run, reading, cleaning, landing.buried, stack.pop_all())
    return _held
