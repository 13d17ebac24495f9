"""Tables for the property tests: every column type, and every value that ever broke something."""

from typing import Any

import numpy as np
from hypothesis import strategies as st

from drivetrain.core.batch import Batch
from drivetrain.core.schema import MISSING_INT, Field, Schema
from drivetrain.core.values import column_of

SCHEMA = Schema(
    (
        Field("amount", "float64"),
        Field("ratio", "float32"),
        Field("count", "int64"),
        Field("at", "timestamp"),
        Field("city", "string"),
        Field("title", "string"),
        Field("token", "bytes"),
        Field("vector", "float32", (3,)),
        Field("ids", "int64", (2,)),
    )
)

_FLOATS = [0.0, -0.0, 1.0, -1.5, 1e-300, 5e-324, 1e-12, 1e308, -1.7e308, 3.5e38, 2.0**53]
_BROKEN = [float("nan"), float("inf"), float("-inf")]
_INTEGERS = [0, 1, -1, 7, MISSING_INT, MISSING_INT + 1, MISSING_INT + 512, 2**63 - 1, 2**53 + 1]
_STRINGS = ["", "a", "A", "b", "ab", "Köln", "東京 tower", "a b", "\u00a0", "🙂x", "x" * 40]

_float64 = st.sampled_from(_FLOATS + _BROKEN) | st.floats()
_float32 = st.sampled_from([0.0, -2.5, 3.4e38, 1e-45, *_BROKEN]) | st.floats(width=32)
_integer = st.sampled_from(_INTEGERS) | st.integers(-(2**63), 2**63 - 1)
_string = st.sampled_from(_STRINGS) | st.text(max_size=12)
_bytes = st.sampled_from([b"", b"\0", b"\0a", b"\xff\xfe", b"a"]) | st.binary(max_size=9)


@st.composite
def tables(draw: st.DrawFn, least: int = 0, most: int = 7) -> Batch:
    """A table of :data:`SCHEMA`, of ``least`` to ``most`` rows."""
    rows = draw(st.integers(least, most))

    def values(kind: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(kind, min_size=rows, max_size=rows))

    kinds = {
        "amount": _float64,
        "ratio": _float32,
        "count": _integer,
        "at": _integer,
        "city": _string,
        "title": _string | st.lists(_string, max_size=6).map(" ".join),
        "token": _bytes,
        "vector": st.lists(_float32, min_size=3, max_size=3),
        "ids": st.lists(_integer, min_size=2, max_size=2),
    }
    return Batch({f.name: column_of(values(kinds[f.name]), f) for f in SCHEMA})


def made(rows: int, seed: int = 0) -> Batch:
    """A made table of ordinary values, a tenth of them missing."""
    random = np.random.default_rng(seed)
    words = np.array(["alpha", "beta", "gamma", "Delta", "epsilon", "zeta"], dtype=object)

    def some(values: np.ndarray[Any, Any], absent: Any) -> np.ndarray[Any, Any]:
        values[random.random(rows) < 0.1] = absent
        return values

    def text(words_each: int) -> np.ndarray[Any, Any]:
        picked = words[random.integers(0, len(words), (rows, words_each))]
        column = np.empty(rows, dtype=object)
        column[:] = [" ".join(row) for row in picked.tolist()]
        return column

    return Batch(
        {
            "amount": some(random.lognormal(3, 2, rows), np.nan),
            "ratio": some(random.normal(size=rows).astype(np.float32), np.inf),
            "count": some(random.poisson(4, rows), MISSING_INT),
            "at": some(random.integers(10**15, 2 * 10**15, rows), MISSING_INT),
            "city": some(text(1), ""),
            "title": some(text(5), ""),
            "token": some(np.array([b"t%d" % i for i in range(rows)], dtype=object), b""),
            "vector": random.normal(size=(rows, 3)).astype(np.float32),
            "ids": random.integers(-1, 6, (rows, 2)),
        }
    )
