"""What every feature must give, row by row in plain Python: written without the feature code.

Statistics come from ``core``, which has tests of its own; everything after them is done again
here, in Python's own numbers.
"""

import datetime
import math
import re
import struct
from typing import Any

MISSING = -(2**63)
FLOAT32_MAX = 3.4028234663852886e38
BASE = 0x9E3779B97F4A7C15
NEXT = 0xD6E8FEB86659FD93
WORD = 2**64


def number(value: Any) -> float | None:
    """A raw number, or None for a missing one."""
    if isinstance(value, int):
        return None if value == MISSING else float(value)
    value = float(value)
    return value if math.isfinite(value) else None


def float32(value: float) -> float:
    value = min(max(value, -FLOAT32_MAX), FLOAT32_MAX)
    return struct.unpack("f", struct.pack("f", value))[0]


def standardise(x: float, mean: float, std: float) -> float:
    if not (math.isfinite(mean) and math.isfinite(std)) or std < 2.2250738585072014e-308:
        return 0.0
    difference = x - mean
    return difference if math.isinf(difference) else difference * (1 / std)


def scale(value: Any, moments: Any) -> float:
    x = number(value)
    return 0.0 if x is None else float32(standardise(x, moments.mean, moments.std))


def log(value: Any, moments: Any) -> float:
    x = number(value)
    if x is None:
        return 0.0
    y = math.copysign(math.log1p(abs(x)), x)
    return float32(standardise(y, moments.mean, moments.std))


def clip(value: Any, sketch: Any, low: float | None, high: float | None) -> float:
    quantiles = [float(q) if sketch.count else 0.0 for q in sketch.quantile([0.01, 0.5, 0.99])]
    low = quantiles[0] if low is None else low
    low = min(max(low, -8.9e307), 8.9e307)
    high = quantiles[2] if high is None else high
    high = min(max(high, low), 8.9e307)
    x = number(value)
    if x is None:
        x = quantiles[1]
    if high - low < 2.2250738585072014e-308:
        return 0.0
    return float32((min(max(x, low), high) - low) / (high - low))


def missing(value: Any) -> float:
    if isinstance(value, str):
        return float(value == "")
    if isinstance(value, bytes):
        return float(value[:1] in (b"", b"\0"))
    return float(number(value) is None)


def raw(value: Any) -> float:
    x = number(value)
    return 0.0 if x is None else float32(x)


def bucket(value: Any, edges: list[float]) -> int:
    x = number(value)
    return 0 if x is None else 1 + sum(x >= edge for edge in edges)


def quantile_edges(sketch: Any, bins: int) -> list[float]:
    """The lower edges of the sketch's buckets that hold the quantiles i / bins."""
    edges: set[float] = set()
    lower = sketch.edges()[0].tolist()
    for i in range(1, bins):
        seen = 0
        for edge, count in zip(lower, sketch.counts.tolist(), strict=True):
            seen += count
            if seen > i * sketch.count / bins:
                edges.add(edge)
                break
    return sorted(edge for edge in edges if edge > sketch.minimum)


def index(value: Any, counts: Any, size: int | None, least: int) -> int:
    if value in ("", MISSING):
        return 0
    known = [v for v, n in counts.values if n >= least][:size]
    return known.index(value) + 2 if value in known else 1


def identity(value: int, size: int) -> int:
    return value + 1 if 0 <= value < size else 0


def mix(z: int) -> int:
    """MurmurHash3's fmix64."""
    z ^= z >> 33
    z = z * 0xFF51AFD7ED558CCD % WORD
    z ^= z >> 33
    z = z * 0xC4CEB9FE1A85EC53 % WORD
    return z ^ (z >> 33)


def weighted(data: bytes) -> int:
    return sum(byte * pow(BASE, i + 1, WORD) for i, byte in enumerate(data)) % WORD


def hashed(value: Any, bins: int, limit: int) -> int:
    if isinstance(value, int):
        return 0 if value == MISSING else 1 + mix(value % WORD) % bins
    data = (value.encode() if isinstance(value, str) else value)[:limit]
    total = weighted(data)
    return 0 if total == 0 else 1 + mix(total) % bins


def cross(positions: list[int], cardinalities: list[int], size: int) -> int:
    if 0 in positions:
        return 0
    code, everything = 0, 1
    for position, cardinality in zip(positions, cardinalities, strict=True):
        code = code * (cardinality - 1) + position - 1
        everything *= cardinality - 1
    return 1 + (code if everything + 1 <= size else mix(code % WORD) % (size - 1))


def cyclic(value: Any, period: str | float, moment: bool) -> tuple[float, float]:
    if number(value) is None:
        return 0.0, 0.0
    if not moment:
        turn = math.fmod(float(value), period) / period
    elif period == "day_of_year":
        turn = value % 31_556_952_000_000 / 31_556_952_000_000
    elif isinstance(period, str):
        epoch = datetime.datetime(1970, 1, 1)
        # the calendar repeats every 400 years, which datetime's years do not reach beyond
        at = epoch + datetime.timedelta(microseconds=value % (146_097 * 86_400_000_000))
        midnight = datetime.datetime.combine(at.date(), datetime.time())
        day = (at - midnight) / datetime.timedelta(days=1)
        turn = day if period == "hour" else (at.weekday() + day) / 7
    else:
        length = round(period * 1_000_000)
        turn = value % length / length
    return math.sin(2 * math.pi * turn), math.cos(2 * math.pi * turn)


def text(
    value: str | bytes, bins: int, ngrams: tuple[int, ...], unit: str, length: int, limit: int
) -> list[int]:
    data = (value.encode() if isinstance(value, str) else value)[:limit]
    data = bytes(b + 32 if 65 <= b <= 90 else b for b in data)
    most = next(k for k in range(length + 9) if sum(max(k + 2 - n, 0) for n in ngrams) > length)
    most = min(most, limit)
    word = rb"[0-9a-z\x80-\xff]+" if unit == "word" else rb"[\x01-\x7f\xc0-\xff][\x80-\xbf\x00]*"
    units = [weighted(found) for found in re.findall(word, data)][:most]
    bag: list[int] = []
    for n in ngrams:
        grams = [0] * max(most - n + 1, 0)
        for start in range(len(units) - n + 1):
            total = 0
            for hash_of_unit in units[start : start + n]:
                total = (total * NEXT + hash_of_unit) % WORD
            grams[start] = 1 + mix(total) % (bins - 1)
        bag += grams
    return bag + [0] * (length - len(bag))
