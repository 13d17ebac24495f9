"""Writes rows as Parquet by split, with digests of what is written, and reads them back."""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from drivetrain.core.arrow import elements
from drivetrain.core.batch import Batch, Categorical
from drivetrain.core.errors import wrong
from drivetrain.core.metric import Emit, Progress
from drivetrain.core.need import need
from drivetrain.core.schema import MISSING_INT, Field, Schema
from drivetrain.core.seams import SPLITS, Source
from drivetrain.events.duckdb import Limits
from drivetrain.events.plan import Plan
from drivetrain.events.reading.arrow import arrow_schema, arrow_type, normalise
from drivetrain.events.split import SPLIT

pc = need("pyarrow.compute", "data")

GROUP_ROWS = 65_536
GROUP_BYTES = 64 << 20
"""A row group holds at most so many rows, and about so many bytes."""

FILE_ROWS = 1 << 20
"""A file holds at most so many rows."""


class Shelf:
    """The files of all splits while they are written; a context that closes them.

    A ``part`` of more has no digests, which need all rows in order, and no file without rows.
    """

    def __init__(self, directory: Path, schema: Schema, *, part: bool = False) -> None:
        self._splits = {split: _SplitWriter(directory, split, schema, part) for split in SPLITS}

    def __enter__(self) -> "Shelf":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        for writer in self._splits.values():
            writer.abandon()

    def add(self, split: str, rows: pa.Table) -> None:
        """Append rows to a split."""
        self._splits[split].add(rows)

    def close(self) -> dict[str, Any]:
        """Write what is held back; what each split has, for the manifest."""
        return {split: writer.close() for split, writer in self._splits.items()}


class _SplitWriter:
    def __init__(self, directory: Path, split: str, schema: Schema, part: bool) -> None:
        self.directory, self.split, self.schema, self.part = directory, split, schema, part
        (directory / split).mkdir()
        self.held: list[pa.Table] = []
        self.held_rows = self.rows = self.file_rows = self.file_bytes = 0
        self.files: list[Path] = []
        self.writer: pq.ParquetWriter | None = None
        self.digests = {} if part else {field.name: ColumnDigest(field) for field in schema}

    def add(self, rows: pa.Table) -> None:
        for name, digest in self.digests.items():
            digest.update(rows[name])
        size = rows.nbytes / max(len(rows), 1)
        group = max(1, min(GROUP_ROWS, int(GROUP_BYTES / max(size, 1))))
        while len(rows):
            part = rows.slice(0, max(0, group - self.held_rows))
            rows = rows.slice(len(part))
            self.held.append(part)
            self.held_rows += len(part)
            if self.held_rows >= group:
                self._flush()

    def _flush(self) -> None:
        group = pa.concat_tables(self.held)
        if self.writer is None:
            path = self.directory / self.split / f"part-{len(self.files):05d}.parquet"
            self.files.append(path)
            texts = [f.name for f in self.schema if f.dtype == "string"]
            self.writer = pq.ParquetWriter(
                path,
                arrow_schema(self.schema),
                compression="snappy",
                use_dictionary=texts,  # pyright: ignore[reportArgumentType]
            )
            self.file_rows = 0
        self.writer.write_table(group, row_group_size=max(1, len(group)))
        self.file_rows += len(group)
        self.rows += len(group)
        self.held, self.held_rows = [], 0
        if self.file_rows + GROUP_ROWS > FILE_ROWS:
            self._finish_file()

    def _finish_file(self) -> None:
        if self.writer is not None:
            writer, self.writer = self.writer, None
            writer.close()

    def close(self) -> dict[str, Any]:
        if self.held or not (self.files or self.part):
            self.held.append(arrow_schema(self.schema).empty_table())
            self._flush()
        self._finish_file()
        return {
            "rows": self.rows,
            "files": [
                {"name": f"{self.split}/{path.name}", "bytes": path.stat().st_size}
                for path in self.files
            ],
            "columns": {name: digest.hexdigest() for name, digest in self.digests.items()},
        }

    def abandon(self) -> None:
        """Close the open file, whose directory is about to go."""
        if self.writer is not None:
            with contextlib.suppress(OSError):  # a full disk may be why it is abandoned
                self._finish_file()


class ColumnDigest:
    """SHA-256 of a column's values in order, however they come in pieces.

    Numbers enter as little-endian bytes of their missing form (NaN, the least int64), texts as
    their lengths in bytes and their bytes; a missing text is an empty one.
    """

    def __init__(self, field: Field) -> None:
        self.field = field
        self.lengths, self.values = hashlib.sha256(), hashlib.sha256()

    def update(self, column: pa.ChunkedArray) -> None:
        """Take in the next values."""
        for piece in column.chunks:
            if self.field.dtype in ("string", "bytes"):
                filled = pc.fill_null(elements(piece), "" if self.field.dtype == "string" else b"")
                lengths = pc.binary_length(filled).cast(pa.int32()).to_numpy()
                self.lengths.update(lengths.astype("<i4", copy=False).tobytes())
                self.values.update(_bytes_of(filled))
            else:
                batch = Batch.from_arrow(pa.table({self.field.name: piece}), Schema((self.field,)))
                values = batch[self.field.name]
                if values.dtype.kind == "f":
                    values = np.where(np.isnan(values), values.dtype.type("nan"), values)
                self.values.update(np.ascontiguousarray(values).data)

    def hexdigest(self) -> str:
        """The digest of all values so far."""
        return hashlib.sha256(self.lengths.digest() + self.values.digest()).hexdigest()


def _bytes_of(texts: pa.Array) -> Any:
    """The bytes of all texts, one after another, without a copy."""
    _, offsets, data = texts.buffers()
    if not len(texts) or data is None:
        return b""
    bounds = np.frombuffer(offsets, dtype=np.int32)[texts.offset : texts.offset + len(texts) + 1]
    return memoryview(data)[bounds[0] : bounds[-1]]


# -- filling ---------------------------------------------------------------------------------------


def from_plan(plan: Plan, limits: Limits, shelf: Shelf, emit: Emit) -> None:
    """Run a plan over all of its spine, telling how much of that has been read."""
    told, total = -1, plan.spine.count()

    def tell() -> None:
        nonlocal told
        if told != plan.rows:
            told = plan.rows
            emit(Progress(stage="events", done=told, total=total))

    chunks = plan.spine.chunks(plan.reads, limits.chunk)
    with contextlib.closing(plan.over_ahead(chunks, tell)) as found:
        for rows in found:
            divide(rows[SPLIT], rows.select(plan.gives.names), shelf)
            del rows  # not held while the next ones are waited for
            tell()


def divide(numbers: pa.ChunkedArray, rows: pa.Table, shelf: Shelf) -> None:
    """Append each row to the split of its number."""
    for position, split in enumerate(SPLITS):
        mine = pc.equal(numbers, position)
        if pc.all(mine, min_count=1).as_py():
            shelf.add(split, rows)
            break
        shelf.add(split, rows.filter(mine))


def from_source(source: Source, schema: Schema, shelf: Shelf, emit: Emit) -> int:
    """Read all splits of a source that is not a table; how many rows it gave."""
    done = 0
    for split in SPLITS:
        for batch in source.batches(split):
            columns = {field.name: _nulled(batch, field) for field in schema}
            shelf.add(split, normalise(pa.table(columns), schema, f"split {split}"))
            done += len(batch)
            emit(Progress(stage="events", done=done))
    return done


def _nulled(batch: Batch, field: Field) -> Any:
    """A column of a batch as an Arrow array of its type, what is missing as null."""
    column = batch.column(field.name)
    if isinstance(column, Categorical):
        return pa.DictionaryArray.from_arrays(column.codes, column.values).cast(arrow_type(field))
    if column.ndim > 1:
        flat = pa.array(column.reshape(-1)).cast(arrow_type(Field(field.name, field.dtype)))
        return pa.FixedSizeListArray.from_arrays(flat, int(np.prod(column.shape[1:])))
    missing = column == MISSING_INT if column.dtype.kind == "i" else None
    return pa.array(column, mask=missing).cast(arrow_type(field))


# -- reading ---------------------------------------------------------------------------------------


def read(files: Sequence[str], schema: Schema, start: int, stop: int) -> Iterator[Batch]:
    """Rows ``start`` to ``stop`` of files that lie one after another, a row group at a time."""
    texts = [field.name for field in schema if field.dtype == "string" and not field.shape]
    first = 0
    for path in files:
        try:
            with pq.ParquetFile(path, read_dictionary=texts, pre_buffer=False) as file:
                for group in range(file.metadata.num_row_groups):
                    rows = file.metadata.row_group(group).num_rows
                    low, high = max(start, first), min(stop, first + rows)
                    if low < high:
                        table = file.read_row_group(group, columns=list(schema.names))
                        table = table.slice(low - first, high - low)
                        yield Batch.from_arrow(table, schema)
                    first += rows
        except (pa.ArrowInvalid, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise wrong(path, str(error), "a whole Parquet file; prepare it anew") from error
