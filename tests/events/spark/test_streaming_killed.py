"""A stream with windows on Spark that is killed, driver and JVM, again and again, asked to end.

The embedded runner begins it and ends it: either goes on where the other stopped.
"""

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

import numpy as np
import pytest

from drivetrain.core.site import EngineSite
from drivetrain.events.lake.lake import Lake
from drivetrain.events.lake.snapshot import Snapshot

STREAM = """\
import drivetrain as dt

types = {{"n": "int64", "s": "string", "third": "int64", "sixth": "int64", "at": "timestamp"}}
events = dt.Kafka({topic!r}, servers={servers!r}, types=types, time="at")
stream = dt.Stream(
    name="made",
    events=events.where(dt.col("n") >= 0).with_windows(
        lateness="1d",
        before=dt.Window(by="third", stat="count"),
        minute=dt.Window("n", by=("sixth", "third"), over="1m", stat="sum"),
    ),
    into={into!r},
    dead={dead!r},
    every="20ms",
    messages=30,
)
"""
SITE = """\
store = "{folder}/store"
work = "{folder}/work"

[engine]
kind = "spark"
master = "local[2]"
memory = "512MB"
kafka = "{kafka}"

[engine.conf]
{conf}
"""
PATIENCE = 400.0
"""Seconds that a state is waited for: a session begins slowly on a machine that is busy."""


class Place:
    """A declared stream, its site, and the processes that run it."""

    def __init__(self, folder: Path, broker: Any, partitions: int, engine: EngineSite) -> None:
        self.folder, self.topic = folder, broker.topic(partitions)
        self._broker, self._partitions = broker, partitions
        self.into, self.dead = str(folder / "table"), str(folder / "dead")
        self.file, self.site = folder / "stream.py", folder / "site.toml"
        names = {"topic": self.topic, "into": self.into, "dead": self.dead}
        self.file.write_text(STREAM.format(servers=broker.servers, **names))
        conf = "\n".join(
            f"{json.dumps(key)} = {json.dumps(engine.conf[key])}" for key in engine.conf
        )
        self.site.write_text(SITE.format(folder=folder, kafka=engine.kafka, conf=conf))

    def command(self, verb: str, *more: str) -> list[str]:
        """A verb, as a shell would run it."""
        verbs = [sys.executable, "-m", "drivetrain.cli", verb, str(self.file)]
        return [*verbs, "--on", str(self.site), *more]

    def start(self, *more: str) -> "subprocess.Popen[bytes]":
        """Run it, as the leader of a group that its JVM is in too."""
        with (self.folder / "run.log").open("ab") as log:
            return subprocess.Popen(
                self.command("run", *more),
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def until(self, process: "subprocess.Popen[bytes]", true: Callable[[], bool]) -> None:
        """Wait for a state while it runs."""
        end = time.monotonic() + PATIENCE
        while not true():
            assert process.poll() is None, (self.folder / "run.log").read_text()
            assert time.monotonic() < end, (self.folder / "run.log").read_text()
            time.sleep(0.05)  # who looks more often takes the time that it waits for

    def version(self) -> int:
        """Of the table; -1 before there is one."""
        return len(list(Path(self.into, "_delta_log").glob("*.json"))) - 1

    def positions(self) -> dict[str, int]:
        """Where the table stands."""
        return Lake.open(self.into).positions("made")

    def send(self, numbers: range, draw: random.Random) -> int:
        """Write numbers to the topic, and some torn messages between; how many of those."""
        torn = 0
        for partition in range(self._partitions):
            values: list[bytes] = []
            for n in numbers[partition :: self._partitions]:
                at = str(np.datetime64("2026-01-01") + np.timedelta64(n, "s"))
                row = {"n": n, "third": n % 3, "sixth": n % 6, "at": at}
                values.append(json.dumps({**row, "s": "x" * draw.randrange(50)}).encode())
                if draw.random() < 0.03:
                    values.append(b"torn %d" % n)
                    torn += 1
            self._broker.send(self.topic, values, partition=partition)
        return torn

    def rows(self) -> list[tuple[int, int, float]]:
        """Of the table, with their windows, in order."""
        snapshot = Snapshot.open(self.into)
        schema = snapshot.schema.select(("n", "before", "minute"))
        found = [row for t in snapshot.chunks(schema, 100_000) for row in t.to_pylist()]
        return sorted(tuple(row.values()) for row in found)

    def column(self, path: str, name: str) -> list[Any]:
        """Of a table, in order."""
        snapshot = Snapshot.open(path)
        tables = snapshot.chunks(snapshot.schema.select((name,)), 100_000)
        return sorted(value for table in tables for value in table[name].to_pylist())


@pytest.mark.slow
def test_killed_again_and_again_it_loses_nothing_and_writes_nothing_twice(
    spark_site: EngineSite, broker: Any, tmp_path: Path
) -> None:
    place, draw = Place(tmp_path, broker, 3, spark_site), random.Random(7)
    torn = place.send(range(300), draw)
    embedded = place.command("run", "--to-end", "--set", "engine.kind=duckdb")
    assert subprocess.run(embedded, capture_output=True, timeout=PATIENCE).returncode == 0
    torn += place.send(range(300, 3_000), draw)
    for _ in range(3):
        process, due = place.start(), place.version() + draw.randrange(1, 8)
        place.until(process, lambda due=due: place.version() >= due)
        time.sleep(draw.random() * 0.5)  # where in a batch it is hit is left to chance
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(PATIENCE)

    process, due = place.start(), place.version() + 1
    place.until(process, lambda: place.version() >= due)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 0, (tmp_path / "run.log").read_text()
    look = subprocess.run(
        place.command("watch", "--once", "--json"), capture_output=True, timeout=PATIENCE
    )
    said = json.loads(look.stdout)["said"]
    assert said["ended"] is True
    assert sum(said["positions"].values()) == sum(place.positions().values())

    rows = len(place.column(place.into, "n"))
    assert rows < 3_000, "it was to be killed and ended on the way"
    embedded += ["--set", "messages=1000"]
    ended = subprocess.run(embedded, capture_output=True, timeout=PATIENCE)
    assert ended.returncode == 0
    assert b"read again" not in ended.stderr + ended.stdout
    assert place.column(place.into, "n") == list(range(3_000))
    values = place.column(place.dead, "value")
    assert (len(values), len(set(values))) == (torn, torn)
    assert place.rows() == [
        (n, n // 3, sum(m for m in range(n % 6, n, 6) if n - m <= 60)) for n in range(3_000)
    ]
    assert "read again" not in (tmp_path / "run.log").read_text(), "no state was lost"
