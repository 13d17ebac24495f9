"""A table as a plan: files, and the cleaning, joins and split that its rows go through.

A table is a value: declaring one reads nothing. The leftmost files of a plan are its *spine*;
their rows are streamed in order, a chunk at a time; every step but ``drop_duplicates`` and
``with_windows`` sees one row by itself. So memory is bounded, and a stream can take the same plan.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from drivetrain.core.errors import wrong
from drivetrain.core.schema import Field, Schema
from drivetrain.core.seams import Shard, Split
from drivetrain.events.dialect import operators
from drivetrain.events.dialect.sql import Dialect, quote
from drivetrain.events.expression import Expression, Value, lift
from drivetrain.events.split import SPLIT, Division

if TYPE_CHECKING:
    import pyarrow as pa

    from drivetrain.core.batch import Batch
    from drivetrain.core.window import Length, Window

Keys: TypeAlias = str | Sequence[str] | Mapping[str, str]
"""Key columns: one name, several, or ``{left: right}`` where the two tables name them apart."""


@dataclass(frozen=True, eq=False)
class Table:
    """Rows that a plan gives; files are tables, and each method gives a new one.

    A table is itself a ``core.seams.Source``. Without a ``split`` its rows are split by a hash
    of all columns.
    """

    # -- steps -----------------------------------------------------------------------------------

    def where(self, condition: Expression) -> "Table":
        """Only the rows for which ``condition`` is true; a null one drops the row."""
        if not isinstance(condition, Expression):
            raise wrong("where", condition, "an expression, such as col('distance') > 0")
        return Where(self, condition)

    def with_columns(self, **columns: Value) -> "Table":
        """Columns added or replaced, each computed from the columns as they were before."""
        return WithColumns(self, tuple((name, lift(value)) for name, value in columns.items()))

    def select(self, *names: str) -> "Table":
        """Only these columns, in this order."""
        return Select(self, _names("select", names))

    def drop(self, *names: str) -> "Table":
        """All columns but these."""
        return Drop(self, _names("drop", names))

    def rename(self, **columns: str) -> "Table":
        """Columns under new names: ``rename(new="old")``."""
        return Rename(self, tuple(columns.items()))

    def drop_nulls(self, *names: str) -> "Table":
        """Only the rows that have a value, neither null nor NaN, in each of ``names``.

        Without names: in every column.
        """
        return DropNulls(self, _names("drop_nulls", names))

    def drop_duplicates(self, *by: str) -> "Table":
        """The first row, in order, for each combination of values of ``by`` (default: all columns).

        The keys seen so far are kept (and spill to disk past the memory limit): the one step
        whose state grows with the rows. Nulls are equal to each other here.
        """
        return DropDuplicates(self, _names("drop_duplicates", by))

    def join(
        self,
        other: "Table",
        on: Keys,
        *,
        how: Literal["left", "inner"] = "left",
        columns: Sequence[str] | None = None,
        suffix: str = "",
    ) -> "Table":
        """Columns of the one row of ``other`` that has the same key.

        Each key occurs at most once in ``other``, or reading is an error that names it: a join
        never multiplies rows. A null key matches nothing.

        Args:
            other: the table that is looked up; held in memory, by the engine if it is large.
            on: the key columns.
            how: ``left`` keeps a row without a match, with nulls; ``inner`` drops it.
            columns: which columns of ``other`` are added; None adds all but its keys.
            suffix: appended to a name that this table has already.
        """
        from drivetrain.events.join import Join, pairs

        return Join(self, other, _chosen(columns), suffix, pairs("join", on), how)

    def join_asof(
        self,
        other: "Table",
        time: str | tuple[str, str],
        *,
        by: Keys = (),
        strict: bool = True,
        tolerance: timedelta | None = None,
        columns: Sequence[str] | None = None,
        suffix: str = "",
    ) -> "Table":
        """Columns of the last row of ``other`` before this row's time, nulls where there is none.

        Never one after it: what was not known yet does not leak in. Of several rows of ``other``
        with that key and time, the last in order counts.

        Args:
            other: the observations; held in memory.
            time: the timestamp columns, this table's and the other's.
            by: key columns that must be equal.
            strict: only times before; False takes an equal time too.
            tolerance: how old an observation may be; None allows any age.
            columns: which columns of ``other`` are added; None adds all but its keys and time.
            suffix: appended to a name that this table has already.
        """
        from drivetrain.events.join import AsOfJoin, pairs

        left, right = (time, time) if isinstance(time, str) else time
        if tolerance is not None and tolerance < timedelta(0):
            raise wrong("join_asof tolerance", tolerance, "a length of time that is not negative")
        age = None if tolerance is None else tolerance // timedelta(microseconds=1)
        keys = pairs("join_asof", by, empty=True)
        return AsOfJoin(self, other, _chosen(columns), suffix, (left, right), keys, strict, age)

    def with_windows(
        self, *, time: str | None = None, lateness: "Length | None" = None, **columns: "Window"
    ) -> "Table":
        """Columns that earlier rows with the same key give, each a ``Window``.

        Each row of this step is asked at its time and observed from when it was known, whatever
        their order. All are read before one goes on; those of a stream see what came before them.

        Args:
            time: the timestamp column at which a row is asked; None takes the files' own.
            lateness: how much too late an observation of a stream may come; None: none may.
        """
        from drivetrain.events.windows import WithWindows, declared

        return WithWindows(self, declared(self, time, lateness, columns))

    def split(self, by: Division) -> "Table":
        """Each row assigned to train, validate or test, by its values at this step."""
        if not isinstance(by, Division):
            raise wrong("split", by, "a TimeSplit, a HashSplit or a ColumnSplit")
        if any(isinstance(step, Assign) for step in self.chain()[1]):
            raise ValueError("split: found a second one, allowed: one split in a plan.")
        return Assign(self, by)

    # -- the plan --------------------------------------------------------------------------------

    @property
    def time(self) -> str | None:
        """The column that says when a row happened, as the spine declares it."""
        return self.chain()[0].time

    def chain(self) -> "tuple[Leaf, tuple[Step, ...]]":
        """The spine and the steps on it, first to last.

        Raises:
            ValueError: it does not start from rows that lie somewhere.
        """
        steps: list[Step] = []
        table: Table = self
        while isinstance(table, Step):
            steps.append(table)
            table = table.source
        if not isinstance(table, Leaf):
            raise wrong("a table", type(table).__name__, "one that starts from files or a topic")
        return table, tuple(reversed(steps))

    @property
    def schema(self) -> Schema:
        """The columns after the last step; reads the heads of the files.

        Raises:
            ValueError: a step names a column that is not there (suggests the nearest) or applies
                an operator to a type that it doesn't take; a file is empty or torn.
            OSError: a file is absent or may not be read.
        """
        leaf, steps = self.chain()
        schema = leaf.schema
        for step in steps:
            schema = step.output(schema)
        return schema

    def batches(self, split: Split, shard: Shard = Shard()) -> Iterator["Batch"]:
        """The rows of one shard of a split, streamed through the plan in order.

        Shards are disjoint and together complete. Reading the same rows again and again is what
        ``events.prepared.prepare`` is for.
        """
        from drivetrain.events.plan import batches

        return batches(self, split, shard)


@dataclass(frozen=True, eq=False)
class Leaf(Table):
    """Where a plan's rows come from: files, a table of a lake, a topic.

    Attributes:
        time: the column that says when a row happened, if any.
    """

    _: KW_ONLY
    time: str | None = None  # pyright: ignore[reportIncompatibleMethodOverride]

    def chunks(self, schema: Schema, rows: int) -> "Iterator[pa.Table]":
        """All rows there are now, in a fixed order, in tables of at most ``rows`` rows.

        Args:
            schema: which columns, and their types.
            rows: at most so many rows a table, fewer where they are wide.

        Raises:
            ValueError: what is read is damaged, or a column is absent or of another type.
            OSError: it is absent or may not be read.
        """
        raise AssertionError(type(self))

    def count(self) -> int | None:
        """How many rows there are, where that is known without reading them."""
        return None

    def stamps(self) -> Sequence[tuple[str, str]]:
        """The parts that rows are read from, each with a text that changes when its rows do.

        Raises:
            OSError: a part is absent.
        """
        raise AssertionError(type(self))

    def pinned(self) -> "Leaf":
        """This leaf held to the rows that there are now, where others may follow.

        One that is held already, or whose rows nothing can hold, is itself.

        Raises:
            OSError: what is read is absent or may not be read.
        """
        return self

    def lineage(self) -> Mapping[str, Any]:
        """What names the rows of a pinned leaf in a bundle, as plain data; nothing by default.

        A table's last name and its version, a topic and its offsets: no folder, host or secret.
        """
        return {}

    def local_stamps(self) -> Sequence[tuple[str, int, int]] | None:
        """Path, size and time of change of every file; None unless all are local and there.

        Asked where nothing but the standard library may be imported.
        """
        return None


@dataclass(frozen=True, eq=False)
class Step(Table):
    """One step of a plan, applied to the table before it."""

    source: Table = field(repr=False)

    @property
    def label(self) -> str:
        """The step as it was written, for errors and notes."""
        return type(self).__name__.lower()

    def output(self, schema: Schema) -> Schema:
        """The columns after the step, given those before it.

        Raises:
            ValueError: the step does not fit the columns.
        """
        return schema

    def required(self, needed: frozenset[str], schema: Schema) -> frozenset[str]:
        """The columns before the step that give the ``needed`` ones after it."""
        return needed


@dataclass(frozen=True)
class Projection:
    """A row-wise step in SQL: each column's expression, and the condition that keeps a row."""

    columns: Mapping[str, str]
    where: str | None = None


@dataclass(frozen=True, eq=False)
class RowStep(Step):
    """A step that sees one row by itself and brings in nothing from elsewhere."""

    @property
    def drops(self) -> bool:
        """Whether the step may leave rows out."""
        return False

    def project(self, schema: Schema, keep: Sequence[str], dialect: Dialect) -> Projection:
        """The step in SQL, for the columns ``keep`` of its output."""
        return Projection({name: quote(name) for name in keep})


@dataclass(frozen=True, eq=False)
class Where(RowStep):
    """Keeps the rows for which a condition is true."""

    condition: Expression

    @property
    def label(self) -> str:
        return f"where({self.condition!r})"

    @property
    def drops(self) -> bool:
        return True

    def output(self, schema: Schema) -> Schema:
        operators.predicate(self.condition, schema, self.label, "duckdb")
        return schema

    def required(self, needed: frozenset[str], schema: Schema) -> frozenset[str]:
        return needed | operators.columns_of(self.condition)

    def project(self, schema: Schema, keep: Sequence[str], dialect: Dialect) -> Projection:
        condition = operators.predicate(self.condition, schema, self.label, dialect)
        return Projection({name: quote(name) for name in keep}, condition)


@dataclass(frozen=True, eq=False)
class WithColumns(RowStep):
    """Adds or replaces columns."""

    columns: tuple[tuple[str, Expression], ...]

    @property
    def label(self) -> str:
        return f"with_columns({', '.join(f'{name}={value!r}' for name, value in self.columns)})"

    def _one(self, name: str) -> str:
        return f"with_columns({name}={dict(self.columns)[name]!r})"

    def output(self, schema: Schema) -> Schema:
        fields = {f.name: f for f in schema}
        for name, value in self.columns:
            _, dtype = operators.column(value, schema, self._one(name), "duckdb")
            fields[name] = Field(name, dtype)
        return Schema(tuple(fields.values()))

    def required(self, needed: frozenset[str], schema: Schema) -> frozenset[str]:
        made = dict(self.columns)
        read = (operators.columns_of(made[name]) for name in needed if name in made)
        return (needed - made.keys()).union(*read)

    def project(self, schema: Schema, keep: Sequence[str], dialect: Dialect) -> Projection:
        made = dict(self.columns)
        columns = {name: quote(name) for name in keep}
        for name in keep:
            if name in made:
                sql, _ = operators.column(made[name], schema, self._one(name), dialect)
                columns[name] = sql
        return Projection(columns)


@dataclass(frozen=True, eq=False)
class Select(RowStep):
    """Keeps columns."""

    names: tuple[str, ...]

    def output(self, schema: Schema) -> Schema:
        return schema.select(self.names, "select")


@dataclass(frozen=True, eq=False)
class Drop(RowStep):
    """Leaves columns out."""

    names: tuple[str, ...]

    def output(self, schema: Schema) -> Schema:
        for name in self.names:
            schema.field(name, "drop")
        return Schema(tuple(f for f in schema if f.name not in self.names))


@dataclass(frozen=True, eq=False)
class Rename(RowStep):
    """Renames columns."""

    columns: tuple[tuple[str, str], ...]

    def output(self, schema: Schema) -> Schema:
        for _, old in self.columns:
            schema.field(old, "rename")
        new = {old: new for new, old in self.columns}
        return Schema(tuple(Field(new.get(f.name, f.name), f.dtype, f.shape) for f in schema))

    def required(self, needed: frozenset[str], schema: Schema) -> frozenset[str]:
        old = dict(self.columns)
        return frozenset(old.get(name, name) for name in needed)

    def project(self, schema: Schema, keep: Sequence[str], dialect: Dialect) -> Projection:
        old = dict(self.columns)
        return Projection({name: quote(old.get(name, name)) for name in keep})


@dataclass(frozen=True, eq=False)
class DropNulls(RowStep):
    """Keeps the rows that have a value in each of some columns, or in all."""

    names: tuple[str, ...]

    @property
    def label(self) -> str:
        return f"drop_nulls({', '.join(map(repr, self.names))})"

    @property
    def drops(self) -> bool:
        return True

    def output(self, schema: Schema) -> Schema:
        schema.select(self.names, self.label)
        return schema

    def required(self, needed: frozenset[str], schema: Schema) -> frozenset[str]:
        return needed | frozenset(self.names or schema.names)

    def project(self, schema: Schema, keep: Sequence[str], dialect: Dialect) -> Projection:
        tests = [f"{quote(name)} IS NOT NULL" for name in self.names or schema.names]
        return Projection({name: quote(name) for name in keep}, " AND ".join(tests) or None)


@dataclass(frozen=True, eq=False)
class DropDuplicates(Step):
    """Keeps the first row of each key."""

    by: tuple[str, ...]

    @property
    def label(self) -> str:
        return f"drop_duplicates({', '.join(map(repr, self.by))})"

    def output(self, schema: Schema) -> Schema:
        schema.select(self.by, self.label)
        return schema

    def required(self, needed: frozenset[str], schema: Schema) -> frozenset[str]:
        return needed | frozenset(self.by or schema.names)


@dataclass(frozen=True, eq=False)
class Assign(RowStep):
    """Says which split each row belongs to, in a column that only the engine sees."""

    by: Division

    def _expression(self, schema: Schema) -> Expression:
        return self.by.expression(schema, self.source.time)

    def output(self, schema: Schema) -> Schema:
        operators.column(self._expression(schema), schema, "split", "duckdb")
        return schema

    def required(self, needed: frozenset[str], schema: Schema) -> frozenset[str]:
        return (needed - {SPLIT}) | operators.columns_of(self._expression(schema))

    def project(self, schema: Schema, keep: Sequence[str], dialect: Dialect) -> Projection:
        columns = {name: quote(name) for name in keep if name != SPLIT}
        columns[SPLIT], _ = operators.column(self._expression(schema), schema, "split", dialect)
        return Projection(columns)


def _names(where: str, names: Sequence[str]) -> tuple[str, ...]:
    for name in names:
        if not isinstance(name, str):
            raise wrong(where, name, "names of columns, each an argument of its own")
        if list(names).count(name) > 1:
            raise ValueError(f"{where}: found {name!r} twice, allowed: each column once.")
    if where in ("select", "drop") and not names:
        raise wrong(where, names, "at least one name of a column")
    return tuple(names)


def _chosen(columns: Sequence[str] | None) -> tuple[str, ...] | None:
    if isinstance(columns, str):
        raise wrong("columns", columns, f"a sequence of names, such as ({columns!r},)")
    return None if columns is None else tuple(columns)
