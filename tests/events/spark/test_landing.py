"""What an executor makes of records, without Spark."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import drivetrain as dt
from drivetrain.events.duckdb import Limits
from drivetrain.events.follow.dead import SCHEMA, Buried
from drivetrain.events.lake.lake import Lake
from drivetrain.events.lake.snapshot import Snapshot
from drivetrain.events.spark.landing import Landing, Report, Target
from drivetrain.events.spark.source import RECORDS

TYPES: Any = {"n": "int64", "s": "string"}


def batch(values: Sequence[Any], partition: int = 0, first: int = 0) -> pa.RecordBatch:
    """Records of a partition, plain data as JSON."""
    texts = [json.dumps(v).encode() if isinstance(v, dict) else v for v in values]
    rows = [
        {
            "partition": partition,
            "offset": first + n,
            "timestamp": 7_000,
            "key": b"k",
            "value": text,
        }
        for n, text in enumerate(texts)
    ]
    return pa.RecordBatch.from_pylist(rows, schema=RECORDS)


class Place:
    """A stream with its tables, and what executors are told of it."""

    def __init__(self, folder: Path, *, dead: bool = True, **changed: Any) -> None:
        leaf = dt.Kafka("topic", servers="127.0.0.1:9", types=TYPES, **changed.pop("leaf", {}))
        events = changed.pop("steps", lambda table: table)(leaf)
        letters = folder / "dead" if dead else None
        self.stream = dt.Stream(
            name="made", events=events, into=folder / "table", dead=letters, **changed
        )
        schema = events.schema
        self.into = Lake.open(folder / "table", schema, partition_by=self.stream.partition_by)
        self.dead = Lake.open(folder / "dead", SCHEMA) if dead else None
        self.columns = schema.names
        self.run = str(folder)

    def land(self, *batches: pa.RecordBatch, **known: Any) -> Report:
        """The report on some records, over the wire."""
        landing = Landing(
            run=self.run,
            stream=self.stream,
            columns=self.columns,
            into=Target.of(self.into),
            dead=None if self.dead is None else Target.of(self.dead),
            limits=Limits(threads=1),
            **known,
        )
        (told,) = landing(iter(batches))
        return Report.from_json(told["report"][0].as_py())

    def rows(self, lake: Lake, files: Sequence[Any]) -> list[dict[str, Any]]:
        """What files hold, once they are committed."""
        lake.commit_files(files)
        snapshot = Snapshot.open(lake.path)
        return pa.concat_tables(snapshot.chunks(snapshot.schema, 1000)).to_pylist()


def numbers(*which: int) -> list[dict[str, Any]]:
    return [{"n": n, "s": f"row {n}"} for n in which]


def test_records_become_rows_in_files_that_no_table_has_yet(tmp_path: Path) -> None:
    place = Place(tmp_path, steps=lambda t: t.where(dt.col("n") != 1))
    report = place.land(batch(numbers(0, 1)), batch(numbers(2, 3), first=2))
    assert report.problem is None
    assert (report.messages, report.rows, report.dead, report.behind) == (4, 3, 0, {0: 4})
    assert list(report.times) == [7_000] * 4
    assert Snapshot.open(place.into.path).rows == 0
    assert [row["n"] for row in place.rows(place.into, report.files)] == [0, 2, 3]


def test_records_that_a_table_has_are_passed_over(tmp_path: Path) -> None:
    """As when a micro-batch is begun anew with other borders."""
    place = Place(tmp_path)
    torn = [b"{a", *numbers(1), b"{b", *numbers(3)]
    report = place.land(batch(torn), batch(numbers(9), 1), at={0: 1, 1: 1})
    assert (report.messages, report.rows, report.dead, report.behind) == (3, 2, 1, {0: 4})
    (letter,) = place.rows(place.dead, report.letters)
    assert (letter["offset"], letter["value"], letter["key"]) == (2, b"{b", b"k")
    assert place.land(batch(torn), at={0: 4}).messages == 0


def test_of_records_that_are_read_again_those_are_buried_that_are_not_yet(tmp_path: Path) -> None:
    """Steps that were changed meanwhile may refuse other records than those that lie there."""
    place = Place(tmp_path)
    values = [b"{a", *numbers(1), b"{b", *numbers(3), b"{c"]

    def offsets(report: Report) -> list[int]:
        return sorted(row["offset"] for row in place.rows(place.dead, report.letters))

    assert offsets(place.land(batch(values[:3]))) == [0, 2]
    place.run = "again"
    buried = Buried(place.dead.path, {0: 3})
    report = place.land(batch(values[:2]), batch(values[2:], first=2), buried=buried)
    assert offsets(report) == [0, 2, 4]
    steps = place.stream.events.where(dt.col("s").cast("int64") > 0)
    place.run, place.stream = "changed", replace(place.stream, events=steps)
    report = place.land(batch(values), buried=Buried(place.dead.path, {0: 5}))
    assert report.dead == 2
    assert offsets(report) == [0, 1, 2, 3, 4]


def test_what_a_step_fails_on_is_laid_aside_too(tmp_path: Path) -> None:
    steps = lambda t: t.with_columns(m=dt.col("s").cast("int64"))  # noqa: E731
    place = Place(tmp_path, steps=steps)
    report = place.land(batch([{"n": 0, "s": "5"}, {"n": 1, "s": "five"}]))
    assert (report.rows, report.dead, report.problem) == (1, 1, None)
    (letter,) = place.rows(place.dead, report.letters)
    assert "five" in letter["reason"]
    assert letter["topic"] == "topic"


def test_without_dead_letters_the_first_misfit_is_the_problem(tmp_path: Path) -> None:
    place = Place(tmp_path, dead=False)
    report = place.land(batch([*numbers(0), b"{", b"["], partition=2))
    assert report.problem is not None
    name, text = report.problem
    assert name == "ValueError"
    assert text.startswith("topic 'topic', partition 2, offset 1: found '{'")
    assert (report.files, report.behind) == ((), {})


def test_where_a_message_was_may_be_columns(tmp_path: Path) -> None:
    leaf = {"key": "who", "partition": "part", "offset": "at", "timestamp": "sent"}
    place = Place(tmp_path, leaf=leaf)
    report = place.land(batch(numbers(5), partition=3, first=40))
    (row,) = place.rows(place.into, report.files)
    assert (row["who"], row["part"], row["at"]) == ("k", 3, 40)
    assert row["sent"].microsecond == 7_000
    broken = batch(numbers(5)).set_column(3, RECORDS.field("key"), pa.array([b"\xff"]))
    report = place.land(broken)
    assert (report.rows, report.dead) == (0, 1)


def test_files_are_kept_apart_by_the_columns_of_the_table(tmp_path: Path) -> None:
    place = Place(tmp_path, partition_by=("s",))
    report = place.land(batch([{"n": n, "s": "ab"[n % 2]} for n in range(4)]))
    assert [(file.values, file.rows) for file in report.files] == [({"s": "a"}, 2), ({"s": "b"}, 2)]
    assert sorted(row["n"] for row in place.rows(place.into, report.files)) == [0, 1, 2, 3]


def test_a_table_that_cannot_be_written_is_the_problem(tmp_path: Path) -> None:
    place = Place(tmp_path)
    target = tmp_path / "table"
    for path in sorted(target.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    target.rmdir()
    target.write_text("in the way")
    place.into._due = place.into.due
    report = place.land(batch(numbers(0)))
    assert report.problem is not None
    assert report.problem[0] in ("OSError", "NotADirectoryError", "FileNotFoundError")


def test_a_later_run_holds_its_own_steps(tmp_path: Path) -> None:
    one = Place(tmp_path / "one", steps=lambda t: t.with_columns(n=dt.col("n") + 1))
    two = Place(tmp_path / "two", steps=lambda t: t.with_columns(n=dt.col("n") + 2))
    for place, due in ((one, 1), (two, 2), (one, 1)):
        report = place.land(batch(numbers(0)))
        assert place.rows(place.into, report.files)[-1]["n"] == due


@pytest.mark.parametrize("partitions", [1, 3])
def test_a_task_may_have_several_partitions(tmp_path: Path, partitions: int) -> None:
    place = Place(tmp_path)
    parts = [batch(numbers(n, n + 10), partition=n, first=5 * n) for n in range(partitions)]
    report = place.land(*parts)
    assert report.behind == {n: 5 * n + 2 for n in range(partitions)}
    assert report.rows == 2 * partitions
