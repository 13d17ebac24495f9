"""Golden parity: what DuckDB gives for every operator, Spark gives to the last bit, or neither."""

import math
from collections.abc import Iterator
from datetime import datetime
from itertools import product
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyspark.errors import PySparkException

from drivetrain.core.schema import Schema
from drivetrain.events import coalesce, col, concat, days, hours, lit, make_timestamp, minutes, when
from drivetrain.events.dialect.operators import OPERATORS, column
from drivetrain.events.dialect.sql import Dialect, identifier
from drivetrain.events.duckdb import CHUNK, ROW, Limits, engine
from drivetrain.events.expression import Call, Expression
from drivetrain.events.reading.arrow import normalise, schema_of_arrow
from drivetrain.events.spark.functions import register

INF = math.inf
MOST = 2**63 - 1
INTEGERS = [0, 1, -1, 2, -3, 7, -7, 10, 10**9, -(2**31), 2**31 + 1, None]
FLOATS = [
    *(0.0, -0.0, 0.5, -0.5, 1.5, 2.5, -2.5, 7.5, -7.5, 3.0, -3.0, 0.1, 1e-5, 123456.789),
    *(0.49999999999999994, 4503599627370497.5, 2.0**53 + 2, 1e16, 1e22, 2e23, -4e18, 4.1e18),
    *(1e300, -1e300, 1e-300, 5e-324, 2.2250738585072014e-308, INF, -INF, math.nan, None),
]
TEXTS = [
    *(
        "",
        " ",
        "a",
        "A",
        "Ä",
        "äöü ß",
        "ſtraße",
        "İstanbul",
        "ΑΣ",
        "ǅ",
        "ﬁ",
        "𐐀𐐨",
        "漢字",
        "e\u0301",
    ),
    *(
        "\u00a0x\u2003",
        "\t x",
        "  a b ",
        "it's",
        'say "x"',
        "back\\slash\\",
        "a\\'b",
        "${env:HOME}",
    ),
    *("%_", "\n", "🤦🏼‍♂️", "x'; DROP TABLE y; --", None),
]
NUMERALS = [
    *(
        "0",
        "-0",
        "12",
        "-12",
        "+12",
        " 12 ",
        "\t12\n",
        "007",
        "1.5",
        "2.5",
        "-1.5",
        "1.",
        ".5",
        "1e3",
    ),
    *(
        "1E3",
        "1e-3",
        "12e",
        "0x1F",
        "0b11",
        "1_000",
        "1,000",
        "12abc",
        "",
        " ",
        "-",
        "+",
        "1 2",
        "٣",
    ),
    *("9223372036854775807", "9223372036854775808", "-9223372036854775808", "-9223372036854775809"),
    *("99999999999999999999", "1e18", "1e19", "nan", "NaN", "inf", "-inf", "Infinity", "+Infinity"),
    *("1.5d", "1.5f", "1d", "1L", "0x1p3", "1e400", "-1e400", "1e-400", "4.9e-324", "0.1", "1.0"),
    *("123456789012345.123456789012345", "2.2250738585072011e-308", "true", "null", None),
    *("179769313486231570000000000000000000000e270", "9007199254740993", "0.30000000000000004"),
]
MOMENTS = [
    *("2013-01-02", "2013-01-02 03:04:05", "2013-01-02T03:04:05", "2013-01-02 03:04:05.25"),
    *("2013-01-02 03:04:05.123456", "2013-01-02 03:04:05.1234567", "2013-01-02 03:04:05.9999999"),
    *("2013-01-02 03:04:05Z", "2013-01-02T03:04:05+02:00", "2013-01-02 03:04:05-0730", "2013-1-2"),
    *(
        "2013-01-02 03:04",
        "2013-01-02 3:4:5",
        "2013-02-29",
        "2012-02-29",
        "1900-02-29",
        "2000-02-29",
    ),
    *(
        "2013-13-01",
        "2013-01-32",
        "2013-04-31",
        "2013-01-02 24:00:00",
        "2013-01-02 23:59:60",
        "2013",
    ),
    *("2013-01", "20130102", "02.01.2013", "01/02/2013", "epoch", "infinity", "-infinity", "now"),
    *("today", "T12:30", "12:30", " 2013-01-02 ", "1969-12-31 23:59:59.999999", "0001-01-01", ""),
    *("-0001-01-01", "0044-03-15 (BC)", "10000-01-01", "294247-01-10 04:00:54", "1066-10-14 09:00"),
    *("2013-01-02 03:04:05 Europe/Berlin", "2013-01-02 03:04:05 UTC", "2013-01-02x", "1582-10-10"),
    None,
]
TIMES = [
    *(datetime(1970, 1, 1), datetime(1969, 12, 31, 23, 59, 59, 999999), datetime(2012, 2, 29, 12)),
    *(
        datetime(2013, 12, 31, 23, 59, 30, 250000),
        datetime(1, 1, 1),
        datetime(9999, 12, 31, 23, 59),
    ),
    *(
        datetime(1582, 10, 10, 1, 2, 3),
        datetime(2024, 12, 30),
        datetime(1900, 3, 1, 0, 0, 0, 1),
        None,
    ),
    *(datetime(1883, 11, 18, 12, 3, 57), datetime(2021, 1, 3, 23)),
]
BYTES = [b"", b"\0", b"\xff\xfe'\\", b"abc", None]


def table() -> pa.Table:
    """Pairs of all edges of each kind, side by side."""
    pairs = {
        ("a", "b", pa.int64()): list(product(INTEGERS, INTEGERS)),
        ("x", "y", pa.float64()): list(product(FLOATS, FLOATS)),
        ("s", "u", pa.string()): list(product(TEXTS, TEXTS)),
        ("t", "v", pa.timestamp("us")): list(product(TIMES, TIMES)),
        ("n", "m", pa.string()): [(n, m) for n, m in zip(NUMERALS * 2, MOMENTS * 3, strict=False)],
        ("p", "q", pa.binary()): list(product(BYTES, BYTES)),
    }
    rows = max(map(len, pairs.values()))
    columns: dict[str, Any] = {}
    for (left, right, kind), values in pairs.items():
        cycled = [values[i % len(values)] for i in range(rows)]
        columns[left] = pa.array([one for one, _ in cycled], kind)
        columns[right] = pa.array([other for _, other in cycled], kind)
    columns["f"] = columns["x"].cast(pa.float32(), safe=False)
    columns["z"] = (
        columns["t"].cast(pa.timestamp("us", "UTC")).cast(pa.timestamp("us", "America/New_York"))
    )
    columns["c"] = pa.array([(None, 0, 1)[i % 3] for i in range(rows)], pa.int64())
    columns["d"] = pa.array([(None, 1, 0, 1)[i % 4] for i in range(rows)], pa.int64())
    columns['A^"`b\\'] = pa.array(range(rows), pa.int64())
    columns['a^"`b\\'] = pa.array(range(rows, 0, -1), pa.int64())
    columns["big"] = pa.array([(MOST, -MOST - 1, None, 0)[i % 4] for i in range(rows)], pa.int64())
    return pa.table(columns)


A, B, X, Y, F = col("a"), col("b"), col("x"), col("y"), col("f")
S, U, T, V, Z, P, Q = (col(name) for name in "sutvzpq")
N, M, BIG = col("n"), col("m"), col("big")
C, D = col("c") == 1, col("d") == 1


def cases() -> Iterator[tuple[str, Expression]]:
    """Every operator with every kind that it takes."""
    for name, sign in {
        "add": lambda a, b: a + b,
        "subtract": lambda a, b: a - b,
        "multiply": lambda a, b: a * b,
        "divide": lambda a, b: a / b,
        "floor_divide": lambda a, b: a // b,
        "modulo": lambda a, b: a % b,
    }.items():
        for left, right in ((A, B), (X, Y), (A, X), (X, A), (F, Y), (F, F), (A, C), (C, X)):
            yield name, sign(left, right)
        for literal in (3, -3, 0.5, -0.25, 0, 0.0, True, None):
            yield name, sign(A, literal)
            yield name, sign(X, literal)
    for shift in (hours(1), days(-400), minutes(A), days(1)):
        yield "add", T + shift
        yield "add", shift + T
        yield "subtract", T - shift
    for pair in ((T, V), (T, Z), (T, lit("2013-12-31T23:59:30.5+01:00"))):
        yield "subtract", pair[0] - pair[1]
    for value in (A, X, F, C):
        yield "negate", -value
        yield "abs", abs(value)
        yield "round", value.round()
        yield "is_finite", value.is_finite()
    yield "is_finite", BIG.is_finite()
    for low, high in ((A, 2), (X, 0.5), (X, A), (F, 1.0), (X, -0.0), (A, 0.5)):
        yield "clip_low", low.clip(high)
        yield "clip_high", low.clip(None, high)
    yield "clip_low", T.clip("2000-01-01")
    yield "clip_high", T.clip(None, V)
    for name, compare in {
        "equal": lambda a, b: a == b,
        "not_equal": lambda a, b: a != b,
        "less": lambda a, b: a < b,
        "less_equal": lambda a, b: a <= b,
        "greater": lambda a, b: a > b,
        "greater_equal": lambda a, b: a >= b,
    }.items():
        sides = [(A, B), (X, Y), (A, X), (F, X), (S, U), (T, V), (T, Z), (P, Q), (C, D), (A, C)]
        for left, right in [*sides, (BIG, X), (T, lit("2013-12-31")), (A, lit(None))]:
            yield name, compare(left, right)
    for left, right in ((C, D), (C, lit(True)), (lit(False), D), (C, lit(None)), (A, D)):
        yield "and", left & right
        yield "or", left | right
    yield "not", ~C
    yield "not", ~A
    for value, values in (
        (A, [1, -7]),
        (A, [1, None]),
        (X, [0.0, INF, 7]),
        (S, ["it's", "back\\slash\\", "${env:HOME}"]),
        (T, ["1970-01-01"]),
        (S, []),
        (A, [0.5]),
        (P, [b"\0", b"abc"]),
        (C, [True]),
    ):
        yield "isin", value.isin(values)
    for value in (A, X, F, S, T, Z, P, C):
        yield "is_null", value.is_null()
        yield "is_not_null", value.is_not_null()
    for value, other in (
        (A, 5),
        (A, X),
        (X, Y),
        (X, -0.0),
        (S, U),
        (T, V),
        (P, Q),
        (F, 1),
        (C, False),
    ):
        yield "coalesce", coalesce(value, other)
        yield "case", when(C, value).when(D, other).otherwise(value)
        yield "case", when(C, value).otherwise(None)
    yield "concat", concat(S, "-\\'", U)
    yield "concat", concat(S)
    for text in (S, N, M):
        yield "lower", text.lower()
        yield "upper", text.upper()
        yield "trim", text.trim()
        yield "length", text.length()
    for unit in ("second", "minute", "hour", "day", "week", "month", "year"):
        yield "truncate", T.truncate(unit)
    for time in (T, Z):
        for part in (
            "year",
            "month",
            "day",
            "hour",
            "minute",
            "weekday",
            "day_of_year",
            "epoch_us",
        ):
            yield part, Call(part, (time,))
    yield "make_timestamp", make_timestamp(T.year(), T.month(), T.day(), V.hour(), V.minute())
    yield "make_timestamp", make_timestamp(2012, 2, 29, A.abs() % 24)
    for value in (A, BIG, X, F, S, T, C, N, M):
        yield "cast", value.cast("string")
    for value in (A, BIG, F, C, A + 0.5):
        yield "cast", value.cast("float64")
    for value in (A, BIG, C, when(X.abs() < 9e18, X).otherwise(None), A + 0.5):
        yield "cast", value.cast("int64")
    for value in (T, A, lit("2013-01-02")):
        yield "cast", value.cast("timestamp")
    for value in (X, F, N, S, M, A):
        yield "try_cast", value.cast("int64", strict=False)
        yield "try_cast", value.cast("float64", strict=False)
        yield "try_cast", value.cast("string", strict=False)
    for value in (M, S, N, T):
        yield "try_cast", value.cast("timestamp", strict=False)
    for value in (A, BIG, X, F, S, T, Z, P, C, N):
        yield "hash", Call("hash", (value,), ("0",))
    yield "hash", Call("hash", (A, S, X, T), ("17",))
    for value in (0, -MOST - 1, MOST, 0.1, 1e300, -1e-300, -0.0, INF, True, "", *TEXTS[:-1]):
        yield "equal", lit(value).is_null()
        yield "coalesce", coalesce(value)
    for value in (bytes(range(256)), b"", b"'\\"):
        yield "coalesce", coalesce(value)
    yield "subtract", col('A^"`b\\') - col('a^"`b\\')


def bits(values: pa.ChunkedArray) -> list[Any]:
    """Values as they are in memory: floats as their bits, times as integers."""
    array = values.combine_chunks()
    if pa.types.is_floating(array.type):
        kind = np.dtype(array.type.to_pandas_dtype())
        view = array.fill_null(0).to_numpy(zero_copy_only=False).view(f"i{kind.itemsize}")
        return [
            int(v) if ok else None for v, ok in zip(view, array.is_valid().to_pylist(), strict=True)
        ]
    return (array.cast(pa.int64()) if pa.types.is_timestamp(array.type) else array).to_pylist()


CASES = list(cases())


@pytest.fixture(scope="module")
def both(spark: Any) -> list[tuple[list[Any], list[Any]]]:
    """What DuckDB and Spark give for each case, a hundred of them a query."""
    found = table()
    schema = schema_of_arrow(found.schema)
    found = named(normalise(found, schema, "test"))
    register(spark)
    frame = spark.createDataFrame(found)
    values: list[tuple[list[Any], list[Any]]] = []
    with engine(Limits(threads=1)) as running:
        for start in range(0, len(CASES), 100):
            part = [expression for _, expression in CASES[start : start + 100]]
            ours = running.run(
                f"SELECT {', '.join(written(part, schema, 'duckdb'))} FROM {CHUNK}", found, "test"
            )
            theirs = frame.selectExpr(*written(part, schema, "spark")).toArrow().sort_by(ROW)
            values += [(bits(ours[f"y{i}"]), bits(theirs[f"y{i}"])) for i in range(len(part))]
    return values


def named(found: pa.Table) -> pa.Table:
    """The columns under their names in SQL, with the rows numbered."""
    found = found.rename_columns([identifier(name) for name in found.column_names])
    return found.append_column(ROW, pa.array(range(len(found)), pa.int64()))


def written(expressions: list[Expression], schema: Schema, dialect: Dialect) -> list[str]:
    """Expressions as the items of a selection."""
    items = [column(one, schema, "test", dialect)[0] for one in expressions]
    return [*(f"{item} AS y{i}" for i, item in enumerate(items)), ROW]


def test_every_operator_is_among_the_cases():
    assert {name for name, _ in CASES} == set(OPERATORS)


def test_spark_gives_what_duckdb_gives_to_the_last_bit(both):
    data = table().drop_columns(["z"]).to_pylist()
    assert sum(value is not None for ours, _ in both for value in ours) > len(both) * 500
    wrong = []
    for (name, expression), (ours, theirs) in zip(CASES, both, strict=True):
        sides = enumerate(zip(ours, theirs, strict=True))
        differ = [i for i, (a, b) in sides if a != b or type(a) is not type(b)]
        if differ:
            shown = (ours[differ[0]], theirs[differ[0]], data[differ[0]])
            wrong.append(f"{name} {expression!r}: {len(differ)} rows, duckdb, spark: {shown}")
    assert not wrong, "\n".join(wrong)


LEAST = -MOST - 1
EXTREMES: list[tuple[Expression, dict[str, Any]]] = [
    (A + B, {"a": MOST, "b": 1}),
    (A - B, {"a": LEAST, "b": 1}),
    (A * B, {"a": 2**62, "b": 2}),
    (-A, {"a": LEAST}),
    (abs(A), {"a": LEAST}),
    (A // B, {"a": LEAST, "b": -1}),
    (A % B, {"a": LEAST, "b": -1}),
    (A % B, {"a": 5, "b": MOST}),
    (A % B, {"a": -5, "b": MOST}),
    (A // B, {"a": LEAST, "b": 0}),
    (A + B, {"a": MOST, "b": LEAST}),
    (X.cast("int64"), {"x": 2.0**63}),
    (X.cast("int64"), {"x": -(2.0**63)}),
    (X.cast("int64"), {"x": 9223372036854774784.0}),
    (X.cast("int64"), {"x": 1e19}),
    (X.cast("int64"), {"x": INF}),
    (X.cast("int64"), {"x": -0.9}),
    (T + minutes(A), {"t": datetime(2013, 1, 1), "a": 2**40}),
    (T + minutes(A), {"t": datetime(2013, 1, 1), "a": 2**60}),
    (T - days(300_000 * 365), {"t": datetime(2013, 1, 1)}),
    (make_timestamp(A, 1, 1), {"a": 10_000}),
    (make_timestamp(A, 1, 1), {"a": 0}),
    (make_timestamp(2013, A, 1), {"a": 13}),
    (make_timestamp(2013, 2, A), {"a": 29}),
    (make_timestamp(2013, 2, 1, A), {"a": 24}),
    (make_timestamp(2013, 2, 1, 1, A), {"a": 60}),
    (make_timestamp(2013, 2, 1, 1, A), {"a": 2**33}),
    (A.cast("timestamp").cast("string"), {"a": MOST}),
    (A.cast("timestamp").year(), {"a": LEAST + 2}),
    (S.cast("int64"), {"s": "1.5"}),
    (S.cast("int64"), {"s": "twelve"}),
    (S.cast("int64"), {"s": ""}),
    (S.cast("float64"), {"s": "1.5d"}),
    (S.cast("float64"), {"s": "1e400"}),
    (S.cast("timestamp"), {"s": "2013-02-29"}),
    (S.cast("timestamp"), {"s": "2013-02-28T03:04:05+01"}),
    (S.cast("timestamp"), {"s": "yesterday"}),
    *(
        (when(S != "n/a", S.cast(kind)).otherwise(None), {"s": text})
        for kind, odd in (("int64", "1e3"), ("float64", " .5"), ("timestamp", "2013-1-2 3:4:5+01"))
        for text in ("n/a", "n/b", odd, None)
    ),
]


@pytest.mark.parametrize(("expression", "row"), EXTREMES, ids=lambda value: repr(value)[:60])
def test_at_the_extremes_both_give_the_same_or_both_refuse(spark, expression, row):
    kinds = {"a": pa.int64(), "b": pa.int64(), "x": pa.float64(), "s": pa.string()}
    columns = {n: pa.array([v], kinds.get(n, pa.timestamp("us"))) for n, v in row.items()}
    found = named(pa.table(columns))
    schema = schema_of_arrow(pa.table(columns).schema)
    register(spark)
    with engine(Limits(threads=1)) as running:
        try:
            items = ", ".join(written([expression], schema, "duckdb"))
            ours = bits(running.run(f"SELECT {items} FROM {CHUNK}", found, "test")["y0"])
        except ValueError:
            ours = "refused"
    try:
        frame = spark.createDataFrame(found).selectExpr(*written([expression], schema, "spark"))
        theirs = bits(frame.toArrow()["y0"])
    except PySparkException:
        theirs = "refused"
    assert ours == theirs
