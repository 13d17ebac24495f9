"""A table's steps on Spark: SQL where SQL can say it, the house's own code over Arrow elsewhere.

The rows carry their number in the spine through all steps, so that their order can be told at the
end, wherever they were sent meanwhile. Joined tables are computed once: those that an as-of join
looks up in lie as Arrow files where all executors read them, and the search is the very same code
as without Spark; so are windows, whose rows are brought together by key.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import pyarrow as pa

from drivetrain.core.need import need
from drivetrain.core.schema import Field, Schema
from drivetrain.core.window import Windows
from drivetrain.events.asof import LastBefore
from drivetrain.events.dialect.sql import identifier, quote
from drivetrain.events.duckdb import ROW, Limits, engine
from drivetrain.events.join import AsOfJoin, Join
from drivetrain.events.plan import outline
from drivetrain.events.reading.arrow import arrow_schema
from drivetrain.events.spark.functions import register
from drivetrain.events.spark.held import Held, few, opened
from drivetrain.events.spark.pieces import PLACE, spine
from drivetrain.events.spark.rows import local_directory, over, struct
from drivetrain.events.split import SPLIT
from drivetrain.events.stages import AsOf, one
from drivetrain.events.table import Assign, DropDuplicates, RowStep, Table
from drivetrain.events.windowed.backfill import Windowed
from drivetrain.events.windows import WithWindows

FEW = 1 << 20
"""A joined table with at most so many rows is sent to every executor."""

RANK = "__rank__"

WALK_MEMORY = "512MB"
"""What sorting for windows takes in each task before it spills."""


@dataclass(kw_only=True)
class Frame:
    """The rows of a table on Spark, on the way.

    Attributes:
        rows: the frame, with ``ROW`` beside the columns.
        schema: its columns.
        pieces: in how many pieces the spine is read.
        ordered: whether rows are still where the spine had them.
        counts: how many rows there were at first and after each step that may leave rows out, once
            the frame has been computed; ``steps`` names them.
    """

    rows: Any
    schema: Schema
    pieces: int
    ordered: bool = True
    counts: list[Any] = field(default_factory=list[Any])
    steps: list[str] = field(default_factory=list[str])

    def count(self, step: str | None) -> None:
        """Have the rows counted here, behind a step that leaves some out; None at the start."""
        seen = need("pyspark.sql", "spark").Observation()
        self.rows = self.rows.observe(seen, _sql("count(1)").alias("n"))
        self.counts.append(seen)
        if step is not None:
            self.steps.append(step)

    def tallies(self) -> tuple[int, list[dict[str, Any]]]:
        """How many rows were read, and what each step that may leave rows out did with them."""
        found = [int(seen.get.get("n", 0)) for seen in self.counts]
        pairs = zip(self.steps, found, found[1:], strict=False)
        return found[0], [{"step": s, "rows": rows, "kept": kept} for s, rows, kept in pairs]

    def in_order(self) -> Any:
        """The rows where the spine had them, each piece a partition."""
        if self.ordered:
            return self.rows
        place = _sql(f"CAST(shiftright({ROW}, {PLACE}) AS INT)")
        return self.rows.repartitionById(self.pieces, place).sortWithinPartitions(ROW)


def _sql(expression: str) -> Any:
    return need("pyspark.sql.functions", "spark").expr(expression)


def frame(spark: Any, table: Table, names: Sequence[str], held: ExitStack) -> Frame:
    """A table's rows, not yet computed.

    Args:
        spark: the session.
        table: whose lookups are ``Held``.
        names: the columns that are wanted.
        held: frees what is held until the rows are computed.

    Raises:
        ValueError: a step does not fit the columns, or a key occurs twice in a joined table.
        OSError: a file is absent or may not be read.
    """
    register(spark)
    split = any(isinstance(step, Assign) for step in table.chain()[1])
    laid = outline(table, names, split=split)
    rows, pieces = spine(spark, laid.spine, laid.reads)
    found = Frame(rows=rows, schema=laid.reads, pieces=pieces)
    found.count(None)
    for step, before, live in laid.steps:
        if isinstance(step, RowStep):
            _project(found, step, before, live)
        elif isinstance(step, Join):
            _join(found, step, before, live, spark, held)
        elif isinstance(step, AsOfJoin):
            _asof(found, step, before, live)
        elif isinstance(step, WithWindows):
            _windows(found, step, before, live)
        else:
            assert isinstance(step, DropDuplicates), type(step)
            _distinct(found, step, before)
        after = {f.name: f for f in step.output(before)}
        found.schema = Schema(tuple(after[name] for name in live if name in after))
    found.schema = laid.gives
    return found


# -- joins -----------------------------------------------------------------------------------------


def _join(
    frame: Frame, step: Join, before: Schema, live: Sequence[str], spark: Any, held: ExitStack
) -> None:
    other = step.other.schema
    added = {n: f.name for n, f in step.added(before, other).items() if f.name in live}
    keys = [right for _, right in step.on]
    names = list(dict.fromkeys([*keys, *added]))
    assert isinstance(step.other, Held)
    rows, _ = spine(spark, step.other, other.select(names))
    rows = rows.filter(" AND ".join(f"{quote(key)} IS NOT NULL" for key in keys))
    rows = rows.select(*(_column(rows, name) for name in names)).persist()
    held.callback(rows.unpersist)
    _each_once(rows, step, keys)
    sides = [f"{quote(key)} AS __key_{i}__" for i, key in enumerate(keys)]
    sides += [f"{quote(name)} AS {quote(new)}" for name, new in added.items()]
    right = rows.selectExpr(*sides)
    if few(step.other):
        right = need("pyspark.sql.functions", "spark").broadcast(right)
    else:
        frame.ordered = False
    match = " AND ".join(f"{quote(left)} = __key_{i}__" for i, (left, _) in enumerate(step.on))
    joined = frame.rows.join(right, _sql(match), step.how)
    frame.rows = joined.selectExpr(*map(quote, live), ROW)
    if step.how == "inner":
        frame.count(step.label)


def _asof(frame: Frame, step: AsOfJoin, before: Schema, live: Sequence[str]) -> None:
    other = step.other.schema
    added = {n: f.name for n, f in step.added(before, other).items() if f.name in live}
    keys, time = [right for _, right in step.by], step.on_time[1]
    schema = other.select(list(dict.fromkeys([*keys, time, *added])))
    assert isinstance(step.other, Held)
    files, tolerance = step.other.files, step.tolerance_us
    search = Search(files, schema, tuple(keys), time, step.strict, tolerance, tuple(added.items()))
    own = [name for name in live if name not in added.values()]
    fields = [frame.schema.field(name) for name in own if name != SPLIT]
    fields += [Field(new, other.field(n).dtype, other.field(n).shape) for n, new in added.items()]
    by, at = [identifier(left) for left, _ in step.by], identifier(step.on_time[0])
    find = partial(search.over, by, at, [identifier(name) for name in own])
    further = [SPLIT, ROW] if SPLIT in own else [ROW]
    frame.rows = over(frame.rows, find, struct(fields, *further))


def _column(frame: Any, name: str) -> Any:
    return frame["`" + identifier(name).replace("`", "``") + "`"]


def _project(frame: Frame, step: RowStep, before: Schema, live: Sequence[str]) -> None:
    projection = step.project(before, live, "spark")
    rows = frame.rows.filter(projection.where) if projection.where else frame.rows
    made = [f"{sql} AS {quote(name)}" for name, sql in projection.columns.items()]
    frame.rows = rows.selectExpr(*made, ROW)
    if step.drops:
        frame.count(step.label)
    elif isinstance(step, Assign):
        frame.rows = frame.rows.filter(f"{SPLIT} IS NOT NULL")
        frame.count("split, which needs a time")


def _distinct(frame: Frame, step: DropDuplicates, before: Schema) -> None:
    by = ", ".join(quote(name) for name in step.by or before.names)
    ranked = f"row_number() OVER (PARTITION BY {by} ORDER BY {ROW}) AS {RANK}"
    frame.rows = frame.rows.selectExpr("*", ranked).filter(f"{RANK} = 1").drop(RANK)
    frame.ordered = False
    frame.count(step.label)


def _each_once(held: Any, step: Join, keys: Sequence[str]) -> None:
    """Hold that no row that is looked up in has the key of another."""
    by = [_column(held, key) for key in keys]
    twice = held.groupBy(*by).count().filter('"count" > 1').orderBy(*by).limit(1).collect()
    if twice:
        *values, times = twice[0]
        raise step.twice(values, times)


# -- over Arrow ------------------------------------------------------------------------------------


def _windows(frame: Frame, step: WithWindows, before: Schema, live: Sequence[str]) -> None:
    windows = step.windows.select(tuple(live))
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, window in windows.columns:
        groups.setdefault(window.keys, []).append(name)
    fields = list(frame.schema)
    further = [SPLIT] if SPLIT in frame.rows.columns else []
    for keys, names in groups.items():
        some = windows.select(names)
        reads = before.select(list(dict.fromkeys((*some.asked, *some.observed))))
        keep = [*(identifier(field.name) for field in fields), *further]
        fields += some.fields(before)
        by_key = frame.rows.repartition(*(_column(frame.rows, key) for key in keys))
        walk = partial(_walked, some, reads, keep, step.label)
        frame.rows = over(by_key.sortWithinPartitions(ROW), walk, struct(fields, *further, ROW))
        frame.ordered = False
    frame.rows = frame.rows.selectExpr(*map(quote, live), ROW)


def _walked(
    windows: Windows,
    reads: Schema,
    keep: Sequence[str],
    label: str,
    tables: Iterator[pa.Table],
) -> Iterator[pa.Table]:
    """The rows of some keys with their windows, by the same kernel as everywhere."""
    limits = Limits(memory=WALK_MEMORY, threads=1, directory=local_directory())
    with engine(limits) as running:
        yield from Windowed(running, windows, reads, keep, label).over(tables)


@dataclass(frozen=True)
class Search:
    """An as-of join whose lookup table lies in files.

    Attributes:
        files: in order.
        schema: their columns.
        keys: of them, those whose values must be equal.
        time: and the one that says when a row was observed.
        strict, tolerance_us: as ``asof.LastBefore`` takes them.
        added: the columns that are added: their names there and here.
    """

    files: tuple[str, ...]
    schema: Schema
    keys: tuple[str, ...]
    time: str
    strict: bool
    tolerance_us: int | None
    added: tuple[tuple[str, str], ...]

    def over(
        self, by: Sequence[str], time: str, keep: Sequence[str], tables: Iterator[pa.Table]
    ) -> Iterator[pa.Table]:
        """Each table with what was last observed before its rows."""
        return map(AsOf(*_looked_up(self), by, time, keep), tables)


@lru_cache(maxsize=4)
def _looked_up(search: Search) -> tuple[LastBefore, pa.Table]:
    """The search and the columns it finds; made once by each of Spark's Python workers."""
    read = search.schema.names
    parts = [arrow_schema(search.schema).empty_table()]
    parts += [opened(file).select(read) for file in search.files]
    held = pa.concat_tables(parts).combine_chunks()
    found = LastBefore(
        [one(held[key]) for key in search.keys],
        one(held[search.time]),
        strict=search.strict,
        tolerance_us=search.tolerance_us,
    )
    names = [name for name, _ in search.added]
    return found, held.select(names).rename_columns([identifier(new) for _, new in search.added])
