"""A stream with windows: what they hold after any stop is what they would hold without one."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import drivetrain as dt
from drivetrain.events.follow.following import follow
from drivetrain.events.lake.lake import Lake
from drivetrain.events.lake.snapshot import Snapshot

TYPES: Any = {"n": "int64", "card": "string", "amount": "float64", "at": "timestamp"}
START = 1_790_000_000


def purchases(first: int, count: int) -> list[bytes]:
    """One a second, on three cards."""
    rows = (
        {"n": n, "card": f"card {n % 3}", "amount": n / 4, "at": _iso(START + n)}
        for n in range(first, first + count)
    )
    return [json.dumps(row).encode() for row in rows]


def _iso(seconds: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).isoformat()


def made(broker: Any, topic: str, folder: Path, **more: Any) -> dt.Stream:
    events = dt.Kafka(topic, servers=broker.servers, types=TYPES, time="at").with_windows(
        spent=dt.Window("amount", by="card", over="1m", stat="sum"),
        seen=dt.Window(by="card", over="1h", stat="count"),
    )
    given = {"into": folder / "table", "dead": folder / "dead", "messages": 50, **more}
    events = given.pop("steps", lambda table: table)(events)
    return dt.Stream(name="made", events=events, every="20ms", **given)


def rows(stream: dt.Stream) -> list[dict[str, Any]]:
    snapshot = Snapshot.open(str(stream.into))
    table = pa.concat_tables(snapshot.chunks(snapshot.schema, 100_000))
    return sorted(table.to_pylist(), key=lambda row: row["n"])


def due(count: int) -> list[tuple[float, int]]:
    """What the windows of each purchase hold."""
    found = []
    for n in range(count):
        before = range(n % 3, n, 3)
        found.append((sum(m / 4 for m in before if n - m <= 60), len(before)))
    return found


def windows(stream: dt.Stream) -> list[tuple[float, int]]:
    return [(row["spent"], row["seen"]) for row in rows(stream)]


@pytest.mark.parametrize("lost", [False, True])
def test_windows_go_on_where_they_stood_and_are_made_again_where_that_is_lost(
    lost: bool, broker: Any, tmp_path: Path
) -> None:
    topic = broker.topic(1)
    stream = made(broker, topic, tmp_path)
    for part in range(3):
        broker.send(topic, purchases(part * 120, 120))
        room = tmp_path / (f"room {part}" if lost else "room")
        follow(stream, room, to_end=True)
        assert len(list(room.glob("state-*.bin"))) == 1
        said = json.loads((room / "status.json").read_text())
        assert said["window_keys"] == 6, "three cards, and two tracks of each"
        assert said["window_bytes"] > 360
    assert windows(stream) == due(360)


def test_a_state_that_is_older_than_the_table_is_brought_up_to_it(
    broker: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = broker.topic(1)
    stream = made(broker, topic, tmp_path)
    broker.send(topic, purchases(0, 100))
    follow(stream, tmp_path / "room", to_end=True)
    (old,) = (tmp_path / "room").glob("state-*.bin")
    kept = old.read_bytes()
    broker.send(topic, purchases(100, 100))
    follow(stream, tmp_path / "room", to_end=True)
    (new,) = (tmp_path / "room").glob("state-*.bin")
    new.unlink()
    old.write_bytes(kept)
    broker.send(topic, purchases(200, 100))
    heard: list[Any] = []
    follow(stream, tmp_path / "room", to_end=True, emit=heard.append)
    assert windows(stream) == due(300)
    assert any("made from 100 messages" in getattr(item, "text", "") for item in heard)


def test_windows_over_several_partitions_are_those_of_a_run_without_a_stop(
    broker: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read again partition by partition, the second one's rows would all be late."""
    topic = broker.topic(2)
    stream = made(broker, topic, tmp_path, messages=20)
    for first in range(0, 200, 20):
        broker.send(topic, purchases(first, 20), partition=first // 20 % 2)
        follow(stream, tmp_path / "room", to_end=True)  # in the order in which they were sent
    assert windows(stream) == due(200)
    for first in (200, 220):
        broker.send(topic, purchases(first, 20), partition=first // 20 % 2)
    append, count = Lake.append, [0]

    def dies(lake: Lake, *given: Any) -> int:
        version = append(lake, *given)
        if given[1] == stream.name:
            count[0] += 1
            raise KeyboardInterrupt  # behind the commit, before anything else is written
        return version

    monkeypatch.setattr(Lake, "append", dies)
    with pytest.raises(KeyboardInterrupt):
        follow(stream, tmp_path / "room", to_end=True)
    monkeypatch.undo()
    assert count == [1]
    heard: list[Any] = []
    follow(stream, tmp_path / "room", to_end=True, emit=heard.append)
    assert not any("read again" in getattr(item, "text", "") for item in heard)
    assert len(rows(stream)) == 240


def test_messages_of_several_partitions_are_read_again_in_the_order_of_their_clocks(
    broker: Any, tmp_path: Path
) -> None:
    topic = broker.topic(2)
    stream = made(broker, topic, tmp_path)
    for turn in range(10):
        room = tmp_path / ("room" if turn < 8 else f"another room {turn}")
        broker.send(topic, purchases(turn * 20, 20), partition=turn % 2)
        heard: list[Any] = []
        follow(stream, room, to_end=True, emit=heard.append)
        told = [text for item in heard if "read again" in (text := getattr(item, "text", ""))]
        assert told == [
            f"windows are made from {n} messages that are read again, in order of their clocks"
            for n in (turn * 20,)
            if turn >= 8
        ]
    assert windows(stream) == due(200)


def test_a_damaged_state_is_told_and_made_again(broker: Any, tmp_path: Path) -> None:
    topic = broker.topic(1)
    stream = made(broker, topic, tmp_path)
    broker.send(topic, purchases(0, 100))
    follow(stream, tmp_path / "room", to_end=True)
    (path,) = (tmp_path / "room").glob("state-*.bin")
    path.write_bytes(path.read_bytes()[:-7])
    broker.send(topic, purchases(100, 50))
    heard: list[Any] = []
    follow(stream, tmp_path / "room", to_end=True, emit=heard.append)
    assert windows(stream) == due(150)
    assert any("is of no use" in getattr(item, "text", "") for item in heard)


def test_a_batch_whose_commit_failed_has_taught_the_windows_nothing(
    broker: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = broker.topic(1)
    stream = made(broker, topic, tmp_path)
    broker.send(topic, purchases(0, 60))
    follow(stream, tmp_path / "room", to_end=True)
    broker.send(topic, purchases(60, 60))

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Lake, "append", full)
    with pytest.raises(OSError, match="No space left"):
        follow(stream, tmp_path / "room", to_end=True)
    monkeypatch.undo()
    follow(stream, tmp_path / "room", to_end=True)
    assert windows(stream) == due(120)


def test_a_value_that_a_step_behind_the_windows_fails_on_has_taught_them_nothing(
    broker: Any, tmp_path: Path
) -> None:
    topic = broker.topic(1)

    def steps(table: Any) -> Any:
        return table.with_columns(number=dt.col("card").cast("int64"))

    stream = made(broker, topic, tmp_path, steps=steps)

    def purchase(n: int, card: str) -> bytes:
        return json.dumps({"n": n, "card": card, "amount": 1.0, "at": _iso(START + n)}).encode()

    cards = ["1", "1", "x", "1", "x", "2", "1"]
    broker.send(topic, [purchase(n, card) for n, card in enumerate(cards)])
    follow(stream, tmp_path / "room", to_end=True)
    assert [(row["n"], row["seen"]) for row in rows(stream)] == [
        (0, 0),
        (1, 1),
        (3, 2),
        (5, 0),
        (6, 3),
    ]
