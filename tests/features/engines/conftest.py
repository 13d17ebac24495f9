"""A source over one Parquet file, as plain as can be, and the statistics of its whole in memory."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drivetrain.core.arrow import field_of_arrow
from drivetrain.core.batch import Batch
from drivetrain.core.schema import Schema
from drivetrain.core.seams import Shard, Split


@dataclass(frozen=True)
class ParquetFiles:
    """A tabular source: every split is the same files."""

    paths: tuple[str, ...]
    schema: Schema
    rows_at_once: int = 7

    def files(self, split: Split) -> Sequence[str]:
        return self.paths

    def batches(self, split: Split, shard: Shard = Shard()) -> Iterator[Batch]:
        for path in self.paths:
            for part in pq.read_table(path).to_batches(self.rows_at_once):
                yield Batch.from_arrow(part, self.schema)

    def whole(self) -> Batch:
        return Batch.from_arrow(pa.concat_tables(map(pq.read_table, self.paths)), self.schema)


@pytest.fixture
def parquet(tmp_path: Path) -> Callable[..., ParquetFiles]:
    """Writes tables as Parquet files, one each, and gives the source that reads them."""
    made = iter(range(1_000_000))

    def write(*tables: pa.Table, schema: Schema | None = None) -> ParquetFiles:
        paths = [tmp_path / f"it's {next(made)}.parquet" for _ in tables]
        for path, table in zip(paths, tables, strict=True):
            pq.write_table(table, path, row_group_size=max(1, len(table) // 2))
        fields = tuple(field_of_arrow(f.name, f.type) for f in tables[0].schema)
        return ParquetFiles(tuple(map(str, paths)), schema or Schema(fields))

    return write
