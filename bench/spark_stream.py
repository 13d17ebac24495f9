"""A stream on Spark: beside one that is written by hand, and under kills.

    python bench/spark_stream.py --quick --json

- `spark_stream_vs_handwritten`: the same messages of JSON (made, flights-like) into a Delta table,
  read to their end in micro-batches of equal bounds, in one session with two threads. The peer is
  a job of PySpark as one writes it: the same Python data source, `from_json`, a filter, a column
  more, Parquet by the executors, and a commit of the driver with the number of the micro-batch. It
  lays no message aside and knows no partition's offset.
- `spark_kill_lost_rows`, `spark_kill_duplicate_rows`: `drivetrain run` of a stream on Spark is
  killed, driver and JVM (SIGKILL), again and again, drawn by its progress, and started anew; then
  every message is counted in the table.

The broker is noida-db on the loopback, on the same two cores as all that is measured.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "events"))

import deltalake
import pyarrow as pa
import pyarrow.parquet as pq
from broker import Broker
from deltalake.transaction import AddAction

import drivetrain as dt
from bench.figure import Figure, figure, show, speed_ratios, words
from bench.kafka import TYPES, made_values
from drivetrain.core.site import EngineSite
from drivetrain.core.spark import session
from drivetrain.events.lake.evolve import UTC
from drivetrain.events.lake.snapshot import Snapshot
from drivetrain.events.spark.source import NAME, KafkaSource
from drivetrain.events.spark.streaming import follow

ROWS, QUICK_ROWS = 1_000_000, 300_000
BATCH = 100_000
PARTITIONS = 4
KILLS, QUICK_KILLS = 20, 4
SITE = EngineSite(kind="spark", master="local[2]", memory="2GB")
SPARK_TYPES = {"int64": "BIGINT", "float64": "DOUBLE", "string": "STRING", "timestamp": "TIMESTAMP"}


def figures(quick: bool) -> Iterator[Figure]:
    """All figures of this file."""
    with tempfile.TemporaryDirectory(prefix="spark-stream-") as room:
        broker = Broker(Path(room, "broker"))
        try:
            rows = QUICK_ROWS if quick else ROWS
            yield throughput(broker, Path(room), rows, 3 if quick else 5)
            yield from kills(broker, Path(room), QUICK_KILLS if quick else KILLS)
        finally:
            broker.stop()


# -- how fast --------------------------------------------------------------------------------------


def throughput(broker: Broker, room: Path, rows: int, rounds: int) -> Figure:
    """Rows a second of a stream over those of the job that is written by hand."""
    topic = broker.topic(PARTITIONS)
    values = list(made_values(rows))
    for partition in range(PARTITIONS):
        broker.send(topic, values[partition::PARTITIONS], partition=partition)
    held: set[int] = set()

    with session(SITE) as spark:
        spark.dataSource.register(KafkaSource)

        def ours() -> None:
            into = room / "ours"
            shutil.rmtree(into, ignore_errors=True)
            events = dt.Kafka(topic, servers=broker.servers, types=TYPES)
            events = events.where(dt.col("distance") > 200.0)
            events = events.with_columns(late=dt.col("dep_delay") - 15.0)
            stream = dt.Stream(name="ours", events=events, into=into, messages=BATCH)
            follow(stream, room / "ours-room", SITE, to_end=True)
            held.add(Snapshot.open(str(into)).rows or 0)

        def peer() -> None:
            into = room / "peer"
            shutil.rmtree(into, ignore_errors=True)
            by_hand(spark, topic, broker.servers, into)
            held.add(Snapshot.open(str(into)).rows or 0)

        ratios = speed_ratios(ours, peer, rounds)
    assert len(held) == 1, f"the two do not give the same rows: {held}"
    about = "PySpark by hand: the same source, from_json, Parquet, a commit"
    return figure("spark_stream_vs_handwritten", ratios, about, 1.0)


def by_hand(spark: Any, topic: str, servers: str, into: Path) -> None:
    """The job as one writes it for PySpark."""
    from pyspark.sql import functions

    ddl = ", ".join(f"{name} {SPARK_TYPES[kind]}" for name, kind in TYPES.items())
    kinds = {"int64": pa.int64(), "float64": pa.float64(), "string": pa.string(), "timestamp": UTC}
    columns = [(name, kinds[kind]) for name, kind in TYPES.items()]
    schema = pa.schema([*columns, ("late", pa.float64())])
    table = deltalake.DeltaTable.create(str(into), schema)

    def land(records: Any, number: int) -> None:
        if (table.transaction_version("by-hand") or -1) >= number:
            return
        parsed = functions.from_json(records.value.cast("string"), ddl).alias("row")
        rows = records.select(parsed).select("row.*").where("distance > 200.0")
        folder = into / f"batch-{number}"
        rows.withColumn("late", rows.dep_delay - 15.0).write.parquet(folder.as_uri())
        files = []
        for path in sorted(folder.glob("*.parquet")):
            stats = json.dumps({"numRecords": pq.read_metadata(path).num_rows})
            name, size = f"{folder.name}/{path.name}", path.stat().st_size
            files.append(AddAction(name, size, {}, time.time_ns() // 1_000_000, True, stats))
        done = deltalake.CommitProperties(
            app_transactions=[deltalake.Transaction("by-hand", number)]
        )
        table.create_write_transaction(files, "append", table.schema(), commit_properties=done)
        table.update_incremental()

    options = {"servers": servers, "topic": topic, "properties": "", "positions": "{}"}
    with tempfile.TemporaryDirectory() as checkpoint:
        records = spark.readStream.format(NAME).options(**options, rows=str(BATCH)).load()
        write = records.writeStream.foreachBatch(land).option("checkpointLocation", checkpoint)
        write.trigger(availableNow=True).start().awaitTermination()


# -- under kills -----------------------------------------------------------------------------------

STREAM = """\
import drivetrain as dt

stream = dt.Stream(
    name="killed",
    events=dt.Kafka({topic!r}, servers={servers!r}, types={{"n": "int64"}}),
    into={into!r},
    every="10ms",
    messages=200,
)
"""
PLACE = 'work = "{work}"\n[engine]\nkind = "spark"\nmaster = "local[2]"\nmemory = "1GB"\n'


def kills(broker: Broker, room: Path, times: int) -> Iterator[Figure]:
    """What is lost and what is double after a stream was killed so often."""
    topic, rows = broker.topic(PARTITIONS), 4_000 * times
    for partition in range(PARTITIONS):
        numbers = range(partition, rows, PARTITIONS)
        broker.send(topic, (b'{"n": %d}' % n for n in numbers), partition=partition)
    into, file, site = room / "killed", room / "stream.py", room / "site.toml"
    file.write_text(STREAM.format(topic=topic, servers=broker.servers, into=str(into)))
    site.write_text(PLACE.format(work=room / "work"))
    draw = random.Random(11)

    def start(*more: str) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "drivetrain.cli", "run", str(file), "--on", str(site)]
        with (room / "run.log").open("ab") as log:
            return subprocess.Popen(
                [*command, *more], stdout=log, stderr=log, start_new_session=True
            )

    def version() -> int:
        return len(list((into / "_delta_log").glob("*.json"))) - 1

    for _ in range(times):
        process, due = start(), max(version(), 0) + draw.randrange(1, 15)
        while version() < due:
            if process.poll() is not None:
                raise RuntimeError((room / "run.log").read_text()[-2000:])
            time.sleep(0.01)
        time.sleep(draw.random() * 0.5)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if start("--to-end", "--set", "messages=1000000").wait():
        raise RuntimeError((room / "run.log").read_text()[-2000:])
    snapshot = Snapshot.open(str(into))
    found = [n for t in snapshot.chunks(snapshot.schema, 100_000) for n in t["n"].to_pylist()]
    peer = f"{times} kills, {rows:,} messages"
    yield figure("spark_kill_lost_rows", [rows - len(set(found))], peer, 0.0)
    yield figure("spark_kill_duplicate_rows", [len(found) - len(set(found))], peer, 0.0)


if __name__ == "__main__":
    given = words(__doc__)
    for found in figures(given.quick):
        show(found, given.json)
