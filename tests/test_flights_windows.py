"""Windows of all real flights: online as offline, as SQL finds them, and none sees the future."""

from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench.skew_windows import different, offline, online
from drivetrain.core.batch import Array, Batch
from drivetrain.core.schema import MISSING_INT, Schema
from drivetrain.core.window import Window, Windows
from drivetrain.declaration import load
from drivetrain.events.duckdb import Limits, engine
from drivetrain.events.files import Parquet
from drivetrain.events.plan import stream
from drivetrain.events.windows import WithWindows, kept

Filled = tuple[Windows, Schema, Batch]
EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "flights_windows.py"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def filled() -> Filled:
    """The windows of the flights system, what they read, and all flights with both."""
    return offline()


def test_what_is_kept_online_is_what_a_backfill_gives_to_the_last_bit(filled: Filled) -> None:
    windows, schema, flights = filled
    assert len(flights) == 336_776
    found = online(windows, schema, flights)
    assert different(flights, found) == 0
    found["origin_left"][5] += 1
    assert different(flights, found) == 1


def nulled(flights: Batch, schema: Schema) -> pa.Table:
    columns: dict[str, object] = {}
    for field in schema:
        values = flights[field.name]
        if field.dtype == "string":
            columns[field.name] = pa.array(values, mask=values == "")
            continue
        missing = values == MISSING_INT if values.dtype.kind == "i" else np.isnan(values)
        array = pa.array(values, mask=missing)
        columns[field.name] = (
            array.cast(pa.timestamp("us")) if field.dtype == "timestamp" else array
        )
    return pa.table(columns)


def again(table: pa.Table, windows: Windows, path: Path) -> dict[str, Array]:
    """The windows of rows in a file."""
    pq.write_table(table, path)
    made = WithWindows(Parquet(path), windows)
    with engine(Limits(threads=1)) as running:
        parts = list(stream(made, windows.names, running, Limits(threads=1)))
    rows = Batch.from_arrow(pa.concat_tables(parts), made.schema.select(windows.names))
    return {name: rows[name] for name in windows.names}


def test_what_becomes_known_later_changes_no_window(filled: Filled, tmp_path: Path) -> None:
    windows, schema, flights = filled
    july = int(np.datetime64("2013-07-01T12:00", "us").astype(np.int64))
    columns = {field.name: flights[field.name].copy() for field in schema}
    later = columns["left_at"] >= july
    columns["dep_delay"][later & (columns["left_at"] != MISSING_INT)] = 777
    columns["arr_delay"][columns["arrived_at"] >= july] = 777
    columns["left_at"][later] += 60_000_000
    changed = nulled(Batch(columns), schema)
    found = again(changed, windows, tmp_path / "changed.parquet")
    before = flights["departs_at"] <= july
    assert 100_000 < before.sum() < 250_000
    for name in windows.names:
        same = found[name].view(np.int64) == flights[name].view(np.int64)
        assert same[before].all(), name
    assert (found["origin_delay"] != flights["origin_delay"])[~before].mean() > 0.9


def oracle(name: str, window: Window, chosen: str) -> str:
    """A window in SQL: every flight that is asked about beside every one of its key."""
    (key,) = window.keys
    known, over = window.known or "departs_at", str(window.over).removesuffix("us")
    give = {
        "mean": f"avg(f.{window.value})",
        "count": f"count(f.{window.value or 'departs_at'})",
        "last": f"max_by(f.{window.value}, (f.{known}, f.{window.value}))",
    }[window.stat]
    return (
        f"SELECT c.position, {give} AS given FROM {chosen} c LEFT JOIN flights f "
        f"ON f.{key} = c.{key} AND f.{known} < c.departs_at AND "
        f"f.{known} >= c.departs_at - to_microseconds({over}) "
        f"{'' if window.value is None else f'AND f.{window.value} IS NOT NULL '}"
        f"GROUP BY c.position ORDER BY c.position"
    )


def test_sql_finds_the_same(filled: Filled) -> None:
    windows, schema, flights = filled
    table = nulled(flights, Schema((*schema,)))
    table = table.append_column("position", pa.array(np.arange(len(flights))))
    connection = duckdb.connect(config={"threads": 2})
    connection.register("flights", table)
    connection.execute("CREATE TABLE chosen AS SELECT * FROM flights WHERE position % 331 = 7")
    for name, window in windows.columns:
        given = connection.execute(oracle(name, window, "chosen")).fetchall()
        assert len(given) > 1_000
        for position, value in given:
            found = flights[name][position].item()
            missing = found == MISSING_INT or found != found
            assert (None if missing else found) == value, (name, position)


def test_flights_arrive_when_the_clocks_say_and_none_is_told_of_itself() -> None:
    system = load(EXAMPLE)
    found = kept(system.events, system.columns)
    assert found is not None
    names = ("departs_at", "left_at", "arrived_at", "dep_delay", "air_time")
    with engine(Limits(threads=1)) as running:
        parts = list(stream(found.step, names, running, Limits(threads=1)))
    flights = Batch.from_arrow(pa.concat_tables(parts), found.step.schema.select(names))
    arrived = flights["arrived_at"] != MISSING_INT
    assert arrived.sum() == 327_346
    assert (flights["left_at"] == MISSING_INT).sum() == 336_776 - 328_521
    left = flights["left_at"] != MISSING_INT
    assert (flights["left_at"] >= flights["departs_at"])[left].all()
    assert (flights["arrived_at"] > flights["departs_at"])[arrived].all()
    # From gate to gate less what was flown is what was taxied: an error of a time zone is an hour.
    since = flights["departs_at"] + flights["dep_delay"] * 60_000_000
    taxied = (flights["arrived_at"] - since)[arrived] / 60_000_000 - flights["air_time"][arrived]
    assert taxied.min() >= 5
    assert taxied.max() < 240
    assert 20 < np.median(taxied) < 40
