"""A declaration of windows says what it takes, keeps each thing once and comes back from JSON."""

from datetime import timedelta

import pytest

from drivetrain.core.schema import Field, Schema
from drivetrain.core.window import STATS, Window, Windows, microseconds_of

SCHEMA = Schema(
    (
        Field("at", "timestamp"),
        Field("landed", "timestamp"),
        Field("card", "string"),
        Field("shop", "int64"),
        Field("amount", "float32"),
        Field("rate", "float64"),
        Field("note", "string"),
        Field("pair", "float32", (2,)),
    )
)


def windows(lateness: int = 0, **columns: Window) -> Windows:
    return Windows("at", tuple(columns.items()), lateness)


@pytest.mark.parametrize(
    ("length", "microseconds"),
    [
        ("1us", 1),
        ("90s", 90_000_000),
        ("3h", 10_800_000_000),
        (" 2w ", 1_209_600_000_000),
        (timedelta(days=1, microseconds=5), 86_400_000_005),
    ],
)
def test_a_length_of_time_is_read_in_microseconds(length, microseconds):
    assert microseconds_of(length, "here") == microseconds


@pytest.mark.parametrize(
    "length", ["", "3", "h", "-3h", "0s", "1.5h", "99999999999w", timedelta(0)]
)
def test_what_is_no_length_of_time_is_refused_where_it_stands(length):
    with pytest.raises(ValueError, match=r"over: found .*, allowed: a length of time"):
        Window(by="card", stat="count", over=length)


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        ({"stat": "sums", "value": "rate"}, "unknown stat 'sums'.*Did you mean 'sum'"),
        ({"stat": "count", "by": ()}, "by: found .*1 to 16 columns"),
        ({"stat": "count", "by": [f"c{n}" for n in range(17)]}, "by: found .*1 to 16 columns"),
        ({"stat": "sum"}, "value: found None, allowed: a column"),
        ({"stat": "count", "rows": 0}, "rows: found 0, allowed: 1 to 2147483647"),
        ({"stat": "count", "rows": (1 << 32) + 1}, "rows: found 4294967297, allowed: 1 to"),
        ({"stat": "recent", "value": "rate"}, "rows: found None, allowed: how many"),
        ({"stat": "max", "value": "rate"}, "over: found None, allowed: a length of time, or rows"),
        ({"stat": "max", "value": "rate", "half_life": "1h", "rows": 1}, "half_life: found"),
        ({"stat": "sum", "value": "rate", "half_life": "1h", "over": "1h"}, "half_life: found"),
        ({"stat": "last", "value": "rate", "resolution": "1h"}, "resolution: found"),
        ({"stat": "sum", "value": "rate", "resolution": "1h", "rows": 2}, "resolution: found"),
    ],
)
def test_a_window_that_makes_no_sense_is_refused(given, wrong):
    with pytest.raises(ValueError, match=wrong):
        Window(given.pop("value", None), by=given.pop("by", "card"), **given)


@pytest.mark.parametrize(
    ("window", "field"),
    [
        (Window(by="card", stat="count"), Field("w", "int64")),
        (Window(by="card", stat="count", half_life="1h"), Field("w", "float64")),
        (Window(by="card", stat="since"), Field("w", "float64")),
        (Window("shop", by="card", stat="sum"), Field("w", "float64")),
        (Window("shop", by="card", stat="last"), Field("w", "int64")),
        (Window("amount", by="shop", stat="last"), Field("w", "float64")),
        (Window("landed", by="at", stat="max", rows=2), Field("w", "timestamp")),
        (Window("note", by="card", stat="distinct", rows=9), Field("w", "int64")),
        (Window("amount", by="card", stat="recent", rows=3), Field("w", "float64", (3,))),
    ],
)
def test_a_window_gives_a_column_of_its_own_type(window, field):
    assert windows(w=window).fields(SCHEMA) == (field,)


@pytest.mark.parametrize(
    ("window", "wrong"),
    [
        (Window("amont", by="card", stat="sum"), "unknown column 'amont'.*Did you mean 'amount'"),
        (Window("note", by="card", stat="sum"), "column 'note': found 'string'"),
        (Window("landed", by="card", stat="mean"), "column 'landed': found 'timestamp'"),
        (Window("pair", by="card", stat="last"), "column 'pair': found"),
        (Window(by="rate", stat="count"), "key 'rate': found 'float64'"),
        (Window(by="card", stat="count", known="shop"), "known 'shop': found 'int64'"),
    ],
)
def test_a_column_that_a_window_cannot_take_is_refused_by_name(window, wrong):
    with pytest.raises(ValueError, match=wrong):
        windows(w=window).fields(SCHEMA)


def test_a_window_takes_no_name_that_is_taken_and_a_time_that_is_one():
    count = Window(by="card", stat="count")
    with pytest.raises(ValueError, match="column 'note': found 'one that is there'"):
        windows(note=count).fields(SCHEMA)
    with pytest.raises(ValueError, match="time 'shop': found 'int64'"):
        Windows("shop", (("w", count),)).fields(SCHEMA)


def test_what_several_windows_look_at_is_kept_once():
    declared = windows(
        a=Window("rate", by="card", stat="sum", over="1h"),
        b=Window("rate", by=("card",), stat="max", over="60m", known="at"),
        c=Window(by="card", stat="count"),
        d=Window("rate", by="card", stat="sum", over="1h", known="landed"),
        e=Window("rate", by=("card", "shop"), stat="sum"),
        f=Window("rate", by="card", stat="sum", over="1h", resolution="1m"),
    )
    found = [[name for name, _ in track.windows] for track in declared.tracks]
    assert found == [["a", "b"], ["c"], ["d"], ["e"], ["f"]]
    assert [track.known for track in declared.tracks] == ["at", "at", "landed", "at", "at"]
    assert declared.tracks[4].resolution == 60_000_000
    assert declared.asked == ("at", "card", "shop")
    assert declared.observed == ("card", "at", "rate", "landed", "shop")


def test_a_declaration_comes_back_from_json_as_it_was():
    declared = windows(
        7,
        a=Window("rate", by=("card", "shop"), stat="mean", half_life="7d", known="landed"),
        b=Window("rate", by="card", stat="recent", rows=4, over=timedelta(hours=2)),
        c=Window("rate", by="card", stat="min", over="2h", resolution="1m"),
    )
    assert Windows.from_json(declared.to_json()) == declared
    assert declared.select(("b",)).names == ("b",)
    assert declared.select(("b",)).lateness == 7


@pytest.mark.parametrize(
    "data", [{}, {"time": "at", "columns": {}}, {"time": "at", "columns": [1], "lateness": 0}]
)
def test_json_of_something_else_is_refused(data):
    with pytest.raises(ValueError, match="windows: found"):
        Windows.from_json(data)


def test_json_with_an_option_that_does_not_exist_is_refused_by_name():
    data = windows(a=Window(by="card", stat="count", over="1h")).to_json()
    data["columns"]["a"]["ovr"] = data["columns"]["a"].pop("over")
    with pytest.raises(ValueError, match=r"unknown key 'ovr' in window 'a'\. Did you mean 'over'"):
        Windows.from_json(data)


def test_every_statistic_has_a_window_that_takes_it():
    for stat in STATS:
        window = Window("rate", by="card", stat=stat, rows=2)
        assert windows(w=window).fields(SCHEMA)[0].name == "w"
