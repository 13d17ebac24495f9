"""Windows of a stream in parts: to the last bit those of one process, without Spark."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest
from spending import TYPES, Row, behind, bits, of_every_kind, purchases, records

import drivetrain as dt
from drivetrain.events.duckdb import Limits, engine
from drivetrain.events.follow.cleaning import Cleaning
from drivetrain.events.follow.dead import SCHEMA
from drivetrain.events.follow.recall import Recall
from drivetrain.events.lake.lake import Lake
from drivetrain.events.lake.snapshot import Snapshot
from drivetrain.events.plan import Plan, compile_plan
from drivetrain.events.spark.landing import Records, Report, Target
from drivetrain.events.spark.segments import segments
from drivetrain.events.spark.streaming import held
from drivetrain.events.spark.walk import Gather
from drivetrain.events.spark.windowing import Windowing
from drivetrain.events.table import Table
from drivetrain.events.topic.messages import Reading
from drivetrain.events.topic.places import Places
from drivetrain.events.windowed.standing import FOLDER, Standing, found_in


class Place:
    """A stream whose micro-batches are run by this process, task after task."""

    def __init__(self, folder: Path, steps: Callable[[Table], Table], parts: int = 3) -> None:
        leaf = dt.Kafka("topic", servers="127.0.0.1:9", types=TYPES, time="at")
        self.stream = dt.Stream(
            name="made", events=steps(leaf), into=folder / "table", dead=folder / "dead"
        )
        self.into = Lake.open(folder / "table", self.stream.events.schema)
        self.dead = Lake.open(folder / "dead", SCHEMA)
        self.room, self.parts, self.at = folder / "room", parts, dict[int, int]()
        self.room.mkdir()
        self.begin()

    def begin(self, *, exactly: bool = False) -> None:
        """As a process that begins where the table stands."""
        names = self.stream.events.schema.names
        cut = segments(self.stream.events, names)
        self.windowing = Windowing(cut, self.room, self.parts, exactly=exactly)
        with engine(Limits(threads=1)) as running:
            plan = compile_plan(self.stream.events, names, running, Limits(), split=False)
            heard: list[str] = []
            cleaning = Cleaning(plan, aside=True)
            recall = Recall(self.stream, plan, cleaning, self.room, heard.append)
            again = partial(recall.restore, Places("topic"), self.at)
            self.windowing.restore(Places("topic"), self.at, again if self.at else plan.state)
            assert not heard, "the states are there"

    def batch(self, batches: Sequence[pa.RecordBatch]) -> list[Report]:
        """Lay a micro-batch down, and write its states."""
        gather = Gather(
            run=str(self.room),
            stream=self.stream,
            columns=self.stream.events.schema.names,
            into=Target.of(self.into),
            dead=Target.of(self.dead),
            limits=Limits(threads=1),
        )

        def take(landing: Gather) -> list[Report]:
            texts = [next(landing(iter([one])))["report"][0].as_py() for one in batches]
            return [Report.from_json(text) for text in texts]

        def each(count: int, task: Callable[[int], str]) -> list[str]:
            return [task(number) for number in reversed(range(count))][::-1]

        reports = self.windowing.batch(gather, take, each, held)
        found = dict(self.at)
        for report in reports:
            found |= report.behind
        self.windowing.ready(Places("topic"), found)
        return reports

    def commit(self, batches: Sequence[pa.RecordBatch]) -> None:
        """A micro-batch, and its commit."""
        reports = self.batch(batches)
        self.dead.commit_files([file for report in reports for file in report.letters])
        self.into.commit_files([file for report in reports for file in report.files])
        for report in reports:
            self.at |= report.behind
        self.windowing.keep()

    def rows(self) -> pa.Table:
        """Of the table, in order of ``n``."""
        snapshot = Snapshot.open(str(self.stream.into))
        return pa.concat_tables(snapshot.chunks(snapshot.schema, 1000)).sort_by("n")

    def refused(self) -> list[int]:
        """Which messages lie in the table of dead letters."""
        snapshot = Snapshot.open(str(self.stream.dead))
        tables = snapshot.chunks(snapshot.schema, 1000)
        return sorted(offset for table in tables for offset in table["offset"].to_pylist())

    def alone(self, rows: Sequence[Row], size: int) -> tuple[pa.Table, Plan]:
        """What one process gives of the same messages, and its plan."""
        with engine(Limits(threads=1)) as running:
            names = self.stream.events.schema.names
            plan = compile_plan(self.stream.events, names, running, Limits(), split=False)
            reading, cleaning = Reading(self.stream.topic, plan.reads), Cleaning(plan, aside=True)
            found: list[pa.Table] = []
            for first in range(0, len(rows), size):
                state = plan.state()
                (batch,) = records(rows[first : first + size])
                messages = Records.of("topic", pa.Table.from_batches([batch]))
                found.append(cleaning(reading(messages), lambda state=state: state).table)
            return pa.concat_tables(found).sort_by("n"), plan


@pytest.mark.parametrize("steps", [of_every_kind, behind])
@pytest.mark.parametrize("partitions", [1, 3])
def test_rows_and_dead_letters_are_those_of_one_process_to_the_last_bit(
    steps: Callable[[Table], Table], partitions: int, tmp_path: Path
) -> None:
    place = Place(tmp_path, steps)
    rows = purchases(240, 1, ["1", "2", "3", "4", None])
    for number in (17, 18, 200):
        rows[number]["card"] = "x"
    for first, last in ((0, 90), (90, 91), (91, 230), (230, 240)):
        place.commit(records(rows[first:last], partitions))
    due, plan = place.alone(rows, 100)
    assert place.rows().schema == due.schema
    assert bits(place.rows()) == bits(due)
    assert len(due) == 218 - (3 if steps is behind else 0)
    if partitions == 1:
        assert place.refused() == ([17, 18, 200] if steps is behind else [])
    _same_state(place, plan)


def _same_state(place: Place, plan: Plan) -> None:
    """The states put together are those of one process, byte for byte."""
    (written,) = (place.room / FOLDER).glob("stands-*.json")
    assert Standing.read(written).state().split(b"\n", 1)[1] == plan.state().split(b"\n", 1)[1]


def test_a_run_that_ends_anywhere_goes_on_with_the_states_of_the_table(tmp_path: Path) -> None:
    place = Place(tmp_path, of_every_kind)
    rows = purchases(160, 2, ["1", "2", "3", "4"])
    place.commit(records(rows[:60]))
    place.batch(records(rows[60:130]))  # its states are written, and its commit never came
    place.begin()
    place.commit(records(rows[60:100]))
    reports = place.batch(records(rows[100:]))
    place.into.commit_files([file for report in reports for file in report.files])
    place.at = {0: 160}
    assert len(list((place.room / FOLDER).glob("stands-*.json"))) == 2
    (place.room / FOLDER / "batch-killed").mkdir()
    place.begin()  # of a run that was killed behind its commit
    assert not (place.room / FOLDER / "batch-killed").exists()
    due, plan = place.alone(rows, 160)
    assert bits(place.rows()) == bits(due)
    place.commit([])
    _same_state(place, plan)


def test_what_is_of_no_use_any_more_is_removed(tmp_path: Path) -> None:
    place = Place(tmp_path, of_every_kind, parts=2)
    (place.room / "state-0001-00000000000000000000.bin").write_bytes(b"of one process")
    rows = purchases(120, 3, ["1", "2", "3", "4"])
    for first in range(0, 120, 12):
        place.commit(records(rows[first : first + 12]))
    left = [path.suffix for path in (place.room / FOLDER).iterdir()]
    assert left.count(".json") == 1
    assert left.count(".keys") <= 2 * 4, "files that grow are merged"
    assert set(left) == {".json", ".keys"}
    assert not list(place.room.glob("state-*.bin"))


@pytest.mark.parametrize("exactly", [False, True])
def test_states_go_on_in_other_parts(exactly: bool, tmp_path: Path) -> None:
    place = Place(tmp_path, behind, parts=2)
    rows = purchases(100, 4, ["1", "2", "3", "4"])
    place.commit(records(rows[:50]))
    place.parts = 5
    place.begin(exactly=exactly)
    due = 5 if exactly else 2
    assert [len(step.parts) for step in place.windowing.stands] == [due] * 2
    place.commit(records(rows[50:]))
    found, plan = place.alone(rows, 100)
    assert bits(place.rows()) == bits(found)
    _same_state(place, plan)


def test_states_of_other_windows_are_not_taken(tmp_path: Path) -> None:
    place = Place(tmp_path, of_every_kind)
    place.commit(records(purchases(20, 5, ["1"])))
    (standing,) = found_in(place.room / FOLDER)
    for changed in (
        replace(standing, topic="another"),
        replace(standing, positions={0: 19}),
        replace(standing, steps=[replace(standing.steps[0], digest="00" * 16)]),
        replace(standing, steps=[replace(standing.steps[0], label="with_windows(x=…)")]),
    ):
        changed.write()
        made: list[bool] = []

        def make(made: list[bool] = made) -> bytes:
            made.append(True)
            return standing.state()

        place.windowing.restore(Places("topic"), place.at, make)
        assert made == [True]
    standing.write()
    place.windowing.restore(Places("topic"), place.at, lambda: b"")
    for file in (place.room / FOLDER).glob("*.keys"):
        file.unlink()
    with pytest.raises(ValueError, match="a plan's state"):
        place.windowing.restore(Places("topic"), place.at, lambda: b"")


def test_a_message_that_a_step_fails_on_ends_it_where_nothing_takes_it(tmp_path: Path) -> None:
    place = Place(tmp_path, behind)
    place.stream = replace(place.stream, dead=None)
    rows = purchases(5, 6, ["1"])
    rows[3]["card"] = "x"
    with pytest.raises(ValueError, match="Could not convert string 'x' to INT64"):
        place.batch(records(rows))


def test_windows_that_are_not_needed_are_not_kept() -> None:
    leaf = dt.Kafka("topic", servers="127.0.0.1:9", types=TYPES, time="at")
    one = dt.Window(by="card", stat="count")
    table = leaf.with_windows(seen=one).with_columns(m=dt.col("n") + 1).drop("seen")
    assert [part.cut for part in segments(table, table.schema.names)] == [None]
    table = leaf.with_windows(seen=one, other=one).with_columns(m=dt.col("seen") + 1).drop("other")
    first, last = segments(table, ("m", "n"))
    assert first.cut is not None
    assert first.cut.windows.names == ("seen",)
    assert (first.names, first.cut.keep) == (("n", "card", "at"), ("n",))
    assert (first.bare, last.bare, last.cut) == (True, False, None)
