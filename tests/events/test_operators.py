"""Golden values of every operator: what any further engine has to give too."""

import hashlib
import math
from datetime import datetime

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from drivetrain.core.schema import Field, Schema
from drivetrain.events import coalesce, col, concat, days, hours, lit, make_timestamp, minutes, when
from drivetrain.events.dialect.operators import OPERATORS, column, columns_of, predicate
from drivetrain.events.dialect.sql import identifier
from drivetrain.events.expression import Call

AT = datetime(2013, 12, 31, 23, 59, 30, 250000)
A, S, T = col("a"), col("s"), col("t")
INF = float("inf")

GOLDEN = [
    ("add", A + 1, {"a": [1, None]}, [2, None]),
    ("add", A + 0.5, {"a": [1, -1]}, [1.5, -0.5]),
    ("add", T + hours(1), {"t": [AT, None]}, [datetime(2014, 1, 1, 0, 59, 30, 250000), None]),
    ("add", (A > 1) + (A > 2), {"a": [1, 2, 3]}, [0, 1, 2]),
    (
        "multiply",
        T + minutes(A),
        {"t": [AT, AT, AT], "a": [2, -1, None]},
        [
            datetime(2014, 1, 1, 0, 1, 30, 250000),
            datetime(2013, 12, 31, 23, 58, 30, 250000),
            None,
        ],
    ),
    ("subtract", 10 - A, {"a": [1, None]}, [9, None]),
    ("subtract", T - days(31), {"t": [AT]}, [datetime(2013, 11, 30, 23, 59, 30, 250000)]),
    ("subtract", T - lit("2013-12-31T23:59:30"), {"t": [AT]}, [250_000]),
    ("subtract", A - A, {"a": [INF, 1.0]}, [None, 0.0]),
    ("multiply", A * A, {"a": [3, -2]}, [9, 4]),
    ("divide", A / 2, {"a": [1, -3]}, [0.5, -1.5]),
    ("divide", 1 / A, {"a": [0, 4]}, [None, 0.25]),
    ("floor_divide", A // 2, {"a": [7, -7, None]}, [3, -4, None]),
    ("floor_divide", A // 0, {"a": [7]}, [None]),
    ("floor_divide", A // 2, {"a": [7.5, -7.5]}, [3.0, -4.0]),
    ("modulo", A % 3, {"a": [7, -7, None]}, [1, 2, None]),
    ("modulo", A % -3, {"a": [7, -7]}, [-2, -1]),
    ("modulo", A % 2, {"a": [7.5, -7.5]}, [1.5, 0.5]),
    ("modulo", A % 0, {"a": [7]}, [None]),
    ("negate", -A, {"a": [1, None]}, [-1, None]),
    ("abs", abs(A), {"a": [-1.5, 2.0]}, [1.5, 2.0]),
    ("round", A.round(), {"a": [0.5, 1.5, -0.5, 2.4]}, [1.0, 2.0, -1.0, 2.0]),
    ("round", A.round(), {"a": [3]}, [3]),
    ("clip_low", A.clip(0), {"a": [-1, 5, None]}, [0, 5, None]),
    ("clip_high", A.clip(None, 3.5), {"a": [-1, 5, None]}, [-1.0, 3.5, None]),
    ("clip_high", A.clip(0, 3), {"a": [float("nan"), INF]}, [None, 3.0]),
    ("equal", A == 1, {"a": [1, 2, None]}, [1, 0, None]),
    ("equal", S == "x'; DROP", {"s": ["x'; DROP", ""]}, [1, 0]),
    ("not_equal", A != 1.5, {"a": [1.5, float("nan")]}, [0, None]),
    ("less", T < "2014-01-01", {"t": [AT, datetime(2014, 1, 1)]}, [1, 0]),
    ("less_equal", A <= 1, {"a": [1, 2]}, [1, 0]),
    ("greater", A > 15, {"a": [float("nan"), 16.0, INF]}, [None, 1, 1]),
    ("greater_equal", S >= "b", {"s": ["a", "b"]}, [0, 1]),
    ("and", (A > 0) & (A < 9), {"a": [5, 0, None]}, [1, 0, None]),
    ("and", (A > 0) & lit(False), {"a": [None, 1]}, [0, 0]),
    ("or", (A > 0) | lit(True), {"a": [None, 1]}, [1, 1]),
    ("not", ~(A > 0), {"a": [1, 0, None]}, [0, 1, None]),
    ("not", ~A, {"a": [1, 0]}, [0, 1]),
    ("isin", A.isin([1, 3]), {"a": [1, 2, None]}, [1, 0, None]),
    ("isin", S.isin([]), {"s": ["x", None]}, [0, None]),
    ("is_null", A.is_null(), {"a": [1.0, None, float("nan"), INF]}, [0, 1, 1, 0]),
    ("is_not_null", S.is_not_null(), {"s": ["", None]}, [1, 0]),
    ("is_finite", A.is_finite(), {"a": [1.0, None, float("nan"), -INF]}, [1, 0, 0, 0]),
    ("coalesce", A.fill_null(0.5), {"a": [None, 1]}, [0.5, 1.0]),
    ("coalesce", coalesce(A, col("b")), {"a": [None, 1], "b": [7, 8]}, [7, 1]),
    (
        "case",
        when(A > 2, "many").when(A > 0, "few").otherwise(None),
        {"a": [3, 1, 0, None]},
        ["many", "few", None, None],
    ),
    ("concat", concat(S, "-", S), {"s": ["x", None]}, ["x-x", None]),
    ("lower", S.lower(), {"s": ["ÄB", None]}, ["äb", None]),
    ("upper", S.upper(), {"s": ["äb"]}, ["ÄB"]),
    ("trim", S.trim(), {"s": ["  a b "]}, ["a b"]),
    ("length", S.length(), {"s": ["äb", "", None]}, [2, 0, None]),
    ("truncate", T.truncate("hour"), {"t": [AT]}, [datetime(2013, 12, 31, 23)]),
    ("truncate", T.truncate("week"), {"t": [AT]}, [datetime(2013, 12, 30)]),
    ("truncate", T.truncate("year"), {"t": [AT, None]}, [datetime(2013, 1, 1), None]),
    ("year", T.year(), {"t": [AT]}, [2013]),
    ("month", T.month(), {"t": [AT]}, [12]),
    ("day", T.day(), {"t": [AT]}, [31]),
    ("hour", T.hour(), {"t": [AT, None]}, [23, None]),
    ("minute", T.minute(), {"t": [AT]}, [59]),
    ("weekday", T.weekday(), {"t": [AT, datetime(2013, 12, 30)]}, [1, 0]),
    ("day_of_year", T.day_of_year(), {"t": [AT]}, [365]),
    ("epoch_us", T.epoch_us(), {"t": [datetime(1970, 1, 1, 0, 0, 1), None]}, [1_000_000, None]),
    (
        "make_timestamp",
        make_timestamp(A, 1, 2, 3, 4) + minutes(1),
        {"a": [2013, None]},
        [datetime(2013, 1, 2, 3, 5), None],
    ),
    ("cast", A.cast("int64"), {"a": [1.9, -1.9, None]}, [1, -1, None]),
    ("cast", S.cast("int64"), {"s": ["12", None]}, [12, None]),
    ("cast", S.cast("float64"), {"s": ["1.5", "nan"]}, [1.5, None]),
    ("cast", A.cast("string"), {"a": [12]}, ["12"]),
    ("cast", S.cast("timestamp"), {"s": ["2013-01-02 03:04:05"]}, [datetime(2013, 1, 2, 3, 4, 5)]),
    ("cast", A.cast("timestamp"), {"a": [1_000_000]}, [datetime(1970, 1, 1, 0, 0, 1)]),
    ("try_cast", S.cast("int64", strict=False), {"s": ["12", "x"]}, [12, None]),
    ("hash", Call("hash", (A,), ("0",)), {"a": [1]}, [hashlib.md5(b"0,1").hexdigest()[:13]]),
]


@pytest.mark.parametrize(
    ("expression", "columns", "values"),
    [golden[1:] for golden in GOLDEN],
    ids=[f"{i}-{golden[0]}" for i, golden in enumerate(GOLDEN)],
)
def test_operator_gives_its_golden_values(compute, expression, columns, values):
    assert compute(expression, **columns) == values


def test_every_operator_has_a_golden_value():
    assert {name for name, *_ in GOLDEN} == set(OPERATORS)


@settings(derandomize=True, deadline=None, max_examples=10)
@given(
    st.lists(
        st.tuples(st.integers(-(10**12), 10**12), st.integers(-(10**6), 10**6)),
        min_size=1,
        max_size=50,
    )
)
def test_integer_division_and_remainder_are_pythons(compute, pairs):
    a, b = (list(side) for side in zip(*pairs, strict=True))
    quotients = compute(col("a") // col("b"), a=a, b=b)
    rests = compute(col("a") % col("b"), a=a, b=b)
    assert quotients == [x // y if y else None for x, y in pairs]
    assert rests == [x % y if y else None for x, y in pairs]


@settings(derandomize=True, deadline=None, max_examples=15)
@example("{}")
@example("chunk")
@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30))
def test_any_text_is_only_text(compute, text):
    assert compute(lit(text)) == [text]
    assert compute(concat(text, col("s")), s=["'; --"]) == [text + "'; --"]


@settings(derandomize=True, deadline=None, max_examples=15)
@example("{}")
@example("chunk")
@given(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1).filter(
        lambda name: name not in ("__row__", "y")
    )
)
def test_any_column_name_is_only_a_name(compute, name):
    assert compute(col(name) + 1, **{name: [41]}) == [42]


def test_names_that_differ_in_case_stay_apart(compute):
    assert compute(col("A") - col("a"), A=[5], a=[3]) == [2]
    names = ("A", "a", "^a", "^A", "", "^", ".", "^.", ":", "^:", "`", "'", "*", "+", "\\", "/")
    assert len({identifier(name) for name in names}) == len(names)


@pytest.mark.parametrize("value", [0, -(2**63), 2**63 - 1, 0.1, 1e300, -1e-300, INF, True])
def test_literal_number_keeps_its_value(compute, value):
    assert compute(lit(value)) == [value]


def test_literal_bytes_keep_their_value(compute):
    assert compute(lit(bytes(range(256)))) == [bytes(range(256))]


def test_deep_expressions_stay_of_linear_size():
    expression = col("a")
    for i in range(200):
        expression = expression * 1.5 + i
    sql, dtype = column(expression, Schema((Field("a", "float64"),)), "test", "duckdb")
    assert dtype == "float64"
    assert len(sql) < 200 * 200


def test_columns_read_are_found_anywhere_inside():
    expression = when(col("a") > col("b"), col("c").cast("string")).otherwise(concat("x", col("d")))
    assert columns_of(expression) == {"a", "b", "c", "d"}


SCHEMA = Schema(
    (
        Field("n", "int64"),
        Field("s", "string"),
        Field("t", "timestamp"),
        Field("v", "float32", (3,)),
    )
)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        (col("s") + 1, "found string, int64, allowed: numbers; concat"),
        (col("s") + col("s"), "concat"),
        (col("n") == "x", "values of one type"),
        (col("t") > "yesterday", "ISO 8601"),
        (col("s").hour(), "allowed: timestamps"),
        (col("n").lower(), r"allowed: text; cast\('string'\)"),
        (col("t").cast("float64"), "epoch_us"),
        (col("v") + 1, "columns of single values"),
        (col("t") * 2, "allowed: numbers"),
        (lit(None), "a value with a type"),
        (col("m"), "unknown column"),
        (when(col("s"), 1).otherwise(2), "conditions"),
        (make_timestamp(col("n"), 1.5, 2), "whole numbers"),
    ],
)
def test_wrong_type_says_what_was_found_and_what_is_allowed(expression, message):
    with pytest.raises(ValueError, match=message):
        column(expression, SCHEMA, "test", "duckdb")


def test_a_text_is_no_condition():
    with pytest.raises(ValueError, match=r"where: found string, allowed: conditions"):
        predicate(col("s"), SCHEMA, "where", "duckdb")


def test_a_dialect_that_nobody_wrote_is_named():
    with pytest.raises(ValueError, match="unknown dialect 'flink'"):
        column(col("n") + 1, SCHEMA, "test", "flink")


def test_value_that_cannot_be_cast_is_an_error_that_shows_it(compute):
    with pytest.raises(ValueError, match="'abc'"):
        compute(col("s").cast("int64"), s=["1", "abc"])


def test_float32_computes_as_float64(compute):
    column = pa.array([0.1], pa.float32())
    (value,) = compute(col("a") + 0, a=column)
    assert math.isclose(value, 0.1, rel_tol=1e-6)
    assert value == column[0].as_py()
