"""Rows that executors have laid down in Arrow files, for others to look up in or to leave out."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from drivetrain.core.batch import Array
from drivetrain.core.need import need
from drivetrain.core.schema import Schema
from drivetrain.events.duckdb import ROW
from drivetrain.events.reading.read import chunks_of
from drivetrain.events.spark.rows import columns
from drivetrain.events.stages import Stage, Staged, Tally
from drivetrain.events.table import Leaf, Table

FEW = 1 << 20
"""A joined table with at most so many rows is held by every executor."""

FEW_BYTES = 128 << 20
"""And of at most so many bytes."""


@dataclass(frozen=True, eq=False)
class Held(Leaf):
    """Rows that lie in Arrow files of this run, or that will be given by others.

    Attributes:
        has: all columns of the table that it stands for; the files hold those that are needed.
        files: in order.
        rows: how many.
        size: of the files, in bytes.
    """

    has: Schema
    files: tuple[str, ...] = ()
    rows: int = 0
    size: int = 0

    @property
    def schema(self) -> Schema:
        return self.has

    def chunks(self, schema: Schema, rows: int) -> Iterator[pa.Table]:
        for file in self.files:
            yield from read_held(file, schema, rows)


def few(table: Table) -> bool:
    """Whether a table that is looked up in is one that every executor holds."""
    assert isinstance(table, Held)
    return table.rows <= FEW and table.size <= FEW_BYTES


def read_held(file: str, schema: Schema, rows: int) -> Iterator[pa.Table]:
    """Columns of one file of a :class:`Held`, in tables of at most ``rows`` rows."""
    return chunks_of(iter([opened(file).select(schema.names)]), rows)


def opened(file: str) -> pa.Table:
    """What lies in an Arrow file, mapped into memory."""
    return pa.ipc.open_file(pa.memory_map(file)).read_all()


def hold(schema: Schema, directory: Path, tables: Iterator[pa.Table]) -> Iterator[dict[str, Any]]:
    """Lay the rows of a task down in one Arrow file; which rows lie where."""
    path, first, count = _path(directory), -1, 0
    with pa.OSFile(str(path), "wb") as file:
        writer: Any = None
        for table in tables:
            if not len(table):
                continue
            if writer is None:
                first = int(table[ROW][0].as_py())
                writer = pa.ipc.new_file(file, columns(table, schema).schema)
            writer.write_table(columns(table, schema))
            count += len(table)
        if writer is not None:
            writer.close()
    if count:
        yield {"first": first, "file": str(path), "rows": count, "bytes": path.stat().st_size}


def _path(directory: Path) -> Path:
    """A file that no other attempt of any task writes."""
    task = need("pyspark", "spark").TaskContext.get()
    return directory / f"{task.partitionId():06d}-{task.taskAttemptId()}.arrow"


# -- rows that are left out ------------------------------------------------------------------------


def numbers(directory: Path, tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Lay the numbers of a task's rows down in order; the name of the file."""
    found = [table[ROW].to_numpy() for table in tables if len(table)]
    if found:
        path = _path(directory)
        rows = pa.table({ROW: np.sort(np.concatenate(found))})
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, rows.schema) as writer:
            writer.write_table(rows)
        yield pa.table({"file": [str(path)]})


@dataclass(frozen=True, eq=False)
class Without(Staged):
    """A step that leaves out the rows of these numbers, which were found before.

    Attributes:
        files: of :func:`numbers`; a row's number is in one of them at most.
        said: the step that it stands for, as it was written.
    """

    files: tuple[str, ...]
    said: str

    @property
    def label(self) -> str:
        return self.said

    def stage(self, tally: Tally) -> Stage:
        return _LeaveOut(self.files, tally)


@dataclass(frozen=True)
class _LeaveOut:
    files: tuple[str, ...]
    tally: Tally

    def __call__(self, chunk: pa.Table) -> pa.Table:
        found = chunk[ROW].to_numpy()
        kept = np.ones(len(found), bool)
        if len(found):
            for lost in self._lost:
                start, stop = np.searchsorted(lost, (found[0], found[-1] + 1))
                at = np.searchsorted(found, lost[start:stop])
                assert bool((found[at] == lost[start:stop]).all()), "a row came otherwise before"
                kept[at] = False
        return self.tally.count(chunk, chunk.filter(pa.array(kept)))

    @cached_property
    def _lost(self) -> list[Array]:
        return [opened(file)[ROW].combine_chunks().to_numpy() for file in self.files]
