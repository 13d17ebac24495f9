"""A declared stream by the verbs: checked, run, ended, killed and watched."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drivetrain.cli import main
from drivetrain.events.lake.snapshot import Snapshot

Drive = Callable[..., tuple[int, str, str]]
STREAM = """\
import drivetrain as dt

events = dt.Kafka({topic!r}, servers={servers!r}, types={{"n": "int64", "s": "string"}})
stream = dt.Stream(
    name="made",
    events=events.where(dt.col("n") >= 0),
    into={into!r},
    dead={dead!r},
    every="20ms",
    messages={messages},
)
"""
LITTLE = """\
import sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name == "pandas":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Without())
from drivetrain.cli import main
sys.exit(main(sys.argv[1:]))
"""
"""The verbs in a process that begins sooner, without the pandas that Arrow would look for."""
PATIENCE = 120.0


class Place:
    """A declared stream and where its site keeps things."""

    def __init__(self, folder: Path, broker: Any, partitions: int = 2, messages: int = 100) -> None:
        self.folder, self.broker = folder, broker
        self.topic = broker.topic(partitions)
        self.into, self.dead = str(folder / "table"), str(folder / "dead")
        self.file = folder / "stream.py"
        text = STREAM.format(
            topic=self.topic,
            servers=broker.servers,
            into=self.into,
            dead=self.dead,
            messages=messages,
        )
        self.file.write_text(text)
        site = folder / "site.toml"
        store, work = folder / "store", folder / "work"
        site.write_text(f'store = "{store}"\nwork = "{work}"\n[engine]\nthreads = 1\n')
        self.on = ("--on", str(site))

    def send(self, first: int, count: int, partition: int = 0) -> None:
        """Write numbers to a partition."""
        values = [
            json.dumps({"n": n, "s": f"row {n}"}).encode() for n in range(first, first + count)
        ]
        self.broker.send(self.topic, values, partition=partition)

    def version(self) -> int:
        """Of the table; -1 before there is one."""
        return len(list(Path(self.into, "_delta_log").glob("*.json"))) - 1

    def rows(self) -> int:
        """In the table."""
        try:
            return Snapshot.open(self.into).rows or 0
        except FileNotFoundError:
            return 0

    def numbers(self) -> list[int]:
        """In the table, in order."""
        return column(self.into, "n")

    def start(self, *more: str) -> "subprocess.Popen[bytes]":
        """Run it in a process of its own."""
        with (self.folder / "run.log").open("ab") as log:
            command = [sys.executable, "-c", LITTLE, "run", str(self.file), *self.on, *more]
            return subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )

    def until(self, process: "subprocess.Popen[bytes]", true: Callable[[], bool]) -> None:
        """Wait for a state while it runs, or for its own good end."""
        end = time.monotonic() + PATIENCE
        while not true() and process.poll() != 0:
            assert process.poll() is None, (self.folder / "run.log").read_text()
            assert time.monotonic() < end, (self.folder / "run.log").read_text()
            time.sleep(0.005)


def column(path: str, name: str) -> list[Any]:
    snapshot = Snapshot.open(path)
    tables = snapshot.chunks(snapshot.schema.select((name,)), 100_000)
    return sorted(value for table in tables for value in table[name].to_pylist())


@pytest.fixture
def place(tmp_path: Path, broker: Any) -> Place:
    return Place(tmp_path, broker)


def test_check_holds_a_stream_against_its_topic(place: Place, drive: Drive) -> None:
    status, out, err = drive("check", place.file, *place.on)
    assert (status, err) == (0, "")
    text = f"made: 2 columns of the topic {place.topic} (2 partitions): the declaration fits.\n"
    assert out == text
    status, out, _ = drive("check", place.file, *place.on, "--json")
    assert json.loads(out)["columns"] == ["n", "s"]
    assert not Path(place.into).exists(), "nothing is made by looking"


@pytest.mark.parametrize(
    ("wrote", "due", "says"),
    [
        ('dt.col("n")', 'dt.col("m")', "unknown column 'm'"),
        ("events.where", "dt.Parquet('x.parquet').where", "Stream.events: found 'Parquet'"),
        ('name="made"', 'name="Made"', "Stream.name: found 'Made'"),
        ('"20ms"', '"20 years"', "Stream.every: found '20 years'"),
        ("messages=100", "messages=0", "Stream.messages: found 0"),
        ("events.where(", "events.split(dt.HashSplit()).where(", "found 'a split'"),
        ("events.where(", "events.drop_duplicates().where(", "found 'drop_duplicates()'"),
        ("topic-", "no-topic-", "has no such topic"),
    ],
)
def test_a_mistaken_stream_says_what_is_allowed(
    wrote: str, due: str, says: str, place: Place, drive: Drive
) -> None:
    place.file.write_text(place.file.read_text().replace(wrote, due))
    status, _, err = drive("check", place.file, *place.on)
    assert status == 2
    assert says in err


def test_check_holds_a_stream_against_the_table_that_is_there(place: Place, drive: Drive) -> None:
    place.send(0, 3)
    assert drive("run", place.file, *place.on, "--to-end")[0] == 0
    assert drive("check", place.file, *place.on)[0] == 0
    declared = place.file.read_text()
    place.file.write_text(declared.replace('"s": "string"', '"s": "float64"'))
    status, _, err = drive("check", place.file, *place.on)
    assert status == 2
    assert "column 's': found double, allowed: string, as the table has it" in err
    place.file.write_text(declared.replace("messages=", 'partition_by="s", messages='))
    status, _, err = drive("check", place.file, *place.on)
    assert (status, "partition_by: found ['s'], allowed: []" in err) == (2, True)


def test_a_stream_is_run_to_the_end_of_its_topic_and_watched(place: Place, drive: Drive) -> None:
    place.send(0, 300)
    place.send(300, 5, partition=1)
    assert drive("watch", place.file, *place.on, "--once")[0] == 1, "nobody has begun it"
    status, out, err = drive("run", place.file, *place.on, "--to-end", "--json")
    assert (status, err) == (0, "")
    said = [json.loads(line) for line in out.splitlines()]
    assert said[-1]["name"] == "stream/dead_letters"
    assert [s["done"] for s in said if s["type"] == "progress"][-1] == 305
    assert place.numbers() == list(range(305))
    status, out, _ = drive("watch", "made", *place.on, "--once", "--json")
    found = json.loads(out)
    assert found["said"]["positions"] == {"0": 300, "1": 5}
    assert found["problems"] == ["its runner has ended"]
    assert status == 1
    assert "rows 305" in drive("watch", place.file, *place.on, "--once")[1]


def test_verbs_of_systems_refuse_a_stream_by_name(place: Place, drive: Drive) -> None:
    status, _, err = drive("show", place.file, *place.on)
    assert (status, "found \"the stream 'made'\", allowed: a System" in err) == (2, True)
    status, _, err = drive("run", place.file, *place.on, "--until", "train")
    assert (status, "allowed: a system" in err) == (2, True)


def test_a_value_of_a_stream_is_set_by_name(place: Place, drive: Drive) -> None:
    other = str(place.folder / "other")
    place.send(0, 3)
    assert drive("run", place.file, *place.on, "--to-end", "--set", f"into={other}")[0] == 0
    assert column(other, "n") == [0, 1, 2]


def test_a_stream_that_is_asked_to_end_commits_its_batch_and_ends_well(place: Place) -> None:
    place.send(0, 500)
    process = place.start()
    place.until(process, lambda: place.version() >= 2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 0, (place.folder / "run.log").read_text()
    held = place.numbers()
    assert held == list(range(len(held)))
    assert main(["run", str(place.file), *place.on, "--to-end"]) == 0
    assert place.numbers() == list(range(500))


@pytest.mark.slow
def test_killed_again_and_again_it_loses_nothing_and_writes_nothing_twice(
    broker: Any, tmp_path: Path
) -> None:
    place = Place(tmp_path, broker, partitions=3, messages=20)
    draw = random.Random(5)
    good, torn = list(range(2_400)), 0
    for partition in range(3):
        values: list[bytes] = []
        for n in good[partition::3]:
            values.append(json.dumps({"n": n, "s": "x" * draw.randrange(50)}).encode())
            if draw.random() < 0.02:
                values.append(b"torn %d" % n)
                torn += 1
        broker.send(place.topic, values, partition=partition)
    kills = 0
    while kills < 8:
        process = place.start("--to-end")
        due = place.version() + draw.randrange(1, 6)
        place.until(process, lambda due=due: place.version() >= due)
        time.sleep(draw.random() * 0.03)  # where in a batch it is hit is left to chance
        process.kill()
        if process.wait() == 0:
            break
        kills += 1
    assert main(["run", str(place.file), *place.on, "--to-end"]) == 0
    assert kills >= 5
    assert place.numbers() == good
    values = column(place.dead, "value")
    assert (len(values), len(set(values))) == (torn, torn)
