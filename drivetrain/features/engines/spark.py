"""The engine that has Spark's executors read Parquet files and count; the driver merges.

It answers what the engine of DuckDB answers, to the last bit: counts and sketches merge exactly
whoever takes them, and sums are taken over the same chunks of rows and added in the same order.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

from drivetrain.core.metric import Emit, silent
from drivetrain.core.need import need
from drivetrain.core.seams import Source, Tabular
from drivetrain.core.site import EngineSite
from drivetrain.core.spark import session, told
from drivetrain.core.statistic import Distinct, Moments, Quantiles, Statistic, TopK
from drivetrain.features.engines.duckdb import FEW, MANY, SAMPLE
from drivetrain.features.engines.streaming import Streaming, report

if TYPE_CHECKING:
    from drivetrain.core.measured import Fitted, Value
    from drivetrain.features.engines.counting import Rows

TASKS = 16
"""The rows are divided among about so many tasks."""

_VALUE = "coalesce(text, CAST(whole AS STRING), CAST(real AS STRING))"


@dataclass(frozen=True)
class Spark:
    """Computes statistics over a source's Parquet files on Spark; other sources are streamed.

    Attributes:
        site: which Spark, and what it may use.
    """

    site: EngineSite = field(
        default_factory=lambda: EngineSite(kind="spark"), metadata={"declared": False}
    )

    def aggregate(
        self, source: Source, statistics: Sequence[Statistic], emit: Emit = silent
    ) -> "Fitted":
        """The value of each statistic over the split ``train``.

        The files must lie where the executors see them.

        Raises:
            ValueError: a statistic names a column that is absent or of a wrong type, or a file
                is no Parquet or damaged.
            ConnectionError: Spark's master does not answer, or gives no executor.
        """
        from drivetrain.features.engines.accumulate import check

        check(statistics, source.schema)
        files = list(source.files("train")) if isinstance(source, Tabular) else []
        if not files or not statistics:
            return Streaming().aggregate(source, statistics, emit)
        began = time.perf_counter()
        rows = _rows(files, source)
        with session(self.site) as spark, told():
            fitted = _Fit(spark, rows, list(dict.fromkeys(statistics))).run()
        report(emit, time.perf_counter() - began, rows.count)
        return {statistic: fitted[statistic] for statistic in statistics}


def _rows(files: Sequence[str], source: Source) -> "Rows":
    pa, pq = need("pyarrow", "data"), need("pyarrow.parquet", "data")
    from drivetrain.features.engines.counting import Rows

    found: list[tuple[str, list[int]]] = []
    for file in files:
        try:
            metadata = pq.read_metadata(file)
        except pa.ArrowInvalid as error:
            raise ValueError(f"the statistics can't be computed: {file}: {error}") from None
        groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        found.append((str(file), groups))
    return Rows(found, source.schema)


class _Fit:
    """The statistics of one source, by how each is computed."""

    def __init__(self, spark: Any, rows: "Rows", statistics: Sequence[Statistic]) -> None:
        self.spark, self.rows = spark, rows
        self.asked: dict[str, list[Statistic]] = {}
        self.shaped: list[Statistic] = []
        for statistic in statistics:
            if rows.schema.field(statistic.column).shape:
                self.shaped.append(statistic)
            else:
                self.asked.setdefault(statistic.column, []).append(statistic)

    def run(self) -> "dict[Statistic, Value]":
        """The value of each."""
        fitted = self._merged(self._as_they_lie(), self.shaped)
        grouped = self._grouped()
        if grouped:
            fitted |= self._count(grouped)
        flowing = [s for asked in self.asked.values() for s in asked if s not in fitted]
        fitted |= self._merged(self._flow(flowing), flowing)
        return fitted

    def _ranges(self) -> list[tuple[int, int]]:
        """The rows in parts that are whole chunks, but for the last."""
        from drivetrain.features.engines.counting import CHUNK

        step = CHUNK * max(1, math.ceil(self.rows.count / TASKS / CHUNK))
        return [(n, min(n + step, self.rows.count)) for n in range(0, self.rows.count, step)]

    def _on_executors(self, function: Callable[[int], Iterator[Any]], tasks: int, kind: str) -> Any:
        """A frame of what ``function`` gives for each task's number, as Arrow tables."""

        def run(batches: Iterator[Any]) -> Iterator[Any]:
            for batch in batches:
                for number in batch.column(0).to_pylist():
                    for table in function(number):
                        yield from table.combine_chunks().to_batches()

        return self.spark.range(0, tasks, 1, max(tasks, 1)).mapInArrow(run, kind)

    def _asked_of(self, function: Callable[[int], Any], tasks: int) -> list[Any]:
        """What ``function`` gives for each task's number, plain data, in order."""
        if not tasks:
            return []

        def as_text(number: int) -> Iterator[Any]:
            text = json.dumps(function(number))
            yield need("pyarrow", "data").table({"number": [number], "found": [text]})

        rows = self._on_executors(as_text, tasks, "number BIGINT, found STRING").collect()
        return [json.loads(text) for _, text in sorted(rows)]

    # -- by value ----------------------------------------------------------------------------------

    def _grouped(self) -> list[str]:
        """Columns to group by value, as the engine of DuckDB chooses them."""
        from drivetrain.features.engines.counting import first_values

        counted = [
            n for n, a in self.asked.items() if any(isinstance(s, TopK | Distinct) for s in a)
        ]
        others = [name for name in self.asked if name not in counted]
        if not others:
            return counted
        rows = self.rows
        (found,) = self._asked_of(lambda _: first_values(rows, others, SAMPLE), 1)
        return counted + [name for name in others if found[name] <= FEW]

    def _count(self, columns: list[str]) -> "dict[Statistic, Value]":
        from drivetrain.features.engines.counting import counts

        rows, ranges = self.rows, self._ranges()
        kind = "`column` BIGINT, text STRING, whole BIGINT, `real` DOUBLE, n BIGINT"
        parts = self._on_executors(lambda n: counts(rows, columns, *ranges[n]), len(ranges), kind)
        keys = [parts[name] for name in ("column", "text", "whole", "real")]
        counted = (
            parts.groupBy(*keys).sum("n").toDF("column", "text", "whole", "real", "n").persist()
        )
        try:
            sizes = dict(map(tuple, counted.groupBy("column").count().collect()))
            fitted: dict[Statistic, Value] = {}
            for position, name in enumerate(columns):
                mine = counted.filter(f"column = {position}")
                column = _Counted(mine, sizes.get(position, 0), self._kind(name))
                fitted |= column.fit(self.asked[name])
            return fitted
        finally:
            counted.unpersist()

    def _kind(self, column: str) -> str:
        dtype = self.rows.schema.field(column).dtype
        return {"string": "text", "float32": "real", "float64": "real"}.get(dtype, "whole")

    # -- by row ------------------------------------------------------------------------------------

    def _flow(self, statistics: Sequence[Statistic]) -> list[Any]:
        from drivetrain.features.engines.counting import flow

        rows, ranges = self.rows, self._ranges()
        columns = {s.column: [t for t in statistics if t.column == s.column] for s in statistics}
        tasks = [(asked, start, stop) for asked in columns.values() for start, stop in ranges]
        return self._asked_of(lambda n: flow(rows, *tasks[n]), len(tasks))

    def _as_they_lie(self) -> list[Any]:
        from drivetrain.features.engines.counting import as_they_lie

        if not self.shaped:
            return []
        rows, shaped = self.rows, self.shaped
        ends = list(accumulate(n for _, groups in rows.files for n in groups))
        step = math.ceil(len(ends) / TASKS) if ends else 1
        bounds = [0, *ends[step - 1 :: step]]
        bounds += [ends[-1]] if ends and bounds[-1] != ends[-1] else []
        ranges = list(pairwise(bounds))
        return self._asked_of(lambda n: as_they_lie(rows, shaped, *ranges[n]), len(ranges))

    def _merged(
        self, parts: list[Any], statistics: Sequence[Statistic]
    ) -> "dict[Statistic, Value]":
        """Values over parts, in the order of the rows."""
        import numpy as np

        from drivetrain.core.measured import from_json
        from drivetrain.core.sketch import MomentsValue, QuantileSketch

        merged: dict[Statistic, Any] = {
            s: MomentsValue() if isinstance(s, Moments) else QuantileSketch.of(np.empty(0))
            for s in statistics
        }
        for part in parts:
            for item in part:
                ((statistic, value),) = from_json([item]).items()
                merged[statistic] = merged[statistic].merge(value)
        return merged


@dataclass(frozen=True)
class _Counted:
    """How often each value of one column occurs, in a frame.

    Attributes:
        rows: a value each, with ``n``.
        size: how many there are, a missing one counted.
        kind: the column that holds the values.
    """

    rows: Any
    size: int
    kind: str

    def fit(self, statistics: Sequence[Statistic]) -> "dict[Statistic, Value]":
        """All but the numeric ones of a column of too many values."""
        few = self.size <= MANY
        held = self._held(self.rows) if few else None
        fitted: dict[Statistic, Value] = {}
        for statistic in statistics:
            if isinstance(statistic, TopK):
                fitted[statistic] = self._top(statistic, held)
            elif isinstance(statistic, Distinct):
                fitted[statistic] = self._registers(held)
            elif held is not None:
                fitted[statistic] = self._numbers(statistic, held)
        return fitted

    def _held(self, rows: Any) -> dict[Any, int]:
        found = rows.select(self.kind, "n").toArrow()
        return dict(zip(found[0].to_pylist(), found[1].to_pylist(), strict=True))

    def _top(self, statistic: TopK, held: dict[Any, int] | None) -> "Value":
        from drivetrain.core.sketch import Counts

        present = self.rows.filter(f"{self.kind} IS NOT NULL")
        if held is None:
            most = present.orderBy(present["n"].desc(), present[self.kind]).limit(
                statistic.capacity
            )
            missing, total = self.rows.selectExpr(
                f"coalesce(sum(CASE WHEN {self.kind} IS NULL THEN n END), 0)",
                f"coalesce(sum(CASE WHEN {self.kind} IS NOT NULL THEN n END), 0)",
            ).collect()[0]
            pairs = self._held(most)
        else:
            pairs = {value: n for value, n in held.items() if value is not None}
            missing, total = held.get(None, 0), sum(pairs.values())
        cut = Counts.of(pairs.items(), int(missing), statistic.capacity)
        others = int(total) - sum(n for _, n in cut.values)
        return Counts(cut.values, cut.missing, others, statistic.capacity)

    def _registers(self, held: dict[Any, int] | None) -> "Value":
        import numpy as np

        from drivetrain.core.sketch import DistinctSketch

        if held is not None:
            return _sketch(str(value) for value in held if value is not None)
        texts = self.rows.selectExpr(f"{_VALUE} AS value").filter("value IS NOT NULL")
        parts = texts.mapInArrow(_registers_of, "registers BINARY").collect()
        sketch = _sketch(())
        for (registers,) in parts:
            sketch = sketch.merge(DistinctSketch(np.frombuffer(registers, dtype=np.uint8)))
        return sketch

    def _numbers(self, statistic: Moments | Quantiles, held: dict[Any, int]) -> "Value":
        import numpy as np

        from drivetrain.core.measured import mapped
        from drivetrain.core.sketch import MomentsValue, QuantileSketch

        values = np.array([np.nan if value is None else value for value in held], dtype=np.float64)
        counts = np.array(list(held.values()), dtype=np.int64)
        order = np.argsort(values, kind="stable")
        values, counts = values[order], counts[order]
        if isinstance(statistic, Moments):
            return MomentsValue.of(mapped(values, statistic.of), counts)
        return QuantileSketch.of(values, counts)


def _sketch(texts: Any) -> Any:
    import numpy as np

    from drivetrain.core.sketch import REGISTERS, DistinctSketch, text_hash

    hashes = np.fromiter(map(text_hash, texts), dtype=np.uint64)
    return (
        DistinctSketch.of_hashes(hashes)
        if len(hashes)
        else DistinctSketch(np.zeros(REGISTERS, dtype=np.uint8))
    )


def _registers_of(batches: Iterator[Any]) -> Iterator[Any]:
    sketch = _sketch(())
    for batch in batches:
        sketch = sketch.merge(_sketch(batch.column(0).to_pylist()))
    yield need("pyarrow", "data").RecordBatch.from_pydict(
        {"registers": [sketch.registers.tobytes()]}
    )
