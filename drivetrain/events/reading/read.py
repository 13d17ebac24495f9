"""Reads files as Arrow tables of bounded size, whatever their format and wherever they lie."""

import io
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from glob import has_magic
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.json as pj
import pyarrow.parquet as pq

from drivetrain.core.errors import wrong
from drivetrain.core.need import need
from drivetrain.core.schema import Schema
from drivetrain.events.files import CSV, Arrow, Files, JSONLines, Parquet
from drivetrain.events.reading import csv
from drivetrain.events.reading.arrow import TYPES, normalise, schema_of_arrow

BYTES = 64 << 20
"""A chunk holds at most about this many bytes, however few rows that is."""


@dataclass(frozen=True)
class File:
    """One file of a table: where it lies, and what tells a change of it."""

    system: Any
    path: str
    name: str

    def open(self) -> Any:
        """The file for reading bytes.

        Raises:
            OSError: it is absent or may not be read; the message names it.
        """
        try:
            return self.system.open(self.path, "rb")
        except PermissionError as error:
            raise PermissionError(f"{self.name}: no permission to read it") from error
        except (FileNotFoundError, KeyError) as error:
            raise FileNotFoundError(f"{self.name}: there is no such file") from error

    def stamp(self) -> str:
        """A text that changes when the file does: size and time, or the store's checksum."""
        if "file" in _protocols(self.system):
            info = self.system.info(self.path)
            return f"{info['size']}:{self.system.modified(self.path).timestamp()}"
        return str(self.system.ukey(self.path))


def _protocols(system: Any) -> tuple[str, ...]:
    return (system.protocol,) if isinstance(system.protocol, str) else tuple(system.protocol)


def files_of(leaf: Files) -> list[File]:
    """The files of a table in the order in which they are read.

    Raises:
        FileNotFoundError: a path does not exist, or a glob matches nothing.
    """
    core = need("fsspec.core", "data")
    found: list[File] = []
    for url in leaf.urls:
        system, path = core.url_to_fs(url)
        if system.isfile(path):
            names = [path]
        elif has_magic(path):
            names = [name for name in sorted(system.glob(path)) if system.isfile(name)]
        elif system.exists(path):
            raise wrong(f"{type(leaf).__name__} path", url, "a file, or a glob such as '…/*'")
        else:
            names = []
        if not names and "file" in _protocols(system) and _hidden(path):
            raise PermissionError(f"{url}: no permission to look into its folder")
        if not names:
            what = "matches no file" if has_magic(path) else "there is no such file"
            raise FileNotFoundError(f"{url}: {what}")
        found += [File(system, name, url if name == path else name) for name in names]
    return found


def _hidden(path: str) -> bool:
    """Whether the nearest folder above a local path that is there may not be looked into."""
    folder = next(folder for folder in Path(path).parents if os.path.lexists(folder))
    return not os.access(folder, os.X_OK, effective_ids=True)


# -- formats ---------------------------------------------------------------------------------------

Tables = Iterator[pa.Table]


class _Parquet:
    """Parquet, a few pages at a time."""

    def schema(self, file: File, leaf: Parquet) -> Schema:
        with file.open() as opened:
            return schema_of_arrow(pq.ParquetFile(opened).schema_arrow)

    def tables(
        self,
        file: File,
        leaf: Parquet,
        schema: Schema,
        rows: int,
        groups: Sequence[int] | None = None,
    ) -> Tables:
        with file.open() as opened:
            # Arrow would keep every byte that it has read ahead until the file is closed.
            reader = pq.ParquetFile(opened, pre_buffer=False)
            columns = [name for name in schema.names if name in reader.schema_arrow.names]
            most = rows_within(reader, rows)
            for batch in reader.iter_batches(most, row_groups=groups, columns=columns):
                yield pa.Table.from_batches([batch])

    def rows(self, file: File) -> int | None:
        with file.open() as opened:
            return pq.ParquetFile(opened).metadata.num_rows


def rows_within(reader: pq.ParquetFile, rows: int) -> int:
    """At most ``rows``, fewer where rows are so wide that these would not fit a chunk."""
    metadata = reader.metadata
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    widest = max((g.total_byte_size / max(g.num_rows, 1) for g in groups), default=0)
    return max(1, min(rows, int(BYTES / max(widest, 1))))


class _Arrow:
    """Arrow IPC, a record batch at a time."""

    def schema(self, file: File, leaf: Arrow) -> Schema:
        with file.open() as opened:
            return schema_of_arrow(self._open(opened)[0])

    def tables(self, file: File, leaf: Arrow, schema: Schema, rows: int) -> Tables:
        with file.open() as opened:
            for batch in self._open(opened)[1]:
                yield pa.Table.from_batches([batch])

    def _open(self, opened: Any) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        magic = opened.read(6)
        opened.seek(0)
        if magic == b"ARROW1":
            reader = pa.ipc.open_file(opened)
            return reader.schema, (reader.get_batch(i) for i in range(reader.num_record_batches))
        stream = pa.ipc.open_stream(opened)
        return stream.schema, iter(stream)

    def rows(self, file: File) -> int | None:
        return None


class _CSV:
    """CSV, a block of lines at a time."""

    def schema(self, file: File, leaf: CSV) -> Schema:
        return csv.sniff(file.open, leaf, file.name)

    def tables(self, file: File, leaf: CSV, schema: Schema, rows: int) -> Tables:
        yield from csv.tables(file.open, leaf, schema, file.name)

    def rows(self, file: File) -> int | None:
        return None


class _JSONLines:
    """JSON Lines, a block of lines at a time."""

    def schema(self, file: File, leaf: JSONLines) -> Schema:
        declared = dict(leaf.types or ())
        kinds: dict[str, pa.DataType] = {}
        with file.open() as opened:
            line = 1
            for block in csv.blocks(opened, csv.SAMPLE):
                found = _objects(block, pj.ParseOptions(), file, line)
                line += block.count(b"\n")
                for item in found.schema:
                    if item.name not in kinds or pa.types.is_null(kinds[item.name]):
                        kinds[item.name] = _no_time(item.type)
                if not any(pa.types.is_null(k) and n not in declared for n, k in kinds.items()):
                    break
        if not kinds:
            raise ValueError(f"{file.name}: found an empty file, allowed: JSON objects, one a line")
        kinds.update({name: TYPES[kind] for name, kind in declared.items()})
        return schema_of_arrow(pa.schema(list(kinds.items())))

    def tables(self, file: File, leaf: JSONLines, schema: Schema, rows: int) -> Tables:
        parse = pj.ParseOptions(
            explicit_schema=pa.schema([(f.name, TYPES[f.dtype]) for f in schema]),
            unexpected_field_behavior="ignore",
        )
        with file.open() as opened:
            line = 1
            for block in csv.blocks(opened, csv.BLOCK):
                yield _objects(block, parse, file, line)
                line += block.count(b"\n")

    def rows(self, file: File) -> int | None:
        return None


def _objects(block: bytes, parse: pj.ParseOptions, file: File, line: int) -> pa.Table:
    """The rows of a block that begins at a line of the file."""
    read = pj.ReadOptions(block_size=len(block) + 1, use_threads=False)
    try:
        return pj.read_json(io.BytesIO(block), read, parse)
    except pa.ArrowInvalid as error:
        row = re.search(r" in row (\d+)", str(error))
        where = f"line {line + int(row.group(1))}" if row else f"in or after line {line}"
        what = str(error)[: row.start()] if row else str(error)
        raise ValueError(
            f"{file.name}, {where}: {what}; allowed: a JSON object a line, each key of one type "
            "in all lines (declare types={…} if the first lines do not show it)."
        ) from None


def _no_time(kind: pa.DataType) -> pa.DataType:
    return pa.string() if pa.types.is_time(kind) else kind


FORMATS: dict[type[Files], Any] = {
    Parquet: _Parquet(),
    Arrow: _Arrow(),
    CSV: _CSV(),
    JSONLines: _JSONLines(),
}


# -- whole tables ----------------------------------------------------------------------------------


def _named(file: File, tables: Iterator[Any]) -> Iterator[Any]:
    """What ``tables`` gives; what Arrow or an archive says of damage names the file."""
    try:
        yield from tables
    except pa.ArrowInvalid as error:
        if file.system.size(file.path) == 0:
            raise ValueError(f"{file.name}: found an empty file, allowed: rows") from None
        raise _torn(file, error) from error
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise _torn(file, error) from error
    except OSError as error:
        if error.errno is None and not str(error).startswith(file.name):
            raise _torn(file, error) from error  # Arrow's word for damage; a disk's has a number
        raise


def _torn(file: File, error: Exception) -> ValueError:
    return ValueError(f"{file.name}: cannot be read, it is torn or of another format: {error}")


def _format(leaf: Files) -> Any:
    return FORMATS[type(leaf)]


def schema_of(leaf: Files) -> Schema:
    """The columns of a table's files, as its first file has them.

    Raises:
        ValueError: the file is empty, torn or of another format.
        OSError: it is absent or may not be read.
    """
    first = files_of(leaf)[0]
    return _schema(first, first.stamp(), leaf)


@lru_cache(maxsize=64)
def _schema(file: File, stamp: str, leaf: Files) -> Schema:
    (schema,) = _named(file, (_format(leaf).schema(file, leaf) for _ in range(1)))
    if leaf.time is not None:
        schema.field(leaf.time, f"{type(leaf).__name__} time")
    return schema


def count(leaf: Files) -> int | None:
    """How many rows the files hold, where they say so without being read."""
    counts = []
    for file in files_of(leaf):
        counts += _named(file, (_format(leaf).rows(file) for _ in range(1)))
    return None if None in counts else sum(counts)


def stamps(leaf: Files) -> list[tuple[str, str]]:
    """Each file's name, and a text that changes when the file does."""
    return [(file.name, file.stamp()) for file in files_of(leaf)]


def read(leaf: Files, schema: Schema, rows: int) -> Iterator[pa.Table]:
    """The rows of all files in order, in tables of ``rows`` rows, or fewer where they are wide.

    Args:
        leaf: the files.
        schema: which columns, and their types.
        rows: at most so many rows a table.

    Raises:
        ValueError: a file is damaged, or a column is absent or of another type.
        OSError: a file is absent or may not be read.
    """
    whole = (table for file in files_of(leaf) for table in read_file(file, leaf, schema, rows))
    return chunks_of(whole, rows)


def read_file(
    file: File, leaf: Files, schema: Schema, rows: int, groups: Sequence[int] | None = None
) -> Tables:
    """The rows of one file, or of some row groups of a Parquet file; else as :func:`read`."""
    some = () if groups is None else (groups,)
    for table in _named(file, _format(leaf).tables(file, leaf, schema, rows, *some)):
        yield normalise(table, schema, file.name)


def chunks_of(tables: Iterator[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of even size."""
    held: list[pa.Table] = []
    count = size = 0
    for table in tables:
        while len(table):
            part = table.slice(0, rows - count)
            table = table.slice(len(part))
            held.append(part)
            count, size = count + len(part), size + part.nbytes
            if count == rows or size >= BYTES:
                yield pa.concat_tables(held).combine_chunks()
                held, count, size = [], 0, 0
    if held:
        yield pa.concat_tables(held).combine_chunks()
