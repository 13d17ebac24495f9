"""Files written for a Delta table that no commit of it names yet.

Several processes lay files down side by side; one commits all of them (``Lake.commit_files``).
What is never committed belongs to no version, and vacuuming removes it.
"""

import json
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import quote

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from drivetrain.core.errors import wrong
from drivetrain.core.need import need
from drivetrain.events.lake.evolve import fit
from drivetrain.events.lake.log import named_errors
from drivetrain.events.lake.parts import with_parts

pc = need("pyarrow.compute", "data")


@dataclass(frozen=True, kw_only=True)
class Addition:
    """One file.

    Attributes:
        path: below the table's folder.
        size: in bytes.
        rows: how many it has.
        values: of the columns that the table is partitioned by, as texts; None is a null.
        stats: of its columns, as the Delta protocol writes them.
    """

    path: str
    size: int
    rows: int
    values: Mapping[str, str | None] = field(default_factory=dict[str, str | None])
    stats: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def action(self) -> Any:
        """What a commit says of it, as the library takes it."""
        add = need("deltalake.transaction", "delta").AddAction
        now = time.time_ns() // 1_000_000
        return add(self.path, self.size, dict(self.values), now, True, json.dumps(self.stats))

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """One out of its attributes as plain data."""
        return cls(**data)


def lay(
    rows: pa.Table,
    path: str,
    due: pa.Schema,
    partition_by: Sequence[str] = (),
    storage: Mapping[str, str] | None = None,
) -> list[Addition]:
    """Write rows as files of the table at ``path``, one for each combination of partitions.

    Args:
        rows: as they are to be appended.
        path: the table's path or URL.
        due: the table's columns.
        partition_by: those of them whose values name folders, and are not in the files.
        storage: what its store is told.

    Raises:
        ValueError: a column is of another type than the table's, or one that it lacks.
        OSError: the store refuses, or is full; what was written is then in no version.
    """
    if not len(rows):
        return []
    rows, grows = fit(with_parts(rows, due), due, path)
    if grows:
        found = [name for name in rows.column_names if name not in due.names]
        raise wrong(f"{path}, columns", found, "those of the table, which is given new ones first")
    fs = need("deltalake.fs", "delta")
    with named_errors(path):
        store = pafs.PyFileSystem(fs.DeltaStorageHandler(path, dict(storage or {}) or None))
        return [_write(store, part, values) for values, part in _parts(rows, partition_by)]


def _write(store: Any, rows: pa.Table, values: Mapping[str, str | None]) -> Addition:
    folder = "/".join(
        f"{name}={'__HIVE_DEFAULT_PARTITION__' if value is None else quote(value, safe=' ')}"
        for name, value in values.items()
    )
    path = f"{folder}/part-{uuid.uuid4()}.parquet".lstrip("/")
    texts: Any = [item.name for item in rows.schema if pa.types.is_string(item.type)]
    with store.open_output_stream(path) as out:
        pq.write_table(rows, out, compression="snappy", use_dictionary=texts)
        size = out.tell()
    return Addition(path=path, size=size, rows=len(rows), values=values, stats=statistics(rows))


def _parts(rows: pa.Table, by: Sequence[str]) -> Iterator[tuple[dict[str, str | None], pa.Table]]:
    """The rows of each combination of values, in order of first occurrence, rows in order."""
    if not by:
        yield {}, rows
        return
    texts = pa.table({name: text_of(rows[name]) for name in by})
    keys = pa.StructArray.from_arrays([texts[name].combine_chunks() for name in by], names=list(by))
    held = rows.drop_columns(list(by))
    found: dict[tuple[str | None, ...], list[int]] = {}
    for number, key in enumerate(keys.to_pylist()):
        found.setdefault(tuple(key.values()), []).append(number)
    for key, numbers in found.items():
        yield dict(zip(by, key, strict=True)), held.take(pa.array(numbers))


def text_of(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The values of a partition as the Delta protocol writes them; an empty text is a null."""
    if pa.types.is_timestamp(column.type):
        text = pc.strftime(column.cast(pa.timestamp("us")), "%Y-%m-%d %H:%M:%S")
    else:
        text = column.cast(pa.string())
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)


def statistics(rows: pa.Table) -> dict[str, Any]:
    """What a reader may pass a file over for: counts, and bounds of integers and times."""
    least: dict[str, Any] = {}
    greatest: dict[str, Any] = {}
    for name in rows.column_names:
        column = rows[name]
        times = pa.types.is_timestamp(column.type)
        if not times and not pa.types.is_int64(column.type):
            continue
        bounds = pc.min_max(column.cast(pa.int64()))
        low, high = bounds["min"].as_py(), bounds["max"].as_py()
        if low is None:
            continue
        least[name] = _moment(low // 1000) if times else low
        greatest[name] = _moment(-(-high // 1000)) if times else high
    nulls = {name: rows[name].null_count for name in rows.column_names}
    return {
        "numRecords": len(rows),
        "minValues": {name: value for name, value in least.items() if value is not None},
        "maxValues": {name: value for name, value in greatest.items() if value is not None},
        "nullCount": nulls,
    }


def _moment(milliseconds: int) -> str | None:
    """A time with milliseconds, as the protocol has it; None outside of the years that it knows."""
    if not -62_135_596_800_000 <= milliseconds < 253_402_300_800_000:
        return None
    text = pa.scalar(milliseconds, pa.int64()).cast(pa.timestamp("ms"))
    return pc.strftime(text, "%Y-%m-%dT%H:%M:%SZ").as_py()
