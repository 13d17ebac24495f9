"""As-of joins: equal to a naive search, to DuckDB's own and, on the real flights, to pandas'."""

from datetime import datetime, timedelta

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather as feather
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.core.batch import Batch
from drivetrain.core.seams import SPLITS
from drivetrain.events import CSV, Arrow, col
from drivetrain.events.asof import LastBefore

EVENTS = st.lists(st.tuples(st.none() | st.sampled_from("ab"), st.none() | st.integers(0, 9)))


def naive(left, right, strict, tolerance):
    """The last row before, by looking at every one."""
    found = []
    for key, time in left:
        best = -1
        for row, (other, observed) in enumerate(right):
            if None in (key, time, other, observed) or other != key:
                continue
            early = observed < time or (not strict and observed == time)
            fresh = tolerance is None or time - observed <= tolerance
            if early and fresh and (best < 0 or observed >= right[best][1]):
                best = row
        found.append(best)
    return found


def columns(rows):
    keys, times = zip(*rows, strict=True) if rows else ((), ())
    return pa.array(keys, pa.string()), pa.array(times, pa.int64()).cast(pa.timestamp("us"))


@settings(derandomize=True, deadline=None, max_examples=200)
@given(EVENTS, EVENTS, st.booleans(), st.none() | st.integers(0, 5))
def test_search_is_the_naive_one_for_any_rows(left, right, strict, tolerance):
    keys, times = columns(right)
    search = LastBefore([keys], times, strict=strict, tolerance_us=tolerance)
    keys, times = columns(left)
    assert search.find([keys], times).tolist() == naive(left, right, strict, tolerance)


def test_several_keys_are_compared_each():
    right = pa.array(["a", "a", "b"]), pa.array([1, 2, 1])
    times = pa.array([1, 1, 1], pa.timestamp("us"))
    search = LastBefore(right, times)
    keys = [pa.array(["b", "a", "b", "c"]), pa.array([1, 2, 2, 1])]
    assert search.find(keys, pa.array([5] * 4, pa.timestamp("us"))).tolist() == [2, 1, -1, -1]


def rows_of(table):
    return [row for split in SPLITS for batch in table.batches(split) for row in batch.rows()]


def test_join_equals_duckdbs_own_on_made_rows(tmp_path):
    rng = np.random.default_rng(0)
    left = pa.table(
        {
            "i": np.arange(5_000),
            "k": rng.integers(0, 20, 5_000),
            "at": rng.integers(0, 10_000, 5_000).astype("datetime64[us]"),
        }
    )
    right = pa.table(
        {
            "k": rng.integers(0, 25, 900),
            "seen": rng.permutation(10_000)[:900].astype("datetime64[us]"),
            "value": rng.normal(size=900),
        }
    )
    feather.write_feather(left, tmp_path / "left.arrow")
    feather.write_feather(right, tmp_path / "right.arrow")
    for strict, sign in ((True, ">"), (False, ">=")):
        joined = Arrow(tmp_path / "left.arrow").join_asof(
            Arrow(tmp_path / "right.arrow"), time=("at", "seen"), by="k", strict=strict
        )
        found = {row["i"]: row["value"] for row in rows_of(joined)}
        connection = duckdb.connect()
        connection.register("l", left)
        connection.register("r", right)
        due = connection.sql(
            f"SELECT i, value FROM l ASOF LEFT JOIN r ON l.k = r.k AND l.at {sign} r.seen"
        ).fetchall()
        connection.close()
        assert len(due) == len(found) == 5_000
        for i, value in due:
            assert found[i] == value or (value is None and np.isnan(found[i]))


def test_tolerance_forgets_what_is_too_old(tmp_path):
    start = datetime(2013, 1, 1)
    feather.write_feather(
        pa.table({"at": [start + timedelta(hours=h) for h in (1, 5)]}), tmp_path / "l.arrow"
    )
    feather.write_feather(pa.table({"at": [start], "v": ["seen"]}), tmp_path / "r.arrow")
    joined = Arrow(tmp_path / "l.arrow").join_asof(
        Arrow(tmp_path / "r.arrow"), time="at", tolerance=timedelta(hours=2)
    )
    assert sorted((row["at"], row["v"]) for row in rows_of(joined)) == [
        (1356998400_000_000 + 3600_000_000, "seen"),
        (1356998400_000_000 + 5 * 3600_000_000, ""),
    ]


def test_weather_of_real_flights_is_what_pandas_merge_asof_finds(flights):
    """The stamps are UTC hours; weather of the flight's own hour is not yet known, so strict."""
    weather = CSV(flights / "weather.csv").with_columns(seen=col("time_hour"))
    table = (
        CSV(f"zip://flights.csv::{flights}/flights.csv.zip", time="time_hour")
        .select("flight", "carrier", "origin", "time_hour", "sched_dep_time")
        .join_asof(weather, time="time_hour", by="origin", columns=("seen", "temp", "visib"))
    )
    found = Batch.concat([batch for split in SPLITS for batch in table.batches(split)])
    found = pd.DataFrame({name: found[name] for name in found.columns})

    raw = pd.read_csv(flights / "flights.csv.zip", parse_dates=["time_hour"])
    observed = pd.read_csv(flights / "weather.csv", parse_dates=["time_hour"])
    observed["seen"] = observed["time_hour"]
    due = pd.merge_asof(
        raw.sort_values("time_hour", kind="stable"),
        observed[["origin", "time_hour", "seen", "temp", "visib"]].sort_values("time_hour"),
        on="time_hour",
        by="origin",
        allow_exact_matches=False,
    )
    for name in ("time_hour", "seen"):
        naive_time = due[name].dt.tz_localize(None).astype("datetime64[us]")
        due[name] = naive_time.astype("int64").where(naive_time.notna(), -(2**63))
    assert len(found) == len(due) == 336_776
    names = ["time_hour", "origin", "carrier", "flight", "sched_dep_time", "seen", "temp", "visib"]
    found = found[names].sort_values(names).reset_index(drop=True)
    due = due[names].sort_values(names).reset_index(drop=True)
    for name in names:
        assert (found[name].to_numpy() == due[name].to_numpy())[due[name].notna()].all(), name
        assert (found[name].isna() == due[name].isna()).all(), name
    known = found["seen"] != -(2**63)
    assert (found["seen"] < found["time_hour"])[known].all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"time": "att"}, "Did you mean 'at'"),
        ({"time": ("at", "v")}, "allowed: timestamps"),
        ({"time": "at", "by": "v"}, "unknown column 'v'"),
        ({"time": "at", "columns": ("w",)}, "unknown column 'w'"),
        ({"time": "at", "columns": ("at",)}, "found 'at' on both sides"),
    ],
)
def test_wrong_join_is_an_error_at_declaration_check(tmp_path, change, message):
    feather.write_feather(pa.table({"at": [datetime(2013, 1, 1)]}), tmp_path / "l.arrow")
    feather.write_feather(
        pa.table({"at": [datetime(2013, 1, 1)], "v": ["x"]}), tmp_path / "r.arrow"
    )
    joined = Arrow(tmp_path / "l.arrow").join_asof(Arrow(tmp_path / "r.arrow"), **change)
    with pytest.raises(ValueError, match=message):
        _ = joined.schema
