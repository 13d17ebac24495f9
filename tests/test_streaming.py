"""From an event in a topic to a prediction that knows of it: a stream, its table and a server."""

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import drivetrain as dt
from bench.kafka import counting_bundle
from drivetrain.core.bundle import Bundle
from drivetrain.events.follow.following import follow
from drivetrain.serve.server import Server, running


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return counting_bundle(tmp_path / "counting")


@pytest.fixture
def port(bundle: Bundle) -> Iterator[int]:
    server = Server({"counting": bundle.path}, port=0, grace_seconds=5.0)
    with running(server):
        yield server.port


def count(port: int, card: str) -> int:
    asking = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = json.dumps({"card": card, "at": "2026-11-22T06:30:00"})
    asking.request("POST", "/predict/counting", body)
    found = json.loads(asking.getresponse().read())["predictions"][0]["got"]
    asking.close()
    return found


def test_what_a_stream_has_committed_is_in_the_windows_of_later_predictions(
    broker: Any, tmp_path: Path, port: int
) -> None:
    topic = broker.topic(2)
    events = dt.Kafka(
        topic,
        servers=broker.servers,
        types={"at": "timestamp", "card": "string", "amount": "float64"},
        time="at",
    ).where(dt.col("amount") > 0)
    stream = dt.Stream(
        name="counted",
        events=events,
        into=tmp_path / "table",
        every="20ms",
        observe=f"http://127.0.0.1:{port}/observe/counting",
    )
    for turn in range(3):  # each from where the one before has stopped
        for partition, card in enumerate(("a", "b")):
            at = f"2026-11-22T06:0{turn}:00Z"
            amounts = (1.0, 2.0, -1.0) if card == "a" else (1.0,)
            values = [json.dumps({"at": at, "card": card, "amount": x}).encode() for x in amounts]
            broker.send(topic, values, partition=partition)
        follow(stream, tmp_path / f"room {turn}", to_end=True)
        assert [count(port, card) for card in ("a", "b", "c")] == [2 * turn + 2, turn + 1, 0]
    assert not [t for t in threading.enumerate() if t.name.startswith("taking")]
