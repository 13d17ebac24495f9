"""A stream with windows on Spark, and the embedded runner before it, behind it and beside it."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from spending import TYPES, behind, bits, purchases, records

import drivetrain as dt
from drivetrain.core.metric import Emitted, Note
from drivetrain.core.site import EngineSite
from drivetrain.events.follow import following
from drivetrain.events.lake.snapshot import Snapshot
from drivetrain.events.spark import streaming


def made(broker: Any, topic: str, folder: Path) -> dt.Stream:
    leaf = dt.Kafka(topic, servers=broker.servers, types=TYPES, time="at")
    into = {"into": folder / "table", "dead": folder / "dead"}
    return dt.Stream(name="made", events=behind(leaf), messages=80, every="20ms", **into)


def found(stream: dt.Stream) -> tuple[list[Any], list[int]]:
    """The rows and the offsets of the dead letters."""
    tables = [Snapshot.open(str(path)) for path in (stream.into, stream.dead)]
    rows, dead = ([*table.chunks(table.schema, 1000)] for table in tables)
    offsets = sorted(pa.concat_tables(dead)["offset"].to_pylist())
    return bits(pa.concat_tables(rows).sort_by("n")), offsets


def test_windows_are_those_of_the_embedded_runner_whichever_of_both_goes_on(
    spark: Any, spark_site: EngineSite, broker: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = broker.topic()
    (batch,) = records(purchases(240, 5, ["1", "2", "3", "4", "5", "6", None]))
    values = batch.column("value").to_pylist()
    values[130] = values[130].replace(b'"card": ', b'"card": "x", "old": ')
    heard: list[Emitted] = []
    one = made(broker, topic, tmp_path / "one")
    room = tmp_path / "room"

    def sent(first: int, last: int) -> None:
        broker.send(topic, values[first:last])

    sent(0, 50)
    following.follow(one, room, to_end=True, emit=heard.append)
    sent(50, 200)
    pace = streaming.follow(one, room, spark_site, to_end=True, emit=heard.append)
    assert pace.commits >= 2
    assert not list(room.glob("state-*.bin"))
    sent(200, 240)
    following.follow(one, room, to_end=True, emit=heard.append)
    assert not list((room / "windows").glob("*"))
    assert not [item for item in heard if isinstance(item, Note) and "again" in item.text]
    two = made(broker, topic, tmp_path / "two")
    following.follow(two, tmp_path / "another room", to_end=True)
    assert found(one) == found(two)
    assert found(one)[1] == [130]
