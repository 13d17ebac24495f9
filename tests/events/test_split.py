"""Splits: the past trains, and a hash that any engine can compute again."""

import hashlib
import math
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.core.schema import Field, Schema
from drivetrain.events import HashSplit, TimeSplit

MONTHS = TimeSplit(validate="2013-10-01", test="2013-11-01")


def run(compute, split, **columns):
    import pyarrow as pa

    from drivetrain.events.reading.arrow import schema_of_arrow

    schema = schema_of_arrow(pa.table(columns).schema)
    return compute(split.expression(schema, "at" if "at" in columns else None), **columns)


def test_bounds_belong_to_the_later_split(compute):
    at = [
        datetime(2013, 9, 30, 23, 59, 59, 999999),
        datetime(2013, 10, 1),
        datetime(2013, 10, 31, 23),
        datetime(2013, 11, 1),
        None,
    ]
    assert run(compute, MONTHS, at=at) == [0, 1, 1, 2, None]


def test_bounds_with_a_zone_are_turned_to_utc(compute):
    split = TimeSplit(validate="2013-10-01T00:00+02:00", test=datetime(2013, 11, 1, tzinfo=UTC))
    at = [datetime(2013, 9, 30, 21, 59), datetime(2013, 9, 30, 22)]
    assert run(compute, split, at=at) == [0, 1]
    day = TimeSplit(validate=date(2013, 9, 30), test="2013-09-30")
    assert run(compute, day, at=at) == [2, 2]


def as_text(value):
    """The documented canonical text, written anew."""
    if isinstance(value, str):
        return f"{len(value)}:{value}"
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "n"
    if isinstance(value, datetime):
        return str((value - datetime(1970, 1, 1)) // timedelta(microseconds=1))
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, float):
        whole = math.floor(min(max(value, -4e18), 4e18))
        return f"{whole}.{math.floor((value - math.floor(value)) * 2.0**32)}"
    return str(value)


def split_of(values, split):
    text = ",".join([str(split.seed), *map(as_text, values)])
    u = int(hashlib.md5(text.encode()).hexdigest()[:13], 16) / 16**13
    return 2 if u < split.test else 1 if u < split.test + split.validate else 0


ROWS = st.lists(
    st.tuples(
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8),
        st.none() | st.integers(-(2**63), 2**63 - 1),
        st.none() | st.floats(allow_nan=True, allow_infinity=True),
        st.none() | st.datetimes(datetime(1900, 1, 1), datetime(2100, 1, 1)),
        st.binary(max_size=5),
    ),
    min_size=1,
    max_size=60,
)


@settings(derandomize=True, deadline=None, max_examples=20)
@given(ROWS, st.integers(0, 5))
def test_hash_is_the_documented_md5_for_any_row(compute, rows, seed):
    import pyarrow as pa

    split = HashSplit(validate=0.3, test=0.3, seed=seed)
    s, n, x, at, b = zip(*rows, strict=True)
    columns = {
        "s": pa.array(s, pa.string()),
        "n": pa.array(n, pa.int64()),
        "x": pa.array(x, pa.float64()),
        "at": pa.array(at, pa.timestamp("us")),
        "b": pa.array(b, pa.binary()),
    }
    assert run(compute, split, **columns) == [split_of(row, split) for row in rows]


def test_shares_are_kept_and_another_seed_divides_anew(compute):
    keys = list(range(20_000))
    first = run(compute, HashSplit(columns=("k",), validate=0.1, test=0.2), k=keys)
    assert abs(first.count(2) / len(keys) - 0.2) < 0.01
    assert abs(first.count(1) / len(keys) - 0.1) < 0.01
    assert run(compute, HashSplit(columns=("k",), validate=0.1, test=0.2, seed=1), k=keys) != first


def test_equal_keys_stay_together_whatever_else_differs(compute):
    split = HashSplit(columns=("user",), validate=0.4, test=0.4)
    users = [i % 7 for i in range(100)]
    found = run(compute, split, user=users, other=list(range(100)))
    assert len(set(zip(users, found, strict=True))) == 7


@pytest.mark.parametrize("share", [0.0, 0.999999])
def test_no_share_is_no_rows(compute, share):
    found = run(compute, HashSplit(columns=("k",), validate=0, test=share), k=list(range(500)))
    assert (2 in found) is (share > 0)
    assert 1 not in found


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TimeSplit(validate="October", test="2013-11-01"), "TimeSplit.validate.*October"),
        (lambda: TimeSplit(validate="2013-11-01", test="2013-10-01"), "does not begin before"),
        (lambda: HashSplit(validate=0.5, test=0.5), "leave rows for training"),
        (lambda: HashSplit(validate=-0.1), "share of at least 0"),
        (lambda: HashSplit(test=float("nan")), "share of at least 0"),
        (lambda: HashSplit(columns="user"), r"\('user',\)"),
    ],
)
def test_wrong_split_says_what_is_allowed(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (MONTHS, "TimeSplit.column: found None"),
        (TimeSplit(validate="2013-10-01", test="2013-11-01", column="ay"), "Did you mean 'day'"),
        (TimeSplit(validate="2013-10-01", test="2013-11-01", column="day"), "allowed: timestamps"),
        (HashSplit(columns=("usr",)), "unknown column 'usr' in HashSplit. Did you mean 'user'"),
        (HashSplit(columns=()), "at least one column"),
    ],
)
def test_split_that_does_not_fit_the_columns_says_so(split, message):
    schema = Schema((Field("user", "string"), Field("day", "int64")))
    with pytest.raises(ValueError, match=message):
        split.expression(schema, None)
