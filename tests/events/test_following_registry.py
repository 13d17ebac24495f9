"""Streams of Avro values whose registry is away for a while."""

import io
import struct
from pathlib import Path
from typing import Any

import fastavro
from followers import Running, count, held, made
from registry import Registry

import drivetrain as dt

OLD: dict[str, Any] = {
    "type": "record",
    "name": "Row",
    "fields": [{"name": "n", "type": "long"}],
}
NEW = {**OLD, "fields": [*OLD["fields"], {"name": "s", "type": "string", "default": "none"}]}


def value(number: int, row: dict[str, Any]) -> bytes:
    """A row as the schema of that number writes it."""
    sink = io.BytesIO(struct.pack(">bI", 0, number))
    sink.seek(0, io.SEEK_END)
    fastavro.schemaless_writer(sink, fastavro.parse_schema((OLD, NEW)[number - 1]), row)
    return sink.getvalue()


def test_it_waits_for_a_registry_that_is_gone_and_loses_nothing(
    broker: Any, topic: str, tmp_path: Path
) -> None:
    known = {
        "/schemas/ids/1": OLD,
        "/schemas/ids/2": NEW,
        f"/subjects/{topic}-value/versions/latest": NEW,
    }
    with Registry(known) as registry:
        leaf = {"format": dt.Avro(registry=registry.address), "types": None}
        stream = made(broker, topic, tmp_path, leaf=leaf)
        broker.send(topic, [value(1, {"n": n}) for n in range(10)])
        with Running(stream, tmp_path / "room") as running:
            running.until(count(stream)(10))
            registry.away = True
            broker.send(topic, [value(2, {"n": n, "s": "x"}) for n in range(10, 20)])
            running.until(lambda: running.has("with status 503: waiting for it"))
            registry.away = False
            running.until(count(stream)(20))
            assert running.has("answers again")
            running.end()
    assert held(stream) == list(range(20))


def test_a_run_that_waits_for_a_registry_ends_when_it_is_asked_to(
    broker: Any, topic: str, tmp_path: Path
) -> None:
    known = {"/schemas/ids/1": OLD, f"/subjects/{topic}-value/versions/latest": OLD}
    with Registry(known) as registry:
        leaf = {"format": dt.Avro(registry=registry.address), "types": None}
        stream = made(broker, topic, tmp_path, leaf=leaf)
        with Running(stream, tmp_path / "room") as running:
            running.until(count(stream)(0))
            registry.away = True
            broker.send(topic, [value(1, {"n": 0})])
            running.until(lambda: running.has("waiting for it"))
            running.end()
        registry.away = False
        with Running(stream, tmp_path / "room") as running:
            running.until(count(stream)(1))
            running.end()
    assert held(stream) == [0]
