"""What a chunk of rows goes through: a query, an as-of join, the first row of each key."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import pyarrow as pa

from drivetrain.core.errors import wrong
from drivetrain.core.need import need
from drivetrain.events.asof import LastBefore
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
    """Steps that are one SQL query over the chunk."""

    engine: Engine
    sql: str
    label: str
    tally: Tally | None = None

    def __call__(self, chunk: pa.Table) -> pa.Table:
        result = self.engine.run(self.sql, chunk, self.label)
        return self.tally.count(chunk, result) if self.tally else result


@dataclass(frozen=True)
class AsOf:
    """Adds what was last observed before each row's time."""

    search: LastBefore
    observed: pa.Table
    by: Sequence[str]
    time: str
    keep: Sequence[str]

    def __call__(self, chunk: pa.Table) -> pa.Table:
        chunk = chunk.combine_chunks()
        keys = [one(chunk[name]) for name in self.by]
        rows = self.search.find(keys, one(chunk[self.time]))
        found = self.observed.take(pa.array(rows, mask=rows < 0))
        columns = {name: chunk[name] for name in (*self.keep, ROW)}
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
        return self.tally.count(chunk, chunk.filter(pc.is_valid(chunk[SPLIT])))


def one(column: pa.ChunkedArray) -> pa.Array:
    """A column in one piece, also when it has no row."""
    whole = column.combine_chunks()
    return whole if isinstance(whole, pa.Array) else pa.concat_arrays(whole.chunks)
