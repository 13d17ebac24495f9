"""What a chunk of rows goes through: a query, a join by key or as of a time, the first of a key."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import pyarrow as pa

from drivetrain.core.batch import Array
from drivetrain.core.errors import wrong
from drivetrain.core.need import need
from drivetrain.events.asof import LastBefore
from drivetrain.events.by_key import ByKey
from drivetrain.events.duckdb import CHUNK, ROW, Engine
from drivetrain.events.split import SPLIT
from drivetrain.events.table import Step

pc = need("pyarrow.compute", "data")


@dataclass
class Tally:
    """How many rows came to a step that may leave rows out, and how many it kept."""

    step: str
    rows: int = 0
    kept: int = 0

    def count(self, before: pa.Table, after: pa.Table) -> pa.Table:
        """Count what a step did with a chunk, and pass the result on."""
        self.rows += len(before)
        self.kept += len(after)
        return after


class Stage(Protocol):
    """What a chunk goes through."""

    def __call__(self, chunk: pa.Table) -> pa.Table: ...


@runtime_checkable
class Whole(Protocol):
    """A stage that gives other rows where it may see all of them first."""

    def over(self, chunks: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """What all chunks become, each at its place."""
        ...


@dataclass(frozen=True, eq=False)
class Staged(Step):
    """A step that brings what does it."""

    def stage(self, tally: Tally) -> Stage:
        """What does it, and counts the rows that it leaves out."""
        raise AssertionError(type(self))


@dataclass(frozen=True)
class Query:
    """Steps that are one SQL query over the chunk: the rows that they keep, the columns they make.

    Attributes:
        engine: runs it.
        sql: gives :data:`ROW` of the rows that are kept, and the columns that are made.
        passed: the chunk's columns that go on as they are, by their names behind the steps. They
            need not go through the engine and back.
        label: the steps, for errors.
        tally: counts what the steps leave out.
    """

    engine: Engine
    sql: str
    passed: Mapping[str, str]
    label: str
    tally: Tally | None = None

    def __call__(self, chunk: pa.Table) -> pa.Table:
        made = self.engine.run(self.sql, chunk, self.label)
        if self.tally:
            self.tally.count(chunk, made)
        kept = chunk if len(made) == len(chunk) else chunk.filter(_among(chunk, made))
        columns = {name: kept[old] for name, old in self.passed.items()}
        return pa.table({**columns, **{name: made[name] for name in made.column_names}})


def _among(chunk: pa.Table, kept: pa.Table) -> pa.Array:
    """Which rows of a chunk are among those that were kept of it."""
    rows = chunk[ROW].to_numpy()
    first = rows[0]
    found = np.zeros(rows[-1] - first + 1, dtype=bool)
    found[kept[ROW].to_numpy() - first] = True
    return pa.array(found[rows - first])


@dataclass(frozen=True)
class Match:
    """Adds the columns of the one row of another table that has the same key.

    Attributes:
        rows: finds the number of a key.
        matched: the columns that are added; row ``n`` is that of key number ``n``.
        by: the key columns of the chunk.
        keep: its columns that go on.
        tally: counts the rows that have no match, which are left out then.
    """

    rows: ByKey
    matched: pa.Table
    by: Sequence[str]
    keep: Sequence[str]
    tally: Tally | None = None

    def __call__(self, chunk: pa.Table) -> pa.Table:
        numbers = self.rows.find([one(chunk[name]) for name in self.by])
        if self.tally:
            known = numbers >= 0
            chunk = self.tally.count(chunk, chunk.filter(pa.array(known)))
            numbers = numbers[known]
        return _beside(chunk, self.keep, self.matched, numbers)


@dataclass(frozen=True)
class AsOf:
    """Adds what was last observed before each row's time."""

    search: LastBefore
    observed: pa.Table
    by: Sequence[str]
    time: str
    keep: Sequence[str]

    def __call__(self, chunk: pa.Table) -> pa.Table:
        keys = [one(chunk[name]) for name in self.by]
        rows = self.search.find(keys, one(chunk[self.time]))
        return _beside(chunk, self.keep, self.observed, rows)


def _beside(chunk: pa.Table, keep: Sequence[str], other: pa.Table, rows: Array) -> pa.Table:
    """Columns of a chunk, and for each row one of another table; none where that is -1."""
    found = other.take(pa.array(rows, mask=rows < 0))
    columns = {name: chunk[name] for name in (*keep, ROW)}
    return pa.table({**columns, **{name: found[name] for name in found.column_names}})


@dataclass(frozen=True)
class Distinct:
    """Keeps the first row of each key, over all chunks so far."""

    engine: Engine
    seen: str
    by: Sequence[str]
    tally: Tally

    def __call__(self, chunk: pa.Table) -> pa.Table:
        keys = ", ".join(self.by)
        same = " AND ".join(f"c.{name} IS NOT DISTINCT FROM s.{name}" for name in self.by)
        first = f"row_number() OVER (PARTITION BY {keys} ORDER BY {ROW}) = 1"
        sql = (
            f"SELECT * FROM (SELECT * FROM {CHUNK} QUALIFY {first}) c "
            f"WHERE NOT EXISTS (SELECT 1 FROM {self.seen} s WHERE {same})"
        )
        kept = self.engine.run(sql, chunk, self.tally.step)
        self.engine.insert(self.seen, f"SELECT {keys} FROM {CHUNK}", kept, self.tally.step)
        return self.tally.count(chunk, kept)

    @property
    def label(self) -> str:
        """The step, as it was written."""
        return self.tally.step

    def dump(self) -> bytes:
        """All keys seen so far."""
        seen = self.engine.connection.table(self.seen).to_arrow_table()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, seen.schema) as writer:
            writer.write_table(seen)
        return sink.getvalue().to_pybytes()

    def load(self, data: bytes) -> None:
        """Have seen those keys.

        Raises:
            ValueError: they are damaged.
        """
        keys = ", ".join(self.by)
        try:
            seen = pa.ipc.open_stream(data).read_all()
        except pa.ArrowInvalid as error:
            raise wrong(f"{self.label}, its state", str(error), "what dump gave") from None
        self.engine.connection.execute(f"DELETE FROM {self.seen}")
        self.engine.insert(self.seen, f"SELECT {keys} FROM {CHUNK}", seen, self.label)


@dataclass(frozen=True)
class Assigned:
    """Drops the rows that belong to no split."""

    tally: Tally

    def __call__(self, chunk: pa.Table) -> pa.Table:
        split = chunk[SPLIT]
        kept = chunk.filter(pc.is_valid(split)) if split.null_count else chunk
        return self.tally.count(chunk, kept)


def one(column: pa.ChunkedArray) -> pa.Array:
    """A column in one piece, also when it has no row."""
    whole = column.combine_chunks()
    return whole if isinstance(whole, pa.Array) else pa.concat_arrays(whole.chunks)
