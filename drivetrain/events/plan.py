"""Runs the steps of a table: its spine a chunk at a time, what it is joined with held once.

Each chunk of the spine goes through all steps before the next is read, so memory is bounded by
the chunk, the joined tables and the engine's limit, however many rows there are. Only windows have
to see all rows before they answer the first; those lie on disk meanwhile. What a chunk becomes does
not depend on where chunks begin; the rows keep the order of the spine.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from drivetrain.core.ahead import ahead
from drivetrain.core.batch import Array, Batch
from drivetrain.core.errors import wrong
from drivetrain.core.need import need
from drivetrain.core.schema import Schema
from drivetrain.core.seams import SPLITS, Shard, Split
from drivetrain.events.asof import LastBefore
from drivetrain.events.dialect.sql import identifier, quote
from drivetrain.events.duckdb import CHUNK, ROW, Engine, Limits, engine
from drivetrain.events.holding import Held, columns_of
from drivetrain.events.join import AsOfJoin, Join
from drivetrain.events.reading.arrow import arrow_schema
from drivetrain.events.split import SPLIT, HashSplit
from drivetrain.events.stages import (
    AsOf,
    Assigned,
    Distinct,
    Match,
    Query,
    Stage,
    Staged,
    Tally,
    Whole,
    one,
)
from drivetrain.events.table import Assign, DropDuplicates, Leaf, RowStep, Step, Table
from drivetrain.events.windowed.carry import Remembers, pack, unpack
from drivetrain.events.windows import WithWindows

pc = need("pyarrow.compute", "data")


@dataclass(kw_only=True)
class Plan:
    """A table's steps made ready to run on chunks of its spine.

    Attributes:
        engine: where the stages run.
        spine: where the rows come from.
        reads: the columns of the spine that the steps need.
        gives: the columns of the result; its split, an int64, comes beside them as ``SPLIT``.
        stages: what a chunk goes through, in order.
        tallies: one for each step that may leave rows out.
        rows: how many rows of the spine have gone through.
    """

    engine: Engine
    spine: Leaf
    reads: Schema
    gives: Schema
    stages: list[Stage] = field(default_factory=list)
    tallies: list[Tally] = field(default_factory=list)
    rows: int = 0

    @property
    def stateful(self) -> bool:
        """Whether what a chunk becomes depends on the chunks before it."""
        return bool(self._remembering)

    @property
    def _remembering(self) -> list[Remembers]:
        return [stage for stage in self.stages if isinstance(stage, Remembers)]

    @property
    def kept(self) -> tuple[int, int]:
        """How many keys the windows of a stream keep, and the bytes of memory that they take."""
        from drivetrain.events.windowed.backfill import Windowed

        tracks = [stage.tracks for stage in self.stages if isinstance(stage, Windowed)]
        return sum(held.keys for held in tracks), sum(held.bytes for held in tracks)

    def over(self, chunks: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """What all chunks of the spine become, each at its place.

        A window then holds what was known at its row's time in any row, as :meth:`run` can't tell:
        it has seen no further than its chunk.
        """
        return self._through(chunks, iter)

    def over_ahead(
        self, chunks: Iterable[pa.Table], waiting: Callable[[], None]
    ) -> Generator[pa.Table, None, None]:
        """The same, made by threads that each have one chunk at hand while the next is made.

        Reading, the windows, and the steps before, between and behind them have one each. They end
        with the last chunk, with an error and when this is closed, which also ends the engine's
        work. An error rises where its chunk was due.

        Args:
            chunks: of the spine.
            waiting: is called each second for which a chunk is waited for.
        """
        with ExitStack() as threads:

            def handed(found: Iterable[pa.Table]) -> Iterator[pa.Table]:
                return threads.enter_context(closing(ahead(found)))

            found = self._through(self.engine.lasting(chunks), handed)
            last = ahead(found, waiting=waiting, stopped=self.engine.stop)
            yield from threads.enter_context(closing(last))

    def _through(self, chunks: Iterable[pa.Table], handed: "_Handed") -> Iterator[pa.Table]:
        """Chunks through all stages; ``handed`` brings them to a stage and what follows it."""
        found: Iterator[pa.Table] = map(self._numbered, chunks)
        fresh = True
        for stage in self.stages:
            if isinstance(stage, Whole):
                found, fresh = stage.over(handed(found)), True
            else:
                found, fresh = map(stage, handed(found) if fresh else found), False
        return map(self._finished, found)

    def run(self, chunk: pa.Table) -> pa.Table:
        """What a chunk of the spine becomes, in order."""
        return self.trace(chunk)[0]

    def trace(self, chunk: pa.Table) -> tuple[pa.Table, Array]:
        """What a chunk becomes, and int64 ``[rows]``: the row of it that each came from."""
        first = self.rows
        chunk = self._numbered(chunk)
        for stage in self.stages:
            chunk = stage(chunk)
        return self._finished(chunk), chunk[ROW].to_numpy() - first

    def state(self) -> bytes:
        """What goes on from chunk to chunk: keys of drop_duplicates, windows of a stream."""
        return pack(self._remembering, self.rows)

    def restore(self, state: bytes) -> None:
        """Go on from where a run of the same plan stood.

        Raises:
            ValueError: the state is damaged, or of another plan.
        """
        self.rows = unpack(state, self._remembering)

    def _numbered(self, chunk: pa.Table) -> pa.Table:
        numbers = np.arange(self.rows, self.rows + len(chunk), dtype=np.int64)
        self.rows += len(chunk)
        chunk = chunk.rename_columns([identifier(name) for name in chunk.column_names])
        return chunk.append_column(ROW, pa.array(numbers))

    def _finished(self, chunk: pa.Table) -> pa.Table:
        fields = list(arrow_schema(self.gives))
        if SPLIT in chunk.column_names:
            fields.append(pa.field(SPLIT, pa.int64()))
        schema = pa.schema(fields)
        columns = [chunk[identifier(name)].cast(schema.field(name).type) for name in schema.names]
        return pa.Table.from_arrays(columns, schema=schema)


_Handed = Callable[[Iterable[pa.Table]], Iterator[pa.Table]]


def compile_plan(
    table: Table,
    columns: Sequence[str],
    engine: Engine,
    limits: Limits,
    *,
    split: bool = True,
    at_once: bool = False,
) -> Plan:
    """Make a table ready to run: check it, read and hold what it joins with, write its SQL.

    Args:
        table: the plan.
        columns: which columns of it are wanted; only what these need is read.
        engine: where SQL runs and joined tables are held.
        limits: for reading joined tables.
        split: whether rows are split; a table that names no split is split by a hash of all its
            columns.
        at_once: whether rows are given windows that are known at their own time before all rows
            have been read; ``Plan.over`` then raises ``NotInOrderError`` at a row that ought to
            have come earlier, and another plan, which waits, has to run.

    Raises:
        ValueError: a step does not fit the columns, or a key occurs twice in a joined table.
        OSError: a file is absent or may not be read.
    """
    laid = outline(table, columns, split=split)
    plan = Plan(engine=engine, spine=laid.spine, reads=laid.reads, gives=laid.gives)
    compiler = _Compiler(plan, engine, limits, at_once)
    for step, before, live in laid.steps:
        compiler.add(step, before, live)
    compiler.flush()
    return plan


@dataclass(frozen=True)
class Outline:
    """A table's steps, checked, and what each of them has to bring, whoever runs them.

    Attributes:
        spine: where the rows come from.
        reads: the columns of the spine that the steps need.
        gives: the columns of the result.
        steps: each with the columns before it, and the names of those after it that are needed
            later, ``SPLIT`` among them.
    """

    spine: Leaf
    reads: Schema
    gives: Schema
    steps: Sequence[tuple[Step, Schema, Sequence[str]]]


def outline(table: Table, columns: Sequence[str], *, split: bool = True) -> Outline:
    """Check a table's steps against its columns, and find what is needed of them.

    Raises:
        ValueError: a step does not fit the columns.
        OSError: a file is absent or may not be read.
    """
    if split and not any(isinstance(step, Assign) for step in table.chain()[1]):
        table = Assign(table, HashSplit())
    spine, steps = table.chain()
    schemas = [spine.schema]
    for step in steps:
        schemas.append(step.output(schemas[-1]))
    for name in (ROW, SPLIT):
        if any(name in schema for schema in schemas):
            raise wrong("a column's name", name, "any other; the engine uses this one")
    gives = schemas[-1].select(columns)
    needs = [frozenset(gives.names) | ({SPLIT} if split else set())]
    for step, before in zip(reversed(steps), reversed(schemas[:-1]), strict=True):
        needs.insert(0, step.required(needs[0], before))
    live = [name for name in schemas[0].names if name in needs[0]] or [schemas[0].names[0]]
    steps_needed = [
        (step, before, [name for name in (*after.names, SPLIT) if name in need_after])
        for step, before, after, need_after in zip(
            steps, schemas[:-1], schemas[1:], needs[1:], strict=True
        )
    ]
    return Outline(spine, schemas[0].select(live), gives, steps_needed)


class _Compiler:
    """Turns steps into stages: SQL as far as one query goes, then what SQL does not do."""

    def __init__(self, plan: Plan, engine: Engine, limits: Limits, at_once: bool) -> None:
        self.plan, self.engine, self.limits, self.at_once = plan, engine, limits, at_once
        self._begin()

    def _begin(self) -> None:
        """Begin a query that is to be: its SQL, what it does, its columns that the chunk has."""
        self.sql = CHUNK
        self.labels: list[str] = []
        self.passed: dict[str, str] = {}
        self.made: list[str] = []

    def add(self, step: Step, before: Schema, live: Sequence[str]) -> None:
        """Add a step; ``live`` are the columns after it that are needed later."""
        if isinstance(step, RowStep):
            self._project(step, before, live)
        elif isinstance(step, Join):
            self._join(step, before, live)
        elif isinstance(step, AsOfJoin):
            self._asof(step, before, live)
        elif isinstance(step, WithWindows):
            self._windows(step, before, live)
        elif isinstance(step, Staged):
            self.flush()
            self.plan.tallies.append(tally := Tally(step.label))
            self.plan.stages.append(step.stage(tally))
        else:
            assert isinstance(step, DropDuplicates), type(step)
            self._distinct(step, before)

    def flush(self, tally: Tally | None = None) -> None:
        """Make a stage of the pending query; ``tally`` counts what it drops."""
        if self.labels:
            sql = f"SELECT {', '.join([*map(quote, self.made), ROW])} FROM ({self.sql})"
            passed = {identifier(name): identifier(old) for name, old in self.passed.items()}
            label = "; ".join(self.labels)
            self.plan.stages.append(Query(self.engine, sql, passed, label, tally))
        if tally is not None:
            self.plan.tallies.append(tally)
        self._begin()

    def _query(
        self, passed: Mapping[str, str], made: Mapping[str, str], tail: str, label: str
    ) -> None:
        """Go on with the pending query.

        Args:
            passed: columns that stay as they are: their names so far, by those behind the step.
            made: the SQL of the others, by their names.
            tail: what follows the columns and the rows before, which are called ``l``.
            label: the step, for errors.
        """
        items = [f"l.{quote(old)} AS {quote(name)}" for name, old in passed.items()]
        items += [f"{sql} AS {quote(name)}" for name, sql in made.items()]
        source = f"({self.sql})" if self.labels else CHUNK
        self.sql = f"SELECT {', '.join([*items, f'l.{ROW} AS {ROW}'])} FROM {source} l {tail}"
        known = self.passed if self.labels else {old: old for old in passed.values()}
        self.passed = {name: known[old] for name, old in passed.items() if old in known}
        self.made = [name for name in (*passed, *made) if name not in self.passed]
        self.labels.append(label)

    def _project(self, step: RowStep, before: Schema, live: Sequence[str]) -> None:
        projection = step.project(before, live, "duckdb")
        names = {quote(name): name for name in (*before.names, SPLIT)}
        passed = {name: names[sql] for name, sql in projection.columns.items() if sql in names}
        made = {name: sql for name, sql in projection.columns.items() if name not in passed}
        where = f"WHERE {projection.where}" if projection.where else ""
        self._query(passed, made, where, step.label)
        if step.drops:
            self.flush(Tally(step.label))
        elif isinstance(step, Assign):
            self.flush()
            self.plan.tallies.append(tally := Tally("split, which needs a time"))
            self.plan.stages.append(Assigned(tally))

    def _join(self, step: Join, before: Schema, live: Sequence[str]) -> None:
        other = step.other.schema
        added = {n: f.name for n, f in step.added(before, other).items() if f.name in live}
        own = [name for name in live if name not in added.values()]
        reads = other.select(dict.fromkeys([*(right for _, right in step.on), *added]))
        held = Held(step, reads, self.engine)
        held.fill(stream(step.other, reads.names, self.engine, self.limits))
        tally = Tally(step.label) if step.how == "inner" else None
        if by_key := held.by_key(list(added)):
            self.flush()
            rows, matched = by_key
            matched = matched.rename_columns([identifier(name) for name in added.values()])
            by = [identifier(left) for left, _ in step.on]
            keep = [identifier(name) for name in own]
            self.plan.stages.append(Match(rows, matched, by, keep, tally))
            if tally:
                self.plan.tallies.append(tally)
            return
        match = " AND ".join(f"l.{quote(left)} = r.{quote(right)}" for left, right in step.on)
        made = {new: f"r.{quote(name)}" for name, new in added.items()}
        tail = f"{step.how.upper()} JOIN {held.table} r ON {match}"
        self._query({name: name for name in own}, made, tail, step.label)
        if tally:
            self.flush(tally)

    def _asof(self, step: AsOfJoin, before: Schema, live: Sequence[str]) -> None:
        self.flush()
        other = step.other.schema
        added = {n: f.name for n, f in step.added(before, other).items() if f.name in live}
        keys, time = [right for _, right in step.by], step.on_time[1]
        names = list(dict.fromkeys([*keys, time, *added]))
        parts = [arrow_schema(other.select(names)).empty_table()]
        parts += stream(step.other, names, self.engine, self.limits)
        held = pa.concat_tables(parts).combine_chunks()
        search = LastBefore(
            [one(held[key]) for key in keys],
            one(held[time]),
            strict=step.strict,
            tolerance_us=step.tolerance_us,
        )
        observed = held.select(list(added)).rename_columns([identifier(n) for n in added.values()])
        by = [identifier(left) for left, _ in step.by]
        own = [identifier(name) for name in live if name not in added.values()]
        self.plan.stages.append(AsOf(search, observed, by, identifier(step.on_time[0]), own))

    def _windows(self, step: WithWindows, before: Schema, live: Sequence[str]) -> None:
        windows = step.windows.select(live)
        if not windows.columns:
            return
        from drivetrain.events.windowed.backfill import Windowed  # which needs the compiled part

        self.flush()
        reads = before.select(dict.fromkeys((*windows.asked, *windows.observed)))
        own = [identifier(name) for name in live if name not in windows.names]
        made = Windowed(self.engine, windows, reads, own, step.label, at_once=self.at_once)
        self.plan.stages.append(made)

    def _distinct(self, step: DropDuplicates, before: Schema) -> None:
        self.flush()
        by = step.by or before.names
        seen = self.engine.create(columns_of(before.select(by)))
        tally = Tally(step.label)
        self.plan.stages.append(Distinct(self.engine, seen, [quote(n) for n in by], tally))
        self.plan.tallies.append(tally)


def stream(
    table: Table, columns: Sequence[str], engine: Engine, limits: Limits
) -> Iterator[pa.Table]:
    """The rows of a table, unsplit, in order."""
    plan = compile_plan(table, columns, engine, limits, split=False)
    yield from plan.over(plan.spine.chunks(plan.reads, limits.chunk))


def batches(
    table: Table, split: Split, shard: Shard = Shard(), limits: Limits | None = None
) -> Iterator[Batch]:
    """The rows of one shard of a split: every ``shard.count``-th chunk of the spine."""
    number = SPLITS.index(split)
    limits = limits or Limits(chunk=65_536)
    with engine(limits) as running:
        schema = table.schema
        plan = compile_plan(table, schema.names, running, limits)
        chunks = enumerate(plan.spine.chunks(plan.reads, limits.chunk))
        if plan.stateful:
            found = enumerate(plan.over(chunk for _, chunk in chunks))
            mine = (rows for position, rows in found if position % shard.count == shard.index)
        else:
            own = (chunk for position, chunk in chunks if position % shard.count == shard.index)
            mine = plan.over(own)
        for rows in mine:
            rows = rows.filter(pc.equal(rows[SPLIT], number))
            if len(rows):
                yield Batch.from_arrow(rows.select(schema.names), schema)
