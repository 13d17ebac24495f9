"""Messages of a stream that do not fit: where they lie, and what they end."""

from pathlib import Path
from typing import Any

import pytest
from followers import held, made, numbers, rows, send

import drivetrain as dt
from drivetrain.events.follow.dead import SCHEMA as DEAD
from drivetrain.events.follow.following import follow, positions_of
from drivetrain.events.lake.lake import Lake

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
