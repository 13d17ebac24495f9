"""A stream in one process: what its table holds, whatever happens on the way."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event, Thread
from time import monotonic, sleep
from typing import Any

import pyarrow as pa
import pytest

import drivetrain as dt
from drivetrain.core.metric import Emitted, Note
from drivetrain.events.follow.dead import SCHEMA as DEAD
from drivetrain.events.follow.following import follow, positions_of
from drivetrain.events.follow.pace import STATUS
from drivetrain.events.lake.lake import Lake
from drivetrain.events.lake.snapshot import Snapshot

TYPES: Any = {"n": "int64", "s": "string"}
PATIENCE = 60.0


@pytest.fixture
def topic(broker: Any) -> str:
    """A topic of two partitions."""
    return broker.topic(2)


def send(broker: Any, topic: str, values: Sequence[Any], *partitions: int, **more: Any) -> None:
    """Write messages, plain data as JSON, to partitions in turn."""
    data = [json.dumps(v).encode() if isinstance(v, dict) else v for v in values]
    places = partitions or (0, 1)
    for place, partition in enumerate(places):
        broker.send(topic, data[place :: len(places)], partition=partition, **more)


def numbers(count: int, first: int = 0) -> list[dict[str, Any]]:
    return [{"n": n, "s": f"row {n}"} for n in range(first, first + count)]


def made(broker: Any, topic: str, folder: Path, **changed: Any) -> dt.Stream:
    """A stream of the topic into a table of the folder."""
    leaf = {"types": TYPES} | changed.pop("leaf", {})
    events = changed.pop("steps", lambda table: table)(
        dt.Kafka(topic, servers=broker.servers, **leaf)
    )
    into = {"into": folder / "table", "dead": folder / "dead"} | changed
    return dt.Stream(name="made", events=events, **{"every": "20ms", "messages": 100} | into)


def rows(path: Any) -> list[dict[str, Any]]:
    snapshot = Snapshot.open(str(path))
    tables = [*snapshot.chunks(snapshot.schema, 100_000)]
    return pa.concat_tables(tables).to_pylist() if tables else []


def held(stream: dt.Stream) -> list[int]:
    """The numbers in a stream's table, in order."""
    return sorted(row["n"] for row in rows(stream.into))


class Running:
    """A follower in a thread of its own."""

    def __init__(self, stream: dt.Stream, room: Path, **options: Any) -> None:
        self.heard: list[Emitted] = []
        self.error: BaseException | None = None
        self.room = room
        self._stop = Event()
        given = {"emit": self.heard.append, "stop": self._stop, **options}

        def run() -> None:
            try:
                follow(stream, room, **given)
            except BaseException as error:
                self.error = error

        self._thread = Thread(target=run)
        self._thread.start()

    def until(self, true: Callable[[], bool]) -> None:
        """Wait for a state."""
        end = monotonic() + PATIENCE
        while not true():
            assert self._thread.is_alive(), self.error
            assert monotonic() < end, [item for item in self.heard if isinstance(item, Note)]
            sleep(0.01)

    def has(self, text: str) -> bool:
        """Whether a note says this."""
        return any(isinstance(item, Note) and text in item.text for item in self.heard)

    def ended(self) -> BaseException | None:
        """Wait for its own end; its error."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        return self.error

    def end(self) -> None:
        """Ask it to end, and see that it does so well."""
        self._stop.set()
        error = self.ended()
        assert error is None, error

    def __enter__(self) -> "Running":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join(PATIENCE)


def count(stream: dt.Stream) -> Callable[[int], Callable[[], bool]]:
    """``count(stream)(n)``: whether the table holds so many rows."""

    def holds(number: int) -> Callable[[], bool]:
        def look() -> bool:
            try:
                return (Snapshot.open(str(stream.into)).rows or 0) >= number
            except FileNotFoundError:
                return False

        return look

    return holds


# -- rows ------------------------------------------------------------------------------------------


def test_every_message_becomes_one_row_and_the_table_says_where_it_stands(
    broker: Any, topic: str, tmp_path: Path
) -> None:
    stream = made(broker, topic, tmp_path)
    send(broker, topic, numbers(250))
    pace = follow(stream, tmp_path / "room", to_end=True)
    assert held(stream) == list(range(250))
    assert (pace.messages, pace.rows, pace.dead) == (250, 250, 0)
    assert pace.commits >= 3, "at most 100 messages a commit"
    assert positions_of(stream) == [(0, 125), (1, 125)]


def test_a_second_run_goes_on_behind_the_first(broker: Any, topic: str, tmp_path: Path) -> None:
    stream = made(broker, topic, tmp_path)
    send(broker, topic, numbers(10))
    follow(stream, tmp_path / "room", to_end=True)
    assert follow(stream, tmp_path / "room", to_end=True).messages == 0
    send(broker, topic, numbers(10, first=10))
    follow(stream, tmp_path / "another room", to_end=True)
    assert held(stream) == list(range(20))


def test_the_steps_of_a_stream_are_those_of_a_table(
    broker: Any, topic: str, tmp_path: Path
) -> None:
    def steps(table: Any) -> Any:
        return table.where(dt.col("n") % 2 == 0).with_columns(twice=dt.col("n") * 2).drop("s")

    stream = made(broker, topic, tmp_path, steps=steps)
    send(broker, topic, numbers(40))
    follow(stream, tmp_path / "room", to_end=True)
    assert sorted(rows(stream.into), key=lambda row: row["n"]) == [
        {"n": n, "twice": 2 * n} for n in range(0, 40, 2)
    ]


def test_batches_of_which_no_row_is_kept_move_the_position_all_the_same(
    broker: Any, topic: str, tmp_path: Path
) -> None:
    stream = made(broker, topic, tmp_path, steps=lambda table: table.where(dt.col("n") < 0))
    send(broker, topic, numbers(10), 1)
    follow(stream, tmp_path / "room", to_end=True)
    assert rows(stream.into) == []
    assert positions_of(stream) == [(1, 10)]


def test_the_tables_folders_are_those_of_the_declared_columns(
    broker: Any, topic: str, tmp_path: Path
) -> None:
    stream = made(broker, topic, tmp_path, partition_by="s")
    send(broker, topic, [{"n": 1, "s": "a"}, {"n": 2, "s": "b"}])
    follow(stream, tmp_path / "room", to_end=True)
    assert {path.name for path in (tmp_path / "table").glob("s=*")} == {"s=a", "s=b"}


def test_the_clock_of_a_message_decides_nothing(broker: Any, topic: str, tmp_path: Path) -> None:
    leaf = {"types": {**TYPES, "at": "timestamp"}, "time": "at", "timestamp": "sent"}
    stream = made(broker, topic, tmp_path, leaf=leaf)
    hour = 3_600_000
    now = 1_795_000_000_000
    value = {"n": 1, "at": "2026-11-22T06:00:00Z"}
    send(broker, topic, [value], 0, timestamp=now + hour)
    send(broker, topic, [{**value, "n": 2}], 0, timestamp=now - hour)
    send(broker, topic, [{**value, "n": 3}], 0, timestamp=1)
    follow(stream, tmp_path / "room", to_end=True)
    found = rows(stream.into)
    assert [row["n"] for row in found] == [1, 2, 3]
    assert len({row["at"] for row in found}) == 1
    assert len({row["sent"] for row in found}) == 3


# -- what does not fit -----------------------------------------------------------------------------

POISON = [b"torn", b"", None, b'{"n": "text"}', b'{"n": 1.5}', b"\xff\xfe", b'{"n": 1}{"n": 2}']


def test_what_does_not_fit_lies_in_the_table_of_dead_letters_with_its_place_and_reason(
    broker: Any, topic: str, tmp_path: Path
) -> None:
    stream = made(broker, topic, tmp_path)
    send(broker, topic, [*numbers(3), *POISON, *numbers(3, first=3)], 1, key=b"\x00key")
    pace = follow(stream, tmp_path / "room", to_end=True)
    assert held(stream) == list(range(6))
    dead = rows(stream.dead)
    assert [row["value"] for row in dead] == POISON
    assert [row["offset"] for row in dead] == list(range(3, 3 + len(POISON)))
    assert {(row["topic"], row["partition"], row["key"]) for row in dead} == {
        (topic, 1, b"\x00key")
    }
    assert all(row["reason"] and row["timestamp"] is not None for row in dead)
    assert pace.dead == len(POISON)


def test_without_a_table_of_dead_letters_the_first_one_ends_it_and_nothing_is_lost(
    broker: Any, topic: str, tmp_path: Path
) -> None:
    stream = made(broker, topic, tmp_path, dead=None)
    send(broker, topic, [*numbers(3), b"torn"], 1)
    with pytest.raises(ValueError, match=f"'{topic}', partition 1, offset 3: found 'torn'"):
        follow(stream, tmp_path / "room", to_end=True)
    follow(made(broker, topic, tmp_path), tmp_path / "room", to_end=True)
    assert held(stream) == [0, 1, 2]
    assert [row["offset"] for row in rows(tmp_path / "dead")] == [3]


def test_a_value_that_a_step_fails_on_is_a_dead_letter_too(
    broker: Any, topic: str, tmp_path: Path
) -> None:
    stream = made(
        broker, topic, tmp_path, steps=lambda t: t.with_columns(k=dt.col("s").cast("int64"))
    )
    values = [{"n": n, "s": "x" if n in (3, 17) else str(n)} for n in range(20)]
    send(broker, topic, values, 0)
    follow(stream, tmp_path / "room", to_end=True)
    assert held(stream) == [n for n in range(20) if n not in (3, 17)]
    dead = rows(stream.dead)
    assert [row["offset"] for row in dead] == [3, 17]
    assert "with_columns(k=" in dead[0]["reason"]


def test_dead_letters_that_were_written_before_a_stop_are_not_written_again(
    broker: Any, topic: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = made(broker, topic, tmp_path)
    send(broker, topic, [b"torn", *numbers(3), b"torn too"], 0)
    append = Lake.append

    def stopped(self: Lake, rows: Any, *more: Any) -> int:
        if self.schema.names != DEAD.names:
            raise OSError(28, "No space left on device")
        return append(self, rows, *more)

    monkeypatch.setattr(Lake, "append", stopped)
    with pytest.raises(OSError, match="No space left"):
        follow(stream, tmp_path / "room", to_end=True)
    monkeypatch.undo()
    assert len(rows(stream.dead)) == 2
    assert rows(stream.into) == []
    send(broker, topic, [b"torn as well"], 0)
    follow(stream, tmp_path / "room", to_end=True)
    assert held(stream) == [0, 1, 2]
    assert [row["value"] for row in rows(stream.dead)] == [b"torn", b"torn too", b"torn as well"]


def test_a_tombstone_that_is_skipped_is_no_row_and_no_dead_letter(
    broker: Any, topic: str, tmp_path: Path
) -> None:
    stream = made(broker, topic, tmp_path, leaf={"tombstones": "skip"})
    send(broker, topic, [*numbers(2), None, None], 0, key=b"k")
    assert follow(stream, tmp_path / "room", to_end=True).messages == 4
    assert held(stream) == [0, 1]
    assert positions_of(stream) == [(0, 4)]


def test_a_field_that_changes_its_type_on_the_way_fills_the_dead_letters(
    broker: Any, topic: str, tmp_path: Path
) -> None:
    stream = made(broker, topic, tmp_path)
    send(broker, topic, [*numbers(5), *({"n": str(n), "s": ""} for n in range(5))], 0)
    follow(stream, tmp_path / "room", to_end=True)
    assert held(stream) == list(range(5))
    assert len(rows(stream.dead)) == 5


# -- bad luck --------------------------------------------------------------------------------------


def test_it_waits_for_a_broker_that_is_gone_and_says_so(own_broker: Any, tmp_path: Path) -> None:
    topic = own_broker.topic(2)
    stream = made(own_broker, topic, tmp_path)
    send(own_broker, topic, numbers(10))
    with Running(stream, tmp_path / "room") as running:
        running.until(count(stream)(10))
        own_broker.stop()
        running.until(lambda: running.has("does not answer: waiting for it"))
        own_broker.start()
        send(own_broker, topic, numbers(10, first=10))
        running.until(count(stream)(20))
        assert running.has("answers again")
        running.end()
    assert held(stream) == list(range(20))


@pytest.mark.parametrize("types", [TYPES, None])
def test_it_waits_for_a_broker_that_is_not_there_yet(
    types: Any, own_broker: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drivetrain.events.topic.topic.ANSWER", 1.0)
    topic = own_broker.topic(2)
    stream = made(own_broker, topic, tmp_path, leaf={"types": types})
    send(own_broker, topic, numbers(10))
    own_broker.stop()
    with Running(stream, tmp_path / "room") as running:
        running.until(lambda: running.has("waiting for it"))
        own_broker.start()
        running.until(count(stream)(10))
        running.end()
    assert held(stream) == list(range(10))


def test_a_commit_that_fails_ends_it_though_a_batch_is_gathered_for_long(
    broker: Any, topic: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = made(broker, topic, tmp_path, every="1h", messages=10)
    send(broker, topic, numbers(11), 0)

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Lake, "append", full)
    with Running(stream, tmp_path / "room") as running:
        assert "No space left" in str(running.ended())


def test_a_topic_that_was_made_anew_is_refused_and_read_when_that_is_accepted(
    broker: Any, topic: str, tmp_path: Path
) -> None:
    stream = made(broker, topic, tmp_path)
    send(broker, topic, [*numbers(10), b"torn"], 0)
    follow(stream, tmp_path / "room", to_end=True)
    broker.delete(topic)
    broker.topic(2, topic)
    send(broker, topic, [b"torn", *numbers(5, first=100)], 0)
    with pytest.raises(
        ValueError, match=f"'{topic}', partition 0: found the offset 11, allowed: 0"
    ):
        follow(stream, tmp_path / "room", to_end=True)
    assert held(stream) == list(range(10))
    follow(stream, tmp_path / "room", to_end=True, from_start=True)
    assert held(stream) == [*range(10), *range(100, 105)]
    assert [row["offset"] for row in rows(stream.dead)] == [10, 0]
    send(broker, topic, numbers(1, first=105), 0)
    follow(stream, tmp_path / "room", to_end=True)
    assert held(stream) == [*range(10), *range(100, 106)]


def test_a_topic_of_another_identity_is_refused_though_its_offsets_would_fit(
    broker: Any, topic: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = ["first"]
    monkeypatch.setattr("drivetrain.events.topic.topic.Topic.identity", lambda self: said[0])
    monkeypatch.setattr("drivetrain.events.follow.following.REFRESH", 0.05)
    stream = made(broker, topic, tmp_path)
    send(broker, topic, numbers(10))
    with Running(stream, tmp_path / "room") as running:
        running.until(count(stream)(10))
        said[0] = "second"
        error = running.ended()
    assert isinstance(error, ValueError)
    assert "made anew (its identity is now second)" in str(error)
    with pytest.raises(ValueError, match="identity is now second"):
        follow(stream, tmp_path / "room", to_end=True)
    follow(stream, tmp_path / "room", to_end=True, from_start=True)
    assert held(stream) == sorted([*range(10), *range(10)]), "the new one's are others"
    follow(stream, tmp_path / "room", to_end=True)
    assert len(held(stream)) == 20


def test_messages_that_expired_unread_are_told_and_passed_over_when_that_is_accepted(
    broker: Any, topic: str, tmp_path: Path
) -> None:
    stream = made(broker, topic, tmp_path)
    send(broker, topic, numbers(10), 0)
    follow(stream, tmp_path / "room", to_end=True)
    send(broker, topic, numbers(10, first=10), 0)
    broker.truncate(topic, {0: 15})
    with pytest.raises(ValueError, match=r"partition 0: found the offset 10, allowed: 15 to 20"):
        follow(stream, tmp_path / "room", to_end=True)
    follow(stream, tmp_path / "room", to_end=True, from_start=True)
    assert held(stream) == [*range(10), *range(15, 20)]


def test_a_topic_that_is_deleted_while_it_is_read_is_named(
    broker: Any, topic: str, tmp_path: Path
) -> None:
    stream = made(broker, topic, tmp_path)
    send(broker, topic, numbers(10))
    with Running(stream, tmp_path / "room") as running:
        running.until(count(stream)(10))
        broker.delete(topic)
        error = running.ended()
    assert isinstance(error, FileNotFoundError)
    assert topic in str(error)
    assert held(stream) == list(range(10))


def test_a_partition_that_is_added_is_read_from_its_beginning(
    broker: Any, topic: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drivetrain.events.follow.following.REFRESH", 0.05)
    stream = made(broker, topic, tmp_path)
    send(broker, topic, numbers(10))
    with Running(stream, tmp_path / "room") as running:
        running.until(count(stream)(10))
        broker.grow(topic, 3)
        send(broker, topic, numbers(10, first=10), 2)
        running.until(count(stream)(20))
        assert running.has("partition [2]")
        running.end()
    assert positions_of(stream)[-1] == (2, 10)
    assert held(stream) == list(range(20))


def test_a_second_runner_in_the_same_room_refuses(broker: Any, topic: str, tmp_path: Path) -> None:
    stream = made(broker, topic, tmp_path)
    send(broker, topic, numbers(10))
    with Running(stream, tmp_path / "room") as running:
        running.until(count(stream)(10))
        with pytest.raises(ValueError, match="found another runner of it"):
            follow(stream, tmp_path / "room", to_end=True)
        running.end()


def test_of_two_runners_in_rooms_of_their_own_one_refuses_and_no_row_is_there_twice(
    broker: Any, topic: str, tmp_path: Path
) -> None:
    stream = made(broker, topic, tmp_path)
    send(broker, topic, numbers(10))
    with (
        Running(stream, tmp_path / "room") as one,
        Running(stream, tmp_path / "another room") as other,
    ):
        both = (one, other)
        number = 10
        while not any(isinstance(running.error, ValueError) for running in both):
            send(broker, topic, numbers(2, first=number))
            number += 2
            sleep(0.05)
            assert number < 2000
        (refused,) = [running for running in both if running.error is not None]
        (left,) = [running for running in both if running.error is None]
        assert "another process that appends as 'made'" in str(refused.ended())
        left.until(count(stream)(number))
        left.end()
    assert held(stream) == list(range(number))


def test_others_see_how_it_goes_and_that_it_ended(broker: Any, topic: str, tmp_path: Path) -> None:
    stream = made(broker, topic, tmp_path)
    send(broker, topic, [*numbers(30), b"torn"])
    follow(stream, tmp_path / "room", to_end=True)
    found = json.loads((tmp_path / "room" / STATUS).read_text())
    assert (found["messages"], found["rows"], found["dead_letters"]) == (31, 30, 1)
    assert found["positions"] == {"0": 16, "1": 15}
    assert found["ended"] is True
    assert found["latency_ms"]["p99"] >= found["latency_ms"]["p50"] >= 0
