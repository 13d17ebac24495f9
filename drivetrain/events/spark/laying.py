"""A table prepared by Spark: executors lay the rows down, the driver writes what they report.

No row passes through the driver. It is told how many rows lie in which files, and the digests of
the columns, for which executors read each column once more, all of it in order: that is what makes
the digest the same as without Spark, and costs a second pass over the files.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from drivetrain.core import durable
from drivetrain.core.errors import wrong
from drivetrain.core.metric import Emit, silent
from drivetrain.core.need import need
from drivetrain.core.schema import Field, Schema
from drivetrain.core.seams import SPLITS
from drivetrain.core.spark import told
from drivetrain.events.duckdb import ROW
from drivetrain.events.prepared import Prepared, pin, record, report, sources_of
from drivetrain.events.shelf import ColumnDigest, Shelf, divide
from drivetrain.events.spark.room import Room
from drivetrain.events.spark.rows import columns, over
from drivetrain.events.split import SPLIT
from drivetrain.events.table import Table

TASKS = ".tasks"
"""The folder in which each attempt of a task has one of its own, until the files are named."""


def prepare_on(
    spark: Any, table: Table, names: Sequence[str], directory: Path, *, emit: Emit = silent
) -> Prepared:
    """Run a plan on Spark and lay its rows down as ``events.prepared.prepare`` does.

    The rows, their order and the digest are the same as without Spark; only where files are cut
    differs. ``directory`` must be on a disk that the driver and all executors see.

    Args:
        spark: a session of ``core.spark``.
        table: where rows come from.
        names: which columns are kept.
        directory: where the rows are to lie; one that is there already is opened instead.
        emit: is told of rows left out at each step, and of rows written.

    Raises:
        ValueError: the plan does not fit the files, a file is damaged, or no row is left.
        OSError: a file is absent or may not be read, or the disk is full.
    """
    directory = Path(directory).resolve()
    if directory.exists():
        return Prepared.open(directory)
    if not names:
        raise wrong("prepare columns", names, "at least one column")
    table = pin(table)
    sources = sources_of(table)
    schema = table.schema.select(names, "prepare")
    with ExitStack() as stack:
        target = stack.enter_context(durable.directory(directory))
        room = Room(spark, stack.enter_context(durable.scratch(target, ".held-")), stack)
        tasks = stack.enter_context(durable.scratch(target, TASKS))
        stack.enter_context(told())
        laid = room.lay(table, names, partial(_lay, schema, tasks))
        contents = _named(laid.wrote, target, schema)
        for split, found in _digests(spark, contents, target, schema).items():
            contents[split]["columns"] = found
        report(contents, laid.dropped, laid.read, emit)
        record(target, schema, contents, laid.dropped, sources)
    return Prepared.open(directory)


def _lay(schema: Schema, tasks: Path, tables: Iterator[pa.Table]) -> Iterator[dict[str, Any]]:
    """Write the rows of one partition; what lies where."""
    task = need("pyspark", "spark").TaskContext.get()
    directory = tasks / f"{task.partitionId():06d}-{task.taskAttemptId()}"
    directory.mkdir()
    first = last = -1
    with Shelf(directory, schema, part=True) as shelf:
        for table in tables:
            numbers = table[ROW].to_numpy()
            if not len(numbers):
                continue
            assert numbers[0] > last, "out of order"
            assert bool((numbers[1:] > numbers[:-1]).all()), "out of order"
            first, last = (int(numbers[0]) if first < 0 else first), int(numbers[-1])
            divide(table[SPLIT], columns(table, schema), shelf)
        contents = shelf.close()
    if first >= 0:
        yield {"first": first, "last": last, "in": directory.name, "contents": contents}


def _named(
    parts: Sequence[Mapping[str, Any]], target: Path, schema: Schema
) -> dict[str, dict[str, Any]]:
    """Give the files of all partitions their names, in order; what each split has."""
    for part, following in pairwise(parts):
        assert part["last"] < following["first"], "two partitions overlap"
    contents: dict[str, dict[str, Any]] = {}
    with Shelf(target, schema) as shelf:
        empty = shelf.close()
    for split in SPLITS:
        files: list[dict[str, Any]] = []
        for part in parts:
            for file in part["contents"][split]["files"]:
                name = f"{split}/part-{len(files):05d}.parquet"
                (target / TASKS / part["in"] / file["name"]).replace(target / name)
                files.append({"name": name, "bytes": file["bytes"]})
        rows = sum(part["contents"][split]["rows"] for part in parts)
        contents[split] = {"rows": rows, "files": files} if files else empty[split]
    return contents


def _text() -> Any:
    types = need("pyspark.sql.types", "spark")
    return types.StructType([types.StructField("report", types.StringType())])


def _digests(
    spark: Any, contents: Mapping[str, Mapping[str, Any]], target: Path, schema: Schema
) -> dict[str, dict[str, str]]:
    """The digest of each column of each split, a task for each column."""
    files = {s: [str(target / file["name"]) for file in contents[s]["files"]] for s in SPLITS}
    numbers = spark.range(0, len(schema), 1, len(schema))
    rows = over(numbers, partial(_digest, schema, files), _text()).collect()
    found: dict[str, dict[str, str]] = {split: {} for split in SPLITS}
    for (text,) in rows:
        name, digests = json.loads(text)
        for split, digest in digests.items():
            found[split][name] = digest
    return found


def _digest(
    schema: Schema, files: Mapping[str, Sequence[str]], numbers: Iterator[pa.Table]
) -> Iterator[pa.Table]:
    for table in numbers:
        for number in table.column(0).to_pylist():
            field = tuple(schema)[number]
            digests = {split: _of(field, paths) for split, paths in files.items()}
            yield pa.table({"report": [json.dumps([field.name, digests])]})


def _of(field: Field, paths: Sequence[str]) -> str:
    digest = ColumnDigest(field)
    for path in paths:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for group in range(file.metadata.num_row_groups):
                digest.update(file.read_row_group(group, columns=[field.name])[field.name])
    return digest.hexdigest()
