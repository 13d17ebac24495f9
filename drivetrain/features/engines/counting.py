"""What Spark's executors do for statistics: they read parts of Parquet files and count."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from drivetrain.core.batch import Batch
from drivetrain.core.measured import as_numbers, mapped, measure, to_json
from drivetrain.core.schema import Schema
from drivetrain.core.sketch import MomentsValue
from drivetrain.core.statistic import Moments, Quantiles, Statistic
from drivetrain.features.engines.accumulate import accumulator, distinct

CHUNK = 65_536
"""Sums are taken over so many rows at a time, as the engine of DuckDB takes them."""


@dataclass(frozen=True)
class Rows:
    """Rows ``start`` to ``stop`` of files that lie one after another.

    Attributes:
        files: each with the rows of its row groups.
        schema: the columns as they are declared.
    """

    files: Sequence[tuple[str, Sequence[int]]]
    schema: Schema

    @property
    def count(self) -> int:
        """How many there are in all."""
        return sum(sum(groups) for _, groups in self.files)

    def groups(self, start: int, stop: int, columns: Sequence[str]) -> Iterator[Batch]:
        """Them as they lie, row group by row group."""
        schema = self.schema.select(columns)
        first = 0
        for path, groups in self.files:
            if first >= stop or first + sum(groups) <= start:
                first += sum(groups)
                continue
            with pq.ParquetFile(path, pre_buffer=False) as file:
                for number, rows in enumerate(groups):
                    low, high = max(start, first), min(stop, first + rows)
                    if low < high:
                        table = file.read_row_group(number, columns=list(columns))
                        yield Batch.from_arrow(table.slice(low - first, high - low), schema)
                    first += rows

    def numbers(self, column: str, start: int, stop: int) -> Iterator[Any]:
        """A numeric column in pieces of :data:`CHUNK` rows, float64."""
        held = np.empty(CHUNK)
        filled = 0
        for batch in self.groups(start, stop, [column]):
            values = as_numbers(batch.column(column))
            begin = 0
            while begin < len(values):
                taken = min(CHUNK - filled, len(values) - begin)
                held[filled : filled + taken] = values[begin : begin + taken]
                begin, filled = begin + taken, filled + taken
                if filled == CHUNK:
                    yield held
                    filled = 0
        if filled:
            yield held[:filled]


def first_values(rows: Rows, columns: Sequence[str], most: int) -> dict[str, int]:
    """How many distinct values each column has in its first rows."""
    values: dict[str, list[Any]] = {name: [] for name in columns}
    for batch in rows.groups(0, min(most, rows.count), columns):
        for name in columns:
            numbers = as_numbers(batch.column(name))
            values[name].append(numbers[~np.isnan(numbers)])
    return {n: len(np.unique(np.concatenate(v))) if v else 0 for n, v in values.items()}


COUNTED = ("column", "text", "whole", "real", "n")
"""How often a value of a column occurs; it is a text, an integer, a float or, in none, missing."""


def counts(rows: Rows, columns: Sequence[str], start: int, stop: int) -> Iterator[pa.Table]:
    """How often each value of each column occurs in some rows; columns by their positions."""
    for position, column in enumerate(columns):
        found: dict[Any, int] = {}
        missing = 0
        field = rows.schema.field(column)
        real = field.dtype in ("float32", "float64")
        for batch in rows.groups(start, stop, [column]):
            values, times, absent = (
                _reals(batch[column]) if real else distinct(batch.column(column))
            )
            missing += absent
            for value, n in zip(values, times, strict=True):
                found[value] = found.get(value, 0) + n
        kind = "real" if real else "text" if field.dtype == "string" else "whole"
        values = {name: list(found) if name == kind else None for name in _KINDS}
        yield _counted(position, values, list(found.values()))
        if missing:
            yield _counted(position, dict.fromkeys(_KINDS), [missing])


_KINDS = {"text": pa.string(), "whole": pa.int64(), "real": pa.float64()}


def _counted(column: int, values: Mapping[str, Any], times: Sequence[int]) -> pa.Table:
    rows = len(times)
    made = {
        name: pa.nulls(rows, kind) if values[name] is None else pa.array(values[name], kind)
        for name, kind in _KINDS.items()
    }
    numbers = pa.array([column] * rows, pa.int64())
    return pa.table({"column": numbers, **made, "n": pa.array(times, pa.int64())})


def _reals(column: Any) -> tuple[list[float], list[int], int]:
    # Minus zero and zero are one value, and it is zero that names it.
    numbers = as_numbers(column) + 0.0
    absent = np.isnan(numbers)
    values, times = np.unique(numbers[~absent], return_counts=True)
    return values.tolist(), times.tolist(), int(absent.sum())


def flow(rows: Rows, statistics: Sequence[Statistic], start: int, stop: int) -> list[Any]:
    """Statistics of a numeric column of many values over some rows, as plain data.

    A quantile sketch is that of all these rows, moments are those of each chunk: sketches merge in
    any order, while sums have to be added in that of the rows.
    """
    (column,) = {statistic.column for statistic in statistics}
    sketches = {s: accumulator(s) for s in statistics if isinstance(s, Quantiles)}
    moments = [s for s in statistics if isinstance(s, Moments)]
    found: list[Any] = []
    for chunk in rows.numbers(column, start, stop):
        for sketch in sketches.values():
            sketch.add(chunk)
        for statistic in moments:
            found += to_json({statistic: MomentsValue.of(mapped(chunk, statistic.of))})
    return to_json({statistic: sketch.value() for statistic, sketch in sketches.items()}) + found


def as_they_lie(rows: Rows, statistics: Sequence[Statistic], start: int, stop: int) -> list[Any]:
    """Statistics of each row group: of columns with a shape, which are read so elsewhere too."""
    columns = list(dict.fromkeys(statistic.column for statistic in statistics))
    found: list[Any] = []
    for batch in rows.groups(start, stop, columns):
        found += to_json({statistic: measure(statistic, batch) for statistic in statistics})
    return found
