"""A stream in one process: what its table holds, whatever happens on the way."""

import json
from pathlib import Path
from time import sleep
from typing import Any

import pytest
from followers import TYPES, Running, count, held, made, numbers, rows, send

import drivetrain as dt
from drivetrain.events.follow.following import follow, positions_of
from drivetrain.events.follow.pace import STATUS
from drivetrain.events.lake.lake import Lake


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


def test_columns_that_a_declaration_gains_come_to_the_table_which_may_be_tidied_up_between_runs(
    broker: Any, topic: str, tmp_path: Path
) -> None:
    narrow = made(broker, topic, tmp_path, leaf={"types": {"n": "int64"}})
    wide = made(broker, topic, tmp_path, leaf={"types": {**TYPES, "x": "float64"}})
    other = made(broker, topic, tmp_path, leaf={"types": {**TYPES, "n": "string"}})
    sent = [{"n": n, "s": f"row {n}", "x": n / 2} for n in range(3)]
    for row, stream in zip(sent, (narrow, wide, narrow), strict=True):
        send(broker, topic, [row])
        follow(stream, tmp_path / "room", to_end=True)
    lake = Lake.open(str(narrow.into))
    assert lake.compact().added == 1
    assert len(lake.vacuum(0, guard=False)) == 3
    with pytest.raises(ValueError, match="column 'n': found string, allowed: int64"):
        follow(other, tmp_path / "room", to_end=True)
    send(broker, topic, [{"n": 3, "s": "row 3", "x": 1.5}])
    follow(wide, tmp_path / "room", to_end=True)
    found = sorted(rows(narrow.into), key=lambda row: row["n"])
    assert [row["n"] for row in found] == [0, 1, 2, 3]
    assert [(row["s"], row["x"]) for row in found] == [
        (None, None),
        ("row 1", 0.5),
        (None, None),
        ("row 3", 1.5),
    ]


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
