"""Fitted statistics: measured over a batch, merged, cut, and as plain data."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import numpy as np

from drivetrain.core.batch import Array, Batch, Categorical
from drivetrain.core.schema import MISSING_INT
from drivetrain.core.sketch import Counts, DistinctSketch, MomentsValue, QuantileSketch, text_hash
from drivetrain.core.statistic import Distinct, Map, Moments, Quantiles, Statistic, TopK

Value = MomentsValue | QuantileSketch | Counts | DistinctSketch
Fitted = Mapping[Statistic, Value]


def measure(statistic: Statistic, batch: Batch) -> Value:
    """The value of a statistic over one batch, in memory: what every engine must agree with."""
    column = batch.column(statistic.column)
    match statistic:
        case Moments():
            return MomentsValue.of(mapped(as_numbers(column), statistic.of))
        case Quantiles():
            return QuantileSketch.of(as_numbers(column))
        case TopK():
            values, counts, missing = _count(column)
            pairs = zip(values.tolist(), counts.tolist(), strict=True)
            return Counts.of(pairs, missing, statistic.capacity)
        case Distinct():
            values, _, _ = _count(column)
            hashes = [text_hash(str(value)) for value in values.tolist()]
            return DistinctSketch.of_hashes(np.array(hashes, dtype=np.uint64))


def merge(left: Fitted, right: Fitted) -> Fitted:
    """Values of the same statistics over two sets of rows, as those over both."""
    if left.keys() != right.keys():
        raise ValueError("values merge when they answer the same statistics; found different ones")
    return {s: cast(Any, left[s]).merge(right[s]) for s in left}


def mapped(numbers: Array, of: Map) -> Array:
    """What moments are taken of: the numbers, or their signed logarithm."""
    return numbers if of == "identity" else np.sign(numbers) * np.log1p(np.abs(numbers))


def as_numbers(column: Array | Categorical) -> Array:
    """A numeric column as float64, missing integers as NaN."""
    assert not isinstance(column, Categorical), "a string column has no moments"
    if column.dtype != np.int64:
        return column.astype(np.float64).reshape(-1)
    flat = column.reshape(-1)
    return np.where(flat == MISSING_INT, np.nan, flat.astype(np.float64))


def _count(column: Array | Categorical) -> tuple[Array, Array, int]:
    if isinstance(column, Categorical):
        found = np.bincount(column.codes, minlength=len(column.values))
        total: dict[Any, int] = {}
        for value, count in zip(column.values.tolist(), found.tolist(), strict=True):
            if count:
                total[value] = total.get(value, 0) + count
        values = np.array(list(total), dtype=object)
        counts = np.array(list(total.values()), dtype=np.int64)
    else:
        values, counts = np.unique(column, return_counts=True)
    absent = values == ("" if values.dtype == object else MISSING_INT)
    return values[~absent], counts[~absent], int(counts[absent].sum())


_STATISTICS: Mapping[str, type[Statistic]] = {
    kind.__name__: kind for kind in (Moments, Quantiles, TopK, Distinct)
}
_VALUES: Mapping[str, Callable[[Any], Value]] = {
    "Moments": MomentsValue.from_json,
    "Quantiles": QuantileSketch.from_json,
    "TopK": Counts.from_json,
    "Distinct": DistinctSketch.from_json,
}


def to_json(fitted: Fitted) -> list[dict[str, Any]]:
    """Fitted statistics as plain data, in the order given."""
    return [
        {"statistic": type(s).__name__, **vars(s), "value": value.to_json()}
        for s, value in fitted.items()
    ]


def from_json(data: Iterable[Mapping[str, Any]]) -> Fitted:
    """The fitted statistics that :func:`to_json` wrote."""
    fitted: dict[Statistic, Value] = {}
    for item in data:
        name = item["statistic"]
        arguments = {k: v for k, v in item.items() if k not in ("statistic", "value")}
        fitted[_STATISTICS[name](**arguments)] = _VALUES[name](item["value"])
    return fitted


def trimmed(fitted: Fitted, most: int) -> Fitted:
    """The same statistics with the commonest values alone of each vocabulary.

    Args:
        fitted: what was found.
        most: so many values.
    """
    return {
        (TopK(s.column, most) if isinstance(s, TopK) else s): (
            Counts.of(value.values, value.missing, most, value.others)
            if isinstance(value, Counts)
            else value
        )
        for s, value in fitted.items()
    }
