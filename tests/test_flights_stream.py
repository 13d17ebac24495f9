"""Real flights through Kafka into a Delta table, beside the same declaration over files."""

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import drivetrain as dt
from drivetrain.cli import main
from drivetrain.declaration import declared
from drivetrain.events.duckdb import Limits, engine
from drivetrain.events.plan import stream as rows_of
from drivetrain.events.table import Leaf, Step, Table

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "flights_stream.py"


def rows(table: Table, names: Sequence[str]) -> pa.Table:
    """Rows of a table in an order of their own."""
    with engine(Limits(threads=1)) as running:
        found = pa.concat_tables(rows_of(table, names, running, Limits()))
    return found.sort_by([(name, "ascending") for name in names])


def on(table: Table, leaf: Leaf) -> Table:
    """The same steps on another leaf."""
    return replace(table, source=on(table.source, leaf)) if isinstance(table, Step) else leaf


def departed(path: Path) -> pa.Table:
    """The flights of three days in the order in which they left, those that never did last."""
    system = declared(EXAMPLE.with_name("flights.py"))
    assert isinstance(system, dt.System)
    assert isinstance(system.events, Table)
    scheduled = system.events.chain()[0]
    first = scheduled.where(dt.col("time_hour") < datetime(2013, 1, 4))
    at = dt.col("time_hour") + dt.minutes(dt.col("minute") + dt.col("dep_delay"))
    names = ("left_at", "carrier", "origin", "dest", "tailnum", "dep_delay")
    delayed = first.with_columns(left_at=at, dep_delay=dt.col("dep_delay").cast("float64"))
    found = rows(delayed, names)
    pq.write_table(found, path)
    return found


def test_the_table_of_a_stream_is_what_the_same_steps_give_over_files(
    broker: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BROKERS", broker.servers)
    flights = departed(tmp_path / "departed.parquet").to_pylist()
    assert len(flights) > 2_000
    messages = [json.dumps(flight, default=datetime.isoformat).encode() for flight in flights]
    topic = broker.topic(name="departures")
    broker.send(topic, messages[:1_000])
    assert main(["run", str(EXAMPLE), "--to-end"]) == 0
    broker.send(topic, [b"torn", *messages[1_000:]])
    assert main(["run", str(EXAMPLE), "--to-end"]) == 0, "it goes on, windows and all"

    stream = declared(EXAMPLE)
    assert isinstance(stream, dt.Stream)
    names = stream.events.schema.names
    found = rows(dt.Delta(stream.into), names)
    assert found.equals(
        rows(on(stream.events, dt.Parquet("departed.parquet", time="left_at")), names)
    )
    assert len(found) == sum(flight["dep_delay"] is not None for flight in flights)
    assert found["plane_delay"].null_count < len(found)
    assert stream.dead is not None
    assert rows(dt.Delta(stream.dead), ("offset",))["offset"].to_pylist() == [1_000]
