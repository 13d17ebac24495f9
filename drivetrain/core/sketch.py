"""The values of the mergeable statistics, each of which merges with its like and is plain data."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from drivetrain.core.batch import Array


@dataclass(frozen=True)
class MomentsValue:
    """Count, missing count and central moments; ``m2`` is the sum of squared deviations."""

    count: int = 0
    missing: int = 0
    mean: float = 0.0
    m2: float = 0.0
    minimum: float = float("inf")
    maximum: float = float("-inf")

    @classmethod
    def of(cls, values: Array, counts: Array | None = None) -> "MomentsValue":
        """The moments of float64 ``[rows]``; what is not finite is counted as missing.

        Args:
            values: the numbers, in any order.
            counts: int64 ``[rows]``, how often each of them occurs; None for once.
        """
        finite = np.isfinite(values)
        if counts is not None:
            return cls._of_counted(values[finite], counts[finite], int(counts[~finite].sum()))
        numbers = values if finite.all() else values[finite]
        missing = len(values) - len(numbers)
        if not len(numbers):
            return cls(missing=missing)
        with np.errstate(over="ignore", invalid="ignore"):  # beyond 1e154 the spread is infinite
            mean = float(numbers.mean())
            m2 = float(np.square(numbers - mean).sum())
        return cls(len(numbers), missing, mean, m2, float(numbers.min()), float(numbers.max()))

    @classmethod
    def _of_counted(cls, numbers: Array, counts: Array, missing: int) -> "MomentsValue":
        count = int(counts.sum())
        if not count:
            return cls(missing=missing)
        with np.errstate(over="ignore", invalid="ignore"):
            mean = float((numbers * (counts / count)).sum())
            mean += float(((numbers - mean) * counts).sum()) / count  # what rounding lost above
            m2 = float((np.square(numbers - mean) * counts).sum())
        return cls(count, missing, mean, m2, float(numbers.min()), float(numbers.max()))

    @property
    def std(self) -> float:
        """The population standard deviation; 0 for a column with no values."""
        return (self.m2 / self.count) ** 0.5 if self.count else 0.0

    def merge(self, other: "MomentsValue") -> "MomentsValue":
        """The moments of both sets of rows (Chan, Golub and LeVeque 1979)."""
        count = self.count + other.count
        if not count:
            return MomentsValue(missing=self.missing + other.missing)
        delta = other.mean - self.mean
        return MomentsValue(
            count,
            self.missing + other.missing,
            self.mean + delta * other.count / count,
            self.m2 + other.m2 + delta * delta * self.count * other.count / count,
            min(self.minimum, other.minimum),
            max(self.maximum, other.maximum),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data; an empty column's extremes are null."""
        return {
            "count": self.count,
            "missing": self.missing,
            "mean": self.mean,
            "m2": self.m2,
            "minimum": self.minimum + 0.0 if self.count else None,  # the same for -0.0 and 0.0
            "maximum": self.maximum + 0.0 if self.count else None,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "MomentsValue":
        """The value that :meth:`to_json` wrote."""
        if not data["count"]:
            return cls(missing=data["missing"])
        return cls(**data)


PRECISION = 14
BUCKETS = 2048
_EXPONENTS = 1100  # makes every exponent of a float64 positive


@dataclass(frozen=True, eq=False)
class QuantileSketch:
    """A histogram over float64 in buckets of equal relative width, exactly mergeable.

    A bucket holds the numbers that share sign, exponent and the first ``precision`` bits of the
    mantissa. When more than ``BUCKETS`` are in use the precision falls by one bit, which joins
    neighbours; so the precision depends on the set of values alone and never on their order.
    (DDSketch, Masson et al. 2019, with the uniform collapse of UDDSketch, Epicoco et al. 2020,
    and bits of the float instead of a logarithm.)

    Attributes:
        keys: int64 ``[buckets]``, ascending; 0 is zero, the sign is the number's.
        counts: int64 ``[buckets]``.
        missing: values that are NaN, infinite or null.
        minimum: the least value; NaN when there is none.
        maximum: the greatest value; NaN when there is none.
    """

    precision: int
    keys: Array
    counts: Array
    missing: int
    minimum: float
    maximum: float

    @classmethod
    def of(cls, values: Array, counts: Array | None = None) -> "QuantileSketch":
        """The sketch of float ``[rows]``; what is not finite is counted as missing.

        Args:
            values: the numbers, in any order.
            counts: int64 ``[rows]``, how often each of them occurs; None for once.
        """
        good = np.isfinite(values)
        finite = values[good].astype(np.float64)
        extremes = (float(finite.min()), float(finite.max())) if len(finite) else (np.nan, np.nan)
        if counts is not None:
            missing = int(counts[~good].sum())
            return cls.of_counts(_keys(finite), counts[good], missing, *extremes)
        keys, times = np.unique(_keys(finite), return_counts=True)
        return cls.of_counts(keys, times, len(values) - len(finite), *extremes)

    @classmethod
    def of_counts(
        cls, keys: Array, counts: Array, missing: int, minimum: float, maximum: float
    ) -> "QuantileSketch":
        """A sketch from how often each key of full precision occurs, in any order."""
        return _collapse(PRECISION, keys, counts, missing, minimum, maximum)

    @property
    def count(self) -> int:
        """Values that are not missing."""
        return int(self.counts.sum())

    def merge(self, other: "QuantileSketch") -> "QuantileSketch":
        """The sketch of both sets of values."""
        precision = min(self.precision, other.precision)
        return _collapse(
            precision,
            np.concatenate([_coarser(s.keys, s.precision - precision) for s in (self, other)]),
            np.concatenate([self.counts, other.counts]),
            self.missing + other.missing,
            float(np.fmin(self.minimum, other.minimum)),
            float(np.fmax(self.maximum, other.maximum)),
        )

    def edges(self) -> tuple[Array, Array]:
        """The least and the greatest number of each bucket, float64 ``[buckets]`` each."""
        magnitude = np.abs(self.keys) - 1
        exponent = (magnitude >> self.precision) - _EXPONENTS
        mantissa = magnitude & ((1 << self.precision) - 1)
        near: Array = np.ldexp(1.0 + mantissa / (1 << self.precision), exponent)
        with np.errstate(over="ignore"):  # the last bucket ends beyond the greatest float
            far: Array = near + np.ldexp(1.0, exponent - self.precision)
        zero, negative = self.keys == 0, self.keys < 0
        low = np.where(zero, 0.0, np.where(negative, -far, near))
        high = np.where(zero, 0.0, np.where(negative, -near, far))
        return np.maximum(low, self.minimum), np.minimum(high, self.maximum)

    def quantile(self, q: Any) -> Array:
        """The values below which a share ``q`` (in [0, 1], any shape) lies; NaN when empty."""
        share: Array = np.asarray(q, dtype=np.float64)
        if not self.count:
            return np.full(share.shape, np.nan)
        ends: Array = np.cumsum(self.counts)
        rank = share * (self.count - 1)
        at: Array = np.minimum(np.searchsorted(ends, rank, side="right"), len(ends) - 1)
        low, high = self.edges()
        inside = (rank - (ends[at] - self.counts[at]) + 0.5) / self.counts[at]
        value = low[at] + (high[at] - low[at]) * np.clip(inside, 0.0, 1.0)
        return np.where(share <= 0, self.minimum, np.where(share >= 1, self.maximum, value))

    def share_below(self, edges: Any) -> Array:
        """The share of the values at or below each of ``edges``, linear within a bucket."""
        points: Array = np.asarray(edges, dtype=np.float64)[..., None]
        if not self.count:
            return np.full(points.shape[:-1], np.nan)
        low, high = self.edges()
        width: Array = np.where(high > low, high - low, 1.0)
        with np.errstate(over="ignore"):  # far beyond a narrow bucket is beyond it
            within = np.clip((points - low) / width, 0.0, 1.0)
        share: Array = np.where(high > low, within, (points >= low).astype(np.float64))
        return (share * self.counts).sum(-1) / self.count

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "precision": self.precision,
            "keys": self.keys.tolist(),
            "counts": self.counts.tolist(),
            "missing": self.missing,
            "minimum": self.minimum + 0.0 if self.count else None,  # the same for -0.0 and 0.0
            "maximum": self.maximum + 0.0 if self.count else None,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "QuantileSketch":
        """The sketch that :meth:`to_json` wrote."""
        low, high = (np.nan if data[k] is None else data[k] for k in ("minimum", "maximum"))
        keys = np.array(data["keys"], dtype=np.int64)
        counts = np.array(data["counts"], dtype=np.int64)
        return cls(data["precision"], keys, counts, data["missing"], low, high)


def _keys(values: Array) -> Array:
    mantissa, exponent = np.frexp(np.abs(values))  # mantissa in [0.5, 1)
    exponent = exponent.astype(np.int64) - 1
    step = np.floor(np.ldexp(mantissa, PRECISION + 1)).astype(np.int64) - (1 << PRECISION)
    keys = ((exponent + _EXPONENTS) << PRECISION) + step + 1
    return np.where(values == 0, 0, np.where(values < 0, -keys, keys))


def _coarser(keys: Array, bits: int) -> Array:
    return np.sign(keys) * (((np.abs(keys) - 1) >> bits) + 1)


def _collapse(
    precision: int, keys: Array, counts: Array, missing: int, minimum: float, maximum: float
) -> QuantileSketch:
    order = np.argsort(keys, kind="stable")
    keys, counts = keys[order], counts[order].astype(np.int64)
    while True:
        # Coarser keys of ascending keys ascend too: one sort is enough for all rounds.
        first = np.flatnonzero(np.diff(keys, prepend=keys[:1] - 1))
        keys = keys[first]
        counts = np.add.reduceat(counts, first) if len(first) else counts
        if len(keys) <= BUCKETS or precision == 0:
            return QuantileSketch(precision, keys, counts, missing, minimum, maximum)
        keys = _coarser(keys, 1)
        precision -= 1


@dataclass(frozen=True)
class Counts:
    """How often each value occurs, the commonest first and equals in order of value.

    Attributes:
        values: ``(value, count)``; strings or integers.
        missing: rows without a value.
        others: rows whose value fell out beyond the capacity.
    """

    values: tuple[tuple[str | int, int], ...] = ()
    missing: int = 0
    others: int = 0
    capacity: int = 1 << 20

    @classmethod
    def of(
        cls, counts: Iterable[tuple[str | int, int]], missing: int, capacity: int, others: int = 0
    ) -> "Counts":
        """Counts in any order, put in order and cut to ``capacity``."""
        ordered = sorted(counts, key=lambda pair: (-pair[1], pair[0]))
        dropped = sum(count for _, count in ordered[capacity:])
        return cls(tuple(ordered[:capacity]), missing, others + dropped, capacity)

    @property
    def count(self) -> int:
        """Rows that have a value."""
        return sum(count for _, count in self.values) + self.others

    def merge(self, other: "Counts") -> "Counts":
        """The counts of both sets of rows."""
        total = dict(self.values)
        for value, count in other.values:
            total[value] = total.get(value, 0) + count
        capacity = min(self.capacity, other.capacity)
        others = self.others + other.others
        return Counts.of(total.items(), self.missing + other.missing, capacity, others)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "values": [list(pair) for pair in self.values],
            "missing": self.missing,
            "others": self.others,
            "capacity": self.capacity,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Counts":
        """The value that :meth:`to_json` wrote."""
        values = tuple((value, count) for value, count in data["values"])
        return cls(values, data["missing"], data["others"], data["capacity"])


REGISTERS = 4096


@dataclass(frozen=True, eq=False)
class DistinctSketch:
    """HyperLogLog registers (Flajolet et al. 2007) over the low 64 bits of MD5 of the text.

    MD5 because every engine has it: sketches of different engines merge.
    """

    registers: Array  # uint8 [4096]

    @classmethod
    def of_hashes(cls, hashes: Array) -> "DistinctSketch":
        """The sketch of uint64 hashes, one for each distinct value (repeats do no harm)."""
        registers = np.zeros(REGISTERS, dtype=np.uint8)
        rest = (hashes >> np.uint64(12)) | np.uint64(1 << 52)  # a sentinel ends the run of zeros
        lowest = rest & (~rest + np.uint64(1))
        rank = np.log2(lowest.astype(np.float64)).astype(np.uint8) + 1
        np.maximum.at(registers, (hashes & np.uint64(REGISTERS - 1)).astype(np.int64), rank)
        return cls(registers)

    @property
    def estimate(self) -> int:
        """About how many distinct values were seen."""
        m = REGISTERS
        raw = 0.7213 / (1 + 1.079 / m) * m * m / float(np.exp2(-self.registers.astype(float)).sum())
        zeros = int((self.registers == 0).sum())
        if raw <= 2.5 * m and zeros:
            raw = m * float(np.log(m / zeros))
        return round(raw)

    def merge(self, other: "DistinctSketch") -> "DistinctSketch":
        """The sketch of both sets of values."""
        return DistinctSketch(np.maximum(self.registers, other.registers))

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"registers": self.registers.tobytes().hex()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "DistinctSketch":
        """The sketch that :meth:`to_json` wrote."""
        return cls(np.frombuffer(bytes.fromhex(data["registers"]), dtype=np.uint8))


def text_hash(text: str) -> int:
    """The low 64 bits of the MD5 of a text: bytes 8 to 16 of the digest, little-endian."""
    return int.from_bytes(hashlib.md5(text.encode(), usedforsecurity=False).digest()[8:], "little")
