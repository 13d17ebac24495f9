"""The engine that counts values in SQL over Parquet files, each column read once.

A column of few distinct values is grouped by value, which DuckDB does on the dictionaries of the
Parquet file, and every statistic of it follows from the counts. A numeric column of many values
flows through Arrow in the order of the files instead. Neither depends on how the work fell on
threads, so that the same data gives the same statistics to the last bit; DuckDB's own parallel
``avg`` and ``var_pop`` do not.
"""

import dataclasses
import errno
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from drivetrain.core.metric import Emit, Progress, silent
from drivetrain.core.need import need
from drivetrain.core.schema import MISSING_INT, Field, Schema
from drivetrain.core.seams import Source, Tabular
from drivetrain.core.statistic import Distinct, Moments, Quantiles, Statistic, TopK
from drivetrain.features.engines.streaming import Streaming, report

if TYPE_CHECKING:
    import pyarrow as pa

    from drivetrain.core.batch import Array
    from drivetrain.core.measured import Fitted, Value

SAMPLE = 65_536
FEW = 16_384
"""A numeric column with at most this many distinct values in its first ``SAMPLE`` is grouped."""
MANY = 1 << 20
"""A grouped column that turns out to have more distinct values than this flows after all."""
CHUNK = 65_536
_NOT_DECLARED = {"declared": False}
"""What it may use changes no statistic, and so no digest that follows from them."""


@dataclass(frozen=True)
class DuckDB:
    """Computes statistics over a source's Parquet files; other sources are streamed.

    Attributes:
        memory: the most memory DuckDB takes before it spills to a temporary directory.
        threads: 0 for one a core.
    """

    memory: str = dataclasses.field(default="1GB", metadata=_NOT_DECLARED)
    threads: int = dataclasses.field(default=0, metadata=_NOT_DECLARED)

    def aggregate(
        self, source: Source, statistics: Sequence[Statistic], emit: Emit = silent
    ) -> "Fitted":
        """The value of each statistic over the split ``train``, each column read once.

        Raises:
            ValueError: a statistic names a column that is absent or of a wrong type, or a file
                is no Parquet or damaged.
            OSError: no space is left to spill to.
        """
        from drivetrain.features.engines.accumulate import check

        check(statistics, source.schema)
        files = [str(file) for file in source.files("train")] if isinstance(source, Tabular) else []
        if not files or not statistics:
            return Streaming().aggregate(source, statistics, emit)
        began = time.perf_counter()
        with self._connect() as connection:
            table = _Table(connection, files, source.schema, statistics)
            fitted = table.fit(emit)
            if table.foreign:
                fitted |= Streaming().aggregate(source, table.foreign)
            report(emit, time.perf_counter() - began, table.rows)
        return {statistic: fitted[statistic] for statistic in statistics}

    @contextmanager
    def _connect(self) -> Iterator[Any]:
        duckdb = need("duckdb", "data")
        with tempfile.TemporaryDirectory(prefix="drivetrain-duckdb-") as spill:
            config: dict[str, Any] = {"memory_limit": self.memory, "temp_directory": spill}
            if self.threads:
                config["threads"] = self.threads
            try:
                with duckdb.connect(config=config) as connection:
                    yield connection
            except duckdb.OutOfMemoryException as error:
                raise ValueError(f"DuckDB(memory={self.memory!r}) is too little: {error}") from None
            except duckdb.Error as error:
                if "No space left" in str(error):
                    raise OSError(errno.ENOSPC, f"no space left to spill to: {error}") from None
                raise ValueError(f"the statistics can't be computed: {error}") from None


class _Table:
    """The Parquet files of one split, and what is asked of their columns.

    Attributes:
        rows: how many there are.
        foreign: statistics of columns that SQL would not read as :mod:`drivetrain.core.batch`.
    """

    def __init__(
        self, connection: Any, files: list[str], schema: Schema, statistics: Sequence[Statistic]
    ) -> None:
        self._connection = connection
        # A folder that is called like k=7 would otherwise put 7 in the place of the column k.
        listed = ", ".join(_text(file) for file in files)
        self._source = f"read_parquet([{listed}], hive_partitioning = false)"
        described = connection.execute(f"DESCRIBE SELECT * FROM {self._source}").fetchall()
        kinds = {name: kind for name, kind, *_ in described}
        self.rows: int = self._row(f"SELECT count(*) FROM {self._source}")[0]
        self._asked: dict[str, list[Statistic]] = {}
        self._value: dict[str, str] = {}
        self.foreign: list[Statistic] = []
        for statistic in dict.fromkeys(statistics):
            name = statistic.column
            value = _value(schema.field(name), kinds.get(name))
            if value is None:
                self.foreign.append(statistic)
            else:
                self._asked.setdefault(name, []).append(statistic)
                self._value[name] = value

    def fit(self, emit: Emit) -> "dict[Statistic, Value]":
        """The value of every statistic that is not foreign."""
        fitted: dict[Statistic, Value] = {}
        for name in self._grouped():
            fitted |= self._count(name)
            self._tell(emit, self.rows * len({statistic.column for statistic in fitted}))
        flowing = [s for asked in self._asked.values() for s in asked if s not in fitted]
        if flowing:
            fitted |= self._flow(flowing, emit)
        return fitted

    def _grouped(self) -> list[str]:
        """Columns to group by value: where counts are asked for, and where values are few."""
        counted = [
            n for n, a in self._asked.items() if any(isinstance(s, TopK | Distinct) for s in a)
        ]
        others = [name for name in self._asked if name not in counted]
        if not others:
            return counted
        distinct = ", ".join(f"count(DISTINCT {_name(name)})" for name in others)
        names = ", ".join(map(_name, others))
        first = f"(SELECT {names} FROM {self._source} LIMIT {SAMPLE})"
        found = self._row(f"SELECT {distinct} FROM {first}")
        return counted + [name for name, n in zip(others, found, strict=True) if n <= FEW]

    def _count(self, name: str) -> "dict[Statistic, Value]":
        """Statistics of one column out of how often each value occurs."""
        self._connection.execute(
            f"CREATE OR REPLACE TEMP TABLE counted AS SELECT {self._value[name]} AS value, "
            f"count(*) AS n FROM {self._source} GROUP BY value"
        )
        fitted: dict[Statistic, Value] = {}
        numeric: list[Moments | Quantiles] = []
        for statistic in self._asked[name]:
            match statistic:
                case TopK():
                    fitted[statistic] = self._top(statistic)
                case Distinct():
                    fitted[statistic] = self._registers()
                case _:
                    numeric.append(statistic)
        if numeric and self._row("SELECT count(*) FROM counted")[0] <= MANY:
            fitted |= self._numbers(numeric)
        return fitted

    def _top(self, statistic: TopK) -> "Value":
        from drivetrain.core.sketch import Counts

        missing, present = self._row(
            "SELECT coalesce(sum(n) FILTER (value IS NULL), 0), "
            "coalesce(sum(n) FILTER (value IS NOT NULL), 0) FROM counted"
        )
        pairs = self._connection.execute(
            "SELECT value, n FROM counted WHERE value IS NOT NULL "
            f"ORDER BY n DESC, value LIMIT {int(statistic.capacity)}"
        ).fetchall()
        others = int(present) - sum(count for _, count in pairs)
        return Counts(tuple(pairs), int(missing), others, statistic.capacity)

    def _registers(self) -> "Value":
        from drivetrain.core.sketch import REGISTERS, DistinctSketch

        # The sketch keeps of a hash its register and the lowest bit set in the rest: one hash for
        # each pair is enough, however many values there are.
        rest = f"((hash >> 12) | {1 << 52}::UBIGINT)"
        lowest = f"xor({rest}, {rest} & ({rest} - 1))"
        found = self._connection.execute(
            "SELECT min(hash) AS hash FROM "
            "(SELECT md5_number_lower(CAST(value AS VARCHAR)) AS hash FROM counted "
            f"WHERE value IS NOT NULL) GROUP BY hash & {REGISTERS - 1}, {lowest}"
        ).fetchnumpy()
        return DistinctSketch.of_hashes(found["hash"].astype("uint64"))

    def _numbers(self, statistics: "list[Moments | Quantiles]") -> "dict[Statistic, Value]":
        from drivetrain.core.measured import mapped
        from drivetrain.core.sketch import MomentsValue, QuantileSketch

        # Zero is added because minus zero and zero are one group, and which names it is chance.
        found = self._connection.execute(
            "SELECT coalesce(CAST(value AS DOUBLE) + 0.0, 'nan'::DOUBLE) AS x, n FROM counted "
            "ORDER BY x"
        ).fetchnumpy()
        values, counts = found["x"], found["n"].astype("int64")
        return {
            statistic: MomentsValue.of(mapped(values, statistic.of), counts)
            if isinstance(statistic, Moments)
            else QuantileSketch.of(values, counts)
            for statistic in statistics
        }

    def _flow(self, statistics: list[Statistic], emit: Emit) -> "dict[Statistic, Value]":
        """Statistics of columns of many values, batch by batch in the order of the files."""
        from drivetrain.features.engines.accumulate import accumulator

        states = {statistic: accumulator(statistic) for statistic in statistics}
        names = list(dict.fromkeys(statistic.column for statistic in statistics))
        columns = ", ".join(
            f"coalesce(CAST({self._value[name]} AS DOUBLE), 'nan'::DOUBLE) AS {_name(name)}"
            for name in names
        )
        reader = self._connection.sql(f"SELECT {columns} FROM {self._source}")
        done = (len(self._asked) - len(names)) * self.rows
        with ThreadPoolExecutor(thread_name_prefix="drivetrain-fit") as pool:
            for chunk in _chunks(reader.to_arrow_reader(CHUNK), len(names)):
                numbers = dict(zip(names, chunk, strict=True))
                tasks = [pool.submit(a.add, numbers[s.column]) for s, a in states.items()]
                for task in tasks:
                    task.result()
                done += chunk.size
                self._tell(emit, done)
        return {statistic: state.value() for statistic, state in states.items()}

    def _tell(self, emit: Emit, done: int) -> None:
        total = self.rows * len(self._asked)
        emit(Progress(stage="features", done=done, total=total, unit="values"))

    def _row(self, query: str) -> tuple[Any, ...]:
        return self._connection.execute(query).fetchall()[0]


def _chunks(batches: "Iterable[pa.RecordBatch]", width: int) -> "Iterator[Array]":
    """Float64 columns ``[width, CHUNK]``, the last one shorter, in one buffer that is reused.

    DuckDB cuts its batches at other rows when it has other threads; sums that are to be the same
    to the last bit must not.
    """
    import numpy as np

    chunk = np.empty((width, CHUNK))
    filled = 0
    for batch in batches:
        columns = [column.to_numpy() for column in batch.columns]
        start = 0
        while start < batch.num_rows:
            taken = min(CHUNK - filled, batch.num_rows - start)
            for row, column in zip(chunk, columns, strict=True):
                row[filled : filled + taken] = column[start : start + taken]
            start, filled = start + taken, filled + taken
            if filled == CHUNK:
                yield chunk
                filled = 0
    if filled:
        yield chunk[:, :filled]


def _value(field: Field, kind: str | None) -> str | None:
    """The SQL of a column's value as a batch would hold it, NULL where it is missing.

    None where SQL has no such expression: lists, decimals and columns that are declared as
    another type than the file has.
    """
    column = _name(field.name)
    integer = field.dtype in ("int64", "timestamp")
    templates = _VALUE.get(field.dtype, {})
    if field.shape or kind is None or kind not in templates:
        return None
    value = templates[kind].format(column)
    if integer:
        return f"nullif({value}, CAST({MISSING_INT} AS BIGINT))"
    return f"nullif({value}, '')" if field.dtype == "string" else value


_WHOLE = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER")
_VALUE: Mapping[str, Mapping[str, str]] = {
    "string": {"VARCHAR": "{}"},
    "int64": dict.fromkeys((*_WHOLE, "UBIGINT", "BOOLEAN"), "CAST({} AS BIGINT)"),
    "float32": {"FLOAT": "{}"},
    "float64": dict.fromkeys((*_WHOLE, "FLOAT", "DOUBLE"), "CAST({} AS DOUBLE)"),
    "timestamp": {
        **dict.fromkeys(("TIMESTAMP", "TIMESTAMP WITH TIME ZONE"), "epoch_us({})"),
        "TIMESTAMP_NS": "epoch_ns({}) // 1000",
        "DATE": "epoch_us(CAST({} AS TIMESTAMP))",
    },
}


def _name(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
