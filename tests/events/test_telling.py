"""Servers that are told what a stream has committed: each row once, whoever was away."""

import json
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

import drivetrain as dt
from drivetrain.events.follow.following import follow

TYPES: Any = {"n": "int64", "s": "string", "at": "timestamp"}


class Double:
    """What a server does with posts: it ignores one whose offset is not beyond what it has.

    Attributes:
        rows: that it was told, in order.
        positions: of each source.
        status: that it answers posts with.
        lose: let the next answer to a post be lost, with the rows kept.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.positions: dict[str, int] = {}
        self.status, self.lose, self.posts = 200, False, 0
        self.tokens: set[str | None] = set()
        double = self

        class Answers(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer(200, {"positions": double.positions, "columns": ["n", "at", "more"]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                double.posts += 1
                double.tokens.add(self.headers["Authorization"])
                if double.status == 200:
                    double.take(body)
                if double.lose:
                    double.lose = False
                    self.close_connection = True
                    return
                self._answer(double.status, {"error": "as told"})

            def _answer(self, status: int, found: Any) -> None:
                data = json.dumps(found).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                """Tests are silent."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        self._thread = Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        self.address = f"http://127.0.0.1:{self._server.server_port}/observe/made"

    def take(self, body: dict[str, Any]) -> None:
        source, offset = body["source"], body["offset"]
        if offset > self.positions.get(source, -1):
            self.positions[source] = offset
            self.rows += body["rows"]

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def numbers(self) -> list[int]:
        return sorted(row["n"] for row in self.rows)


@pytest.fixture
def double() -> Iterator[Double]:
    found = Double()
    yield found
    found.close()


@pytest.fixture
def topic(broker: Any) -> str:
    return broker.topic(2)


def send(broker: Any, topic: str, first: int, count: int) -> None:
    for partition in (0, 1):
        values = [
            b'{"n": %d, "s": "x", "at": "2026-11-22T06:00:00Z"}' % n
            for n in range(first, first + count)
            if n % 2 == partition
        ]
        broker.send(topic, values, partition=partition)


def made(broker: Any, topic: str, folder: Path, double: Double, **more: Any) -> dt.Stream:
    events = dt.Kafka(topic, servers=broker.servers, types=TYPES).where(dt.col("n") % 5 != 0)
    given = {"messages": 40, "observe": double.address, **more}
    return dt.Stream(name="made", events=events, into=folder / "table", every="20ms", **given)


def kept(count: int, first: int = 0) -> list[int]:
    return [n for n in range(first, first + count) if n % 5]


def test_a_server_is_told_the_columns_that_it_observes_of_each_row_once(
    broker: Any, topic: str, tmp_path: Path, double: Double
) -> None:
    stream = made(broker, topic, tmp_path, double)
    send(broker, topic, 0, 200)
    follow(stream, tmp_path / "room", to_end=True, token="word")
    assert double.numbers == kept(200)
    assert double.rows[0].keys() == {"n", "at"}
    assert double.rows[0]["at"] == "2026-11-22T06:00:00"
    assert double.positions == {f"{topic}/0": 100, f"{topic}/1": 100}
    assert double.tokens == {"Bearer word"}
    posts = double.posts
    follow(stream, tmp_path / "room", to_end=True)
    assert double.posts == posts


def test_what_a_server_has_is_not_told_again_though_its_answer_was_lost(
    broker: Any, topic: str, tmp_path: Path, double: Double
) -> None:
    double.lose = True
    send(broker, topic, 0, 100)
    heard: list[Any] = []
    stream = made(broker, topic, tmp_path, double)
    follow(stream, tmp_path / "room", to_end=True, emit=heard.append)
    assert double.numbers == kept(100)
    assert any("does not answer" in getattr(item, "text", "") for item in heard)
    assert any("answers again" in getattr(item, "text", "") for item in heard)


def test_a_server_that_refuses_for_now_does_not_hold_the_table_up(
    broker: Any, topic: str, tmp_path: Path, double: Double
) -> None:
    double.status = 503
    stream = made(broker, topic, tmp_path, double)
    send(broker, topic, 0, 100)
    pace = follow(stream, tmp_path / "room", to_end=True)
    assert (pace.rows, double.numbers) == (80, [])
    double.status = 200
    send(broker, topic, 100, 100)
    follow(stream, tmp_path / "room", to_end=True)
    assert double.numbers == kept(200)


def test_a_server_that_lost_what_it_was_told_is_told_all_of_it_again(
    broker: Any, topic: str, tmp_path: Path, double: Double
) -> None:
    stream = made(broker, topic, tmp_path, double)
    send(broker, topic, 0, 100)
    follow(stream, tmp_path / "room", to_end=True)
    double.rows.clear()
    double.positions.clear()
    send(broker, topic, 100, 10)
    follow(stream, tmp_path / "another room", to_end=True)
    assert double.numbers == kept(110)


def test_a_server_that_does_not_take_the_columns_ends_it_and_says_what_it_answered(
    broker: Any, topic: str, tmp_path: Path, double: Double
) -> None:
    double.status = 400
    stream = made(broker, topic, tmp_path, double)
    send(broker, topic, 0, 10)
    with pytest.raises(ValueError, match=r"status 400.*as told"):
        follow(stream, tmp_path / "room", to_end=True)


def test_a_column_that_is_not_there_or_a_window_cannot_be_observed(
    broker: Any, topic: str, tmp_path: Path, double: Double
) -> None:
    stream = made(broker, topic, tmp_path, double, observed=("m",))
    with pytest.raises(ValueError, match=r"unknown column 'm' in Stream\.observed"):
        follow(stream, tmp_path / "room", to_end=True)
    leaf = dt.Kafka(topic, servers=broker.servers, types=TYPES, time="at")
    events = leaf.with_windows(seen=dt.Window(by="s", over="1h", stat="count"))
    given = {"into": tmp_path / "table", "observe": double.address}
    stream = dt.Stream(name="made", events=events, observed=("seen",), **given)
    with pytest.raises(ValueError, match="columns that are no windows"):
        follow(stream, tmp_path / "room", to_end=True)
    send(broker, topic, 0, 10)
    stream = dt.Stream(name="made", events=events, observed=("n", "s"), **given)
    follow(stream, tmp_path / "room", to_end=True)
    assert double.numbers == list(range(10))


def test_what_is_laid_aside_is_not_told_when_it_is_read_again_either(
    broker: Any, topic: str, tmp_path: Path, double: Double
) -> None:
    """It fails in a step of a column that the server does not ask for."""
    broker.send(topic, [b'{"n": 1, "s": "6"}', b'{"n": 2, "s": "six"}'], partition=0)
    stream = made(broker, topic, tmp_path, double, dead=tmp_path / "dead", observe=())
    stream = replace(stream, events=stream.events.with_columns(m=dt.col("s").cast("int64")))
    follow(stream, tmp_path / "room", to_end=True)
    follow(replace(stream, observe=double.address), tmp_path / "room", to_end=True)
    assert double.numbers == [1]
