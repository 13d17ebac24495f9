"""Where a table is computed on Spark, and which way.

What its steps look up in is laid down first. Then executors take its rows through all steps piece
by piece, if each row becomes what it does without others; a row that is left out because an equal
one came before is found by Spark, from the keys alone. What needs rows from elsewhere, windows and
large joined tables, is done on frames of Spark.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa

from drivetrain.core.need import need
from drivetrain.events.dialect.sql import quote
from drivetrain.events.duckdb import ROW
from drivetrain.events.join import Lookup
from drivetrain.events.plan import outline
from drivetrain.events.spark.frames import frame
from drivetrain.events.spark.held import Held, Without, hold, numbers
from drivetrain.events.spark.pieces import pieces_of
from drivetrain.events.spark.piecework import Piecework, Write, fits
from drivetrain.events.spark.rows import over, struct
from drivetrain.events.table import DropDuplicates, Table


@dataclass(frozen=True)
class Laid:
    """What became of a table's rows.

    Attributes:
        wrote: what was written, in the order of the rows: dicts of ``Write`` with ``first``, the
            number of the first row.
        read: how many rows there were at first.
        dropped: for each step that may leave rows out, how many came to it and how many it kept.
    """

    wrote: list[dict[str, Any]]
    read: int
    dropped: list[dict[str, Any]]


@dataclass
class Room:
    """Where tables are computed.

    Attributes:
        spark: the session.
        directory: of this run, which the driver and all executors see.
        held: frees what is held until the end.
    """

    spark: Any
    directory: Path
    held: ExitStack
    _numbers: Iterator[int] = field(default_factory=count)

    def lay(self, table: Table, names: Sequence[str], write: Write, *, split: bool = True) -> Laid:
        """Have executors compute a table's rows and write them, in order.

        Raises:
            ValueError: a step does not fit the columns, or a key occurs twice in a joined table.
            OSError: a file is absent or may not be read.
        """
        table = self._looked_up(table, names, split)
        if fits(table):
            work = self._work(table, names)
            found = self._reports(self._pieces(work), partial(work.report, write))
            read = sum(part["read"] for part in found)
            dropped = list(map(_sum, zip(*(part["tallies"] for part in found), strict=True)))
        else:
            made = frame(self.spark, table, names, self.held)
            found = self._reports(made.in_order(), partial(_report, write))
            read, dropped = made.tallies()
        wrote = [item for part in found for item in part["wrote"]]
        return Laid(sorted(wrote, key=lambda item: item["first"]), read, dropped)

    def _reports(
        self, rows: Any, report: Callable[[Iterator[pa.Table]], Iterator[dict[str, Any]]]
    ) -> list[dict[str, Any]]:
        types = need("pyspark.sql.types", "spark")
        text = types.StructType([types.StructField("report", types.StringType())])
        return [json.loads(row[0]) for row in over(rows, partial(_told, report), text).collect()]

    def _pieces(self, work: Piecework) -> Any:
        return self.spark.range(0, len(work.pieces), 1, len(work.pieces))

    def _new(self) -> Path:
        directory = self.directory / f"held-{next(self._numbers)}"
        directory.mkdir()
        return directory

    # -- before the rows -------------------------------------------------------------------------

    def _looked_up(self, table: Table, names: Sequence[str], split: bool) -> Table:
        """The same table, with what it looks up in laid down, and its split among its steps."""
        laid = outline(table, names, split=split)
        found: Table = laid.spine
        for step, before, live in laid.steps:
            if not isinstance(step, Lookup):
                found = replace(step, source=found)
                continue
            other = step.other.schema
            added = [n for n, f in step.added(before, other).items() if f.name in live]
            found = replace(step, source=found, other=self._hold(step.other, step.reads(added)))
        return found

    def _hold(self, table: Table, names: Sequence[str]) -> Held:
        schema = table.schema
        write = partial(hold, schema.select(names), self._new())
        wrote = self.lay(table, names, write, split=False).wrote
        return Held(
            has=schema,
            files=tuple(item["file"] for item in wrote),
            rows=sum(item["rows"] for item in wrote),
            size=sum(item["bytes"] for item in wrote),
        )

    def _work(self, table: Table, names: Sequence[str]) -> Piecework:
        spine, steps = table.chain()
        pieces = pieces_of(spine)
        done: Table = Held(has=spine.schema, time=spine.time)
        for step in steps:
            if isinstance(step, DropDuplicates):
                work = Piecework(spine, pieces, done, step.by or done.schema.names)
                done = Without(done, files=self._again(work), said=step.label)
            else:
                done = replace(step, source=done)
        return Piecework(spine, pieces, done, names)

    def _again(self, work: Piecework) -> tuple[str, ...]:
        """Where the numbers of the rows lie that are like one before them."""
        keys = work.table.schema.select(work.names)
        rows = over(self._pieces(work), work.rows, struct(keys, ROW))
        by = ", ".join(map(quote, keys.names))
        rank = f"row_number() OVER (PARTITION BY {by} ORDER BY {ROW}) AS __rank__"
        again = rows.selectExpr(ROW, rank).filter("__rank__ > 1").select(ROW)
        types = need("pyspark.sql.types", "spark")
        file = types.StructType([types.StructField("file", types.StringType())])
        return tuple(row[0] for row in over(again, partial(numbers, self._new()), file).collect())


def _sum(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What a step did in all pieces."""
    rows, kept = (sum(part[name] for part in parts) for name in ("rows", "kept"))
    return {"step": parts[0]["step"], "rows": rows, "kept": kept}


def _report(write: Write, tables: Iterator[pa.Table]) -> Iterator[dict[str, Any]]:
    yield {"wrote": list(write(tables))}


def _told(
    report: Callable[[Iterator[pa.Table]], Iterator[dict[str, Any]]], tables: Iterator[pa.Table]
) -> Iterator[pa.Table]:
    for found in report(tables):
        yield pa.table({"report": [json.dumps(found)]})
