"""Windows of all real flights: online as offline, as SQL finds them, and none sees the future."""

import http.client
import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import drivetrain as dt
from bench.skew_windows import different, offline, online
from drivetrain.core.batch import Array, Batch
from drivetrain.core.schema import MISSING_INT, Schema
from drivetrain.core.site import EngineSite, Site
from drivetrain.core.window import Window, Windows
from drivetrain.declaration import load, with_settings
from drivetrain.events.duckdb import Limits, engine
from drivetrain.events.files import Parquet
from drivetrain.events.plan import stream
from drivetrain.events.windows import WithWindows, kept
from drivetrain.pipeline import run
from drivetrain.serve.server import Server, running

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


# -- served ----------------------------------------------------------------------------------------

SMALL = ("train.epochs=1", "model.members=1", "model.hidden=[16]", "train.batch_size=8192")
BOUNDS = ("probes.0.at_least=0.5", "probes.1.at_most=1.0", "probes.3.p50_ms=1000.0")
DAY = 86_400_000_000
FROM = int(np.datetime64("2013-11-20", "us").astype(np.int64))
TOLD = {
    "departs_at": ("origin", "departs_at"),
    "left_at": ("origin", "carrier", "tailnum", "dep_delay", "left_at"),
    "arrived_at": ("dest", "arr_delay", "arrived_at"),
}
"""What a feeder knows of a flight when it was due, when it left and when it arrived."""
Event = tuple[int, str, dict[str, Any]]


def plain(rows: Batch, names: Sequence[str]) -> list[dict[str, Any]]:
    """Rows as JSON has them, missing values as null."""

    def known(value: Any) -> Any:
        return None if value in ("", MISSING_INT) or value != value else value

    found = rows.select(names).rows()
    return [{name: known(value) for name, value in row.items()} for row in found]


def happened(flights: Batch, asked: Batch, needed: Sequence[str]) -> list[Event]:
    """What a server is told and asked, in order of time: of a day, and of two before it."""
    events: list[Event] = []
    for time, names in TOLD.items():
        there = (flights["departs_at"] >= FROM - 2 * DAY) & (flights["departs_at"] < FROM + DAY)
        rows = flights.take(np.flatnonzero(there & (flights[time] != MISSING_INT)))
        moments = rows[time].tolist()
        events += [(m, "observe", row) for m, row in zip(moments, plain(rows, names), strict=True)]
    moments = asked["departs_at"].tolist()
    events += [(m, "predict", row) for m, row in zip(moments, plain(asked, needed), strict=True)]
    return sorted(events, key=lambda event: event[0])


def served(bundle: Path, events: Sequence[Event]) -> list[float]:
    """What a server answers that is told of what happens, and asked, in this order."""
    found: list[float] = []
    with running(Server({"flights": bundle}, port=0)) as url:
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
        for verb, group in groupby(events, lambda event: event[1]):
            body = json.dumps({"rows": [row for _, _, row in group]})
            head = {"Content-Type": "application/json"}
            connection.request("POST", f"/{verb}/flights", body, head)
            answer = connection.getresponse()
            said = json.loads(answer.read())
            assert answer.status == 200, said
            found += [one["late"] for one in said.get("predictions", ())]
        connection.close()
    return found


def test_a_server_that_is_told_of_flights_predicts_as_the_plan_does(
    filled: Filled, tmp_path: Path
) -> None:
    store, work = str(tmp_path / "store"), str(tmp_path / "work")
    site = Site(store=store, work=work, device="cpu", engine=EngineSite(threads=1))
    system, _ = with_settings(load(EXAMPLE), site, (*SMALL, *BOUNDS))
    assert system is not None
    bundle = run(system, site)
    assert bundle is not None
    windows, _, flights = filled
    inputs = bundle.manifest.inputs.names
    assert set(windows.names) < set(inputs)
    names = tuple(dict.fromkeys((*inputs, *windows.asked)))
    day = dt.col("departs_at").between("2013-11-20", "2013-11-20T23:59:59")
    plan = system.events.where(day)
    with engine(Limits(threads=1)) as lent:
        parts = list(stream(plan, names, lent, Limits(threads=1)))
    asked = Batch.from_arrow(pa.concat_tables(parts), plan.schema.select(names))
    asked = asked.take(np.argsort(asked["departs_at"], kind="stable"))
    assert len(asked) == 970
    events = happened(flights, asked, [name for name in names if name not in windows.names])
    answers = np.array(served(bundle.path, events), dtype=np.float32)
    assert np.array_equal(answers, bundle.predict(asked.select(inputs))["late"])
