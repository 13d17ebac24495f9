"""One version of a Delta table: its columns, and its files in a fixed order, read within bounds."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from drivetrain.core.errors import wrong
from drivetrain.core.schema import Schema
from drivetrain.events.lake.evolve import fields_of, vectors
from drivetrain.events.lake.log import files_of, named_errors, open_table
from drivetrain.events.reading.arrow import normalise
from drivetrain.events.reading.read import chunks_of, rows_within

if TYPE_CHECKING:
    from deltalake import DeltaTable

READ = frozenset(
    (
        "columnMapping",
        "deletionVectors",
        "timestampNtz",
        "typeWidening",
        "typeWidening-preview",
        "v2Checkpoint",
        "vacuumProtocolCheck",
        "variantType",
        "variantType-preview",
    )
)
"""What a table may ask of its readers, if it makes no use of the first two."""


@dataclass(frozen=True)
class DataFile:
    """One file of a version.

    Attributes:
        path: within the table.
        rows: how many it holds, if the log says so.
        values: what all of its rows have in the columns that the table is partitioned by.
    """

    path: str
    rows: int | None
    values: Mapping[str, Any]


class Snapshot:
    """A version of a table; to open it reads the log and no row."""

    def __init__(self, table: "DeltaTable", path: str, storage: Mapping[str, str]) -> None:
        self.table, self.path, self.storage = table, path, storage
        self.version = table.version()
        self.id = str(table.metadata().id)
        self.parts: Sequence[str] = table.metadata().partition_columns
        self.arrow = pa.schema(table.schema().to_arrow())
        self.schema = Schema(tuple(fields_of(self.arrow).values()))

    @classmethod
    def open(
        cls, path: str, version: int | None = None, storage: Mapping[str, str] | None = None
    ) -> "Snapshot":
        """A version of the table at ``path``; None takes the latest.

        Raises:
            FileNotFoundError: no table lies there, or its log no longer has that version.
            ValueError: it asks for what is not done here, such as deletion vectors.
            OSError: the store refuses.
        """
        table = open_table(path, version, storage)
        _check(table, path)
        return cls(table, path, dict(storage or {}))

    @cached_property
    def files(self) -> Sequence[DataFile]:
        """The files of this version: those of earlier commits first, then by name.

        The log sums commits up and forgets which brought a file; the time at which its writer made
        it stays, and one writer's files are made in the order of its commits.
        """
        with named_errors(self.path):
            found = pa.table(self.table.get_add_actions(flatten=True)).to_pylist()
        found.sort(key=lambda add: (add["modification_time"], add["path"]))
        return [
            DataFile(
                path=unquote(add["path"]),
                rows=add["num_records"],
                values={name: add[f"partition.{name}"] for name in self.parts},
            )
            for add in found
        ]

    @property
    def rows(self) -> int | None:
        """How many rows there are, if the log says so."""
        counts = [file.rows for file in self.files]
        return None if None in counts else sum(count for count in counts if count)

    def chunks(self, schema: Schema, rows: int) -> Iterator[pa.Table]:
        """All rows in the order of :attr:`files`, in tables of at most ``rows`` rows.

        Raises:
            FileNotFoundError: a file was vacuumed.
            ValueError: a file is damaged, or a column is absent or of another type.
            OSError: the store refuses.
        """
        for field in schema:
            self.schema.field(field.name, self.path)
        files = files_of(self.table, self.path, self.storage)
        return chunks_of(
            (t for file in self.files for t in self._of(file, files, schema, rows)), rows
        )

    def _of(self, file: DataFile, files: Any, schema: Schema, rows: int) -> Iterator[pa.Table]:
        where = f"{self.path}, {file.path}"
        try:
            with named_errors(self.path), files.open_input_file(file.path) as opened:
                # Arrow would keep every byte that it has read ahead until the file is closed.
                reader = pq.ParquetFile(opened, pre_buffer=False)
                own = set(reader.schema_arrow.names) - set(self.parts)
                held = [name for name in schema.names if name in own]
                for batch in reader.iter_batches(rows_within(reader, rows), columns=held):
                    yield normalise(self._whole(batch, file, schema), schema, where)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{self.path}: version {self.version} was vacuumed, {file.path} is no longer "
                "there; read a later version"
            ) from error
        except pa.ArrowInvalid as error:
            raise ValueError(f"{where}: cannot be read, it is torn: {error}") from error

    def _whole(self, batch: pa.RecordBatch, file: DataFile, schema: Schema) -> pa.Table:
        """A batch with the columns that a file does not hold itself."""
        columns: dict[str, Any] = {}
        for field in schema:
            kind = self.arrow.field(field.name).type
            if field.name in file.values:
                value = pa.scalar(file.values[field.name], kind)
                columns[field.name] = pa.repeat(value, len(batch))
            elif field.name in batch.schema.names:
                column = batch.column(field.name)
                columns[field.name] = column.cast(vectors(column.type, field.shape))
            else:  # it came to the table after this file
                columns[field.name] = pa.nulls(len(batch))
        return pa.table(columns)


def _check(table: "DeltaTable", path: str) -> None:
    """Hold that a table asks for nothing that is not done here.

    Raises:
        ValueError: it does.
    """
    features = set(table.protocol().reader_features or ())
    if foreign := sorted(features - READ):
        raise wrong(f"{path}, features", foreign, f"none but {', '.join(sorted(READ))}")
    mapping = table.metadata().configuration.get("delta.columnMapping.mode", "none")
    if mapping != "none":
        raise wrong(f"{path}, delta.columnMapping.mode", mapping, "'none': columns by their names")
    if "deletionVectors" not in features:
        return
    with named_errors(path):
        deleted = any(batch.num_rows for batch in table.deletion_vectors())
    if deleted:
        raise ValueError(
            f"{path}: found deletion vectors, which leave rows of its files out, allowed: files "
            "without; rewrite them (REORG TABLE … APPLY (PURGE)) and set "
            "delta.enableDeletionVectors to false."
        )
