"""A topic of Kafka into a Delta table: beside the bare way, under kills, and how soon.

    python bench/kafka.py --quick --json

- `kafka_to_delta_vs_bare`: the same messages of JSON (made, flights-like), read to their end. The
  peer is one loop: confluent-kafka's consume, pyarrow.json, write_deltalake, batches as large as
  ours; it decodes nothing twice, lays no message aside and remembers no offset.
- `kill_lost_rows`, `kill_duplicate_rows`: `drivetrain run` of a stream is killed (SIGKILL) again
  and again, drawn by its progress, and started anew; then every message is counted in the table.
- `event_to_table_p50_ms`, `event_to_table_p99_ms`: from before a message is produced until the
  commit that has it, one message at a time, with commits every 10 ms.
- `event_to_prediction_p50_ms`, `event_to_prediction_p99_ms`: from before a message is produced
  until a running server answers a request with it in its window: through the commit, and told by
  the stream. The request is sent again until it does; a graph that gives its windows as they are.

The broker is noida-db on the loopback, on the same two cores as all that is measured.
"""

import contextlib
import http.client
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "events"))

import deltalake
import numpy as np
import pyarrow as pa
import pyarrow.json as pj
from broker import Broker
from confluent_kafka import Consumer, Producer, TopicPartition
from onnx import TensorProto, helper

import drivetrain as dt
from bench.figure import Figure, figure, show, speed_ratios, words
from drivetrain.core.bundle import Bundle, Manifest
from drivetrain.core.graph import IR_VERSION, OPSET, Graph
from drivetrain.core.schema import Field, Schema
from drivetrain.core.window import Window, Windows
from drivetrain.events.follow.following import follow
from drivetrain.events.lake.snapshot import Snapshot

ROWS, QUICK_ROWS = 1_000_000, 300_000
BATCH = 100_000
PARTITIONS = 4
KILLS, QUICK_KILLS = 100, 25
EVENTS, QUICK_EVENTS = 1_000, 200
WARM = 20
"""Events that come before those that are measured."""
TYPES: Any = {
    "at": "timestamp",
    "carrier": "string",
    "flight": "int64",
    "origin": "string",
    "dest": "string",
    "tail": "string",
    "distance": "float64",
    "dep_delay": "float64",
}


def figures(quick: bool) -> Iterator[Figure]:
    """All figures of this file."""
    with tempfile.TemporaryDirectory(prefix="kafka-") as room:
        broker = Broker(Path(room, "broker"))
        try:
            yield throughput(broker, Path(room), QUICK_ROWS if quick else ROWS, 3 if quick else 5)
            yield from kills(broker, Path(room), QUICK_KILLS if quick else KILLS)
            events = QUICK_EVENTS if quick else EVENTS
            yield from to_table(broker, Path(room), events)
            yield from to_prediction(broker, Path(room), events)
        finally:
            broker.stop()


# -- how fast --------------------------------------------------------------------------------------


def made_values(rows: int, seed: int = 0) -> Iterator[bytes]:
    """Made flights as JSON."""
    draw = random.Random(seed)
    carriers = ("UA", "AA", "DL", "B6", "EV", "MQ")
    places = [chr(65 + i % 26) + chr(65 + i // 26) + "X" for i in range(105)]
    start = np.datetime64("2013-01-01T05:00:00")
    for number in range(rows):
        row = {
            "at": str(start + np.timedelta64(number, "s")),
            "carrier": draw.choice(carriers),
            "flight": draw.randrange(1, 9000),
            "origin": draw.choice(("EWR", "JFK", "LGA")),
            "dest": draw.choice(places),
            "tail": f"N{draw.randrange(10000, 99999)}",
            "distance": float(draw.randrange(80, 5000)),
            "dep_delay": round(draw.gauss(12, 40), 1) if draw.random() > 0.03 else None,
        }
        yield json.dumps(row).encode()


def throughput(broker: Broker, room: Path, rows: int, rounds: int) -> Figure:
    """Rows a second of a stream over those of the bare loop."""
    topic = broker.topic(PARTITIONS)
    values = list(made_values(rows))
    for partition in range(PARTITIONS):
        broker.send(topic, values[partition::PARTITIONS], partition=partition)

    def ours() -> None:
        into = room / "ours"
        shutil.rmtree(into, ignore_errors=True)
        events = dt.Kafka(topic, servers=broker.servers, types=TYPES)
        stream = dt.Stream(name="ours", events=events, into=into, messages=BATCH, every="10s")
        done = follow(stream, room / "ours-room", to_end=True)
        assert done.rows == rows == Snapshot.open(str(into)).rows

    def peer() -> None:
        into = room / "peer"
        shutil.rmtree(into, ignore_errors=True)
        assert bare(topic, broker.servers, into) == rows

    ratios = speed_ratios(ours, peer, rounds)
    return figure("kafka_to_delta_vs_bare", ratios, "consume, pyarrow.json, write_deltalake", 0.8)


def bare(topic: str, servers: str, into: Path) -> int:
    """The bare loop over a topic; how many rows it wrote."""
    settings = {"bootstrap.servers": servers, "group.id": "bare", "enable.auto.commit": False}
    consumer = Consumer({**settings, "auto.offset.reset": "earliest"})
    places = [TopicPartition(topic, partition, 0) for partition in range(PARTITIONS)]
    left = sum(consumer.get_watermark_offsets(place)[1] for place in places)
    consumer.assign(places)
    kinds = {"timestamp": pa.timestamp("us"), "string": pa.string(), "int64": pa.int64()}
    columns = [(name, kinds.get(kind, pa.float64())) for name, kind in TYPES.items()]
    parse = pj.ParseOptions(explicit_schema=pa.schema(columns))
    written = 0
    while written < left:
        values: list[bytes] = []
        while len(values) < min(BATCH, left - written):
            found = consumer.consume(min(BATCH, left - written) - len(values), 1.0)
            values += [message.value() for message in found if message.error() is None]
        table = pj.read_json(pa.BufferReader(b"\n".join(values)), parse_options=parse)
        deltalake.write_deltalake(str(into), table, mode="append")
        written += len(table)
    consumer.close()
    return written


# -- whether all arrives ---------------------------------------------------------------------------

DECLARED = """\
import drivetrain as dt

stream = dt.Stream(
    name="killed",
    events=dt.Kafka({topic!r}, servers={servers!r}, types={{"n": "int64"}}),
    into={into!r},
    dead={dead!r},
    every="10ms",
    messages=50,
)
"""


def kills(broker: Broker, room: Path, times: int) -> Iterator[Figure]:
    """Rows that are lost, and rows too many, after so many kills."""
    draw = random.Random(0)
    topic = broker.topic(PARTITIONS)
    into, dead = str(room / "killed"), str(room / "killed-dead")
    file, site = room / "stream.py", room / "site.toml"
    servers = broker.servers
    file.write_text(DECLARED.format(topic=topic, servers=servers, into=into, dead=dead))
    site.write_text(f'work = "{room / "work"}"\n[engine]\nthreads = 1\n')
    command = [sys.executable, "-m", "drivetrain.cli", "run", str(file), "--on", str(site)]
    number = 0

    def version() -> int:
        return len(list(Path(into, "_delta_log").glob("*.json")))

    with open(room / "killed.log", "ab") as log:
        for _ in range(times):
            for partition in range(PARTITIONS):
                values = [b'{"n": %d}' % n for n in range(number, number + 200)]
                torn = [b"torn %d" % n for n in range(number, number + 200, 50)]
                broker.send(topic, values + torn, partition=partition)
                number += 200
            due = version() + draw.randrange(1, 8)
            process = subprocess.Popen(command, stdout=log, stderr=log)
            _await(lambda due=due: version() >= due, process, room / "killed.log")
            time.sleep(draw.random() * 0.03)
            process.kill()
            process.wait()
        subprocess.run([*command, "--to-end"], stdout=log, stderr=log, check=True)
    counts = np.bincount(_column(into, "n"), minlength=number)
    torn = [int(value.split()[1]) for value in _column(dead, "value")]
    letters = np.bincount(torn, minlength=number)[:number:50]
    peer = f"none; {times} kills, {number:,} messages and {len(letters)} dead letters"
    lost = float((counts == 0).sum() + (letters == 0).sum())
    twice = float((counts[counts > 1] - 1).sum() + (letters[letters > 1] - 1).sum())
    yield figure("kill_lost_rows", [lost], peer, 0)
    yield figure("kill_duplicate_rows", [twice], peer, 0)


def _await(true: Callable[[], bool], process: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + 120
    while not true():
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(log.read_text()[-3000:])
        time.sleep(0.002)


def _column(path: str, name: str) -> list[Any]:
    snapshot = Snapshot.open(path)
    tables = snapshot.chunks(snapshot.schema.select((name,)), 100_000)
    return [value for table in tables for value in table[name].to_pylist()]


# -- how soon --------------------------------------------------------------------------------------


def to_table(broker: Broker, room: Path, events: int) -> Iterator[Figure]:
    """Milliseconds from a message to the commit that has it."""
    with followed(broker, room, "soon") as stream:
        send = sender(broker, stream)
        log = Path(str(stream.into), "_delta_log")
        took: list[float] = []
        for _ in range(events + WARM):
            due = log / f"{len(list(log.glob('*.json'))):020}.json"
            begin = time.perf_counter()
            send(b'{"card": "c", "at": "2026-01-01T00:00:00"}')
            _poll(due.exists)
            took.append((time.perf_counter() - begin) * 1e3)
    yield from _soon("event_to_table", took[WARM:], "none; commits every 10 ms")


def to_prediction(broker: Broker, room: Path, events: int) -> Iterator[Figure]:
    """Milliseconds from a message to an answer that has it in a window."""
    bundle = counting_bundle(room / "counting")
    took: list[float] = []
    with (
        served(bundle) as port,
        followed(
            broker, room, "told", observe=f"http://127.0.0.1:{port}/observe/counting"
        ) as stream,
    ):
        send = sender(broker, stream)
        asking = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

        def count(card: str) -> int:
            body = json.dumps({"card": card, "at": "2026-01-01T00:30:00"})
            asking.request("POST", "/predict/counting", body)
            return json.loads(asking.getresponse().read())["predictions"][0]["got"]

        for number in range(events + WARM):
            card = f"card {number}"
            assert count(card) == 0
            begin = time.perf_counter()
            send(b'{"card": "%s", "at": "2026-01-01T00:00:00"}' % card.encode())
            _poll(lambda card=card: count(card) == 1)
            took.append((time.perf_counter() - begin) * 1e3)
    yield from _soon("event_to_prediction", took[WARM:], "none; commits every 10 ms, then told")


def _soon(name: str, took: list[float], peer: str) -> Iterator[Figure]:
    for q, goal in ((50, 50.0), (99, 200.0)):
        value = float(np.percentile(took, q))
        yield figure(f"{name}_p{q}_ms", took, peer, goal, value)


def _poll(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        if time.monotonic() > end:
            raise TimeoutError("an event did not arrive")
        time.sleep(0.0005)


def sender(broker: Broker, stream: dt.Stream) -> Callable[[bytes], None]:
    """What produces one message to a stream's topic, by one producer."""
    producer = Producer({"bootstrap.servers": broker.servers, "linger.ms": 0})

    def send(value: bytes) -> None:
        producer.produce(stream.topic.topic, value, partition=0)
        producer.flush(60)

    return send


def counting_bundle(path: Path) -> Bundle:
    """A bundle whose graph gives its one window: how many of a card's events came in an hour."""
    schema = Schema((Field("at", "timestamp"), Field("card", "string")))
    windows = Windows("at", (("seen", Window(by="card", stat="count", over="1h")),))
    seen, got = Field("seen", "int64"), Field("got", "int64")
    values = [
        helper.make_tensor_value_info(f.name, TensorProto.INT64, ["rows"]) for f in (seen, got)
    ]
    node = helper.make_node("Identity", ["seen"], ["got"])
    graph = helper.make_graph([node], "counting", values[:1], values[1:])
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, ir_version=IR_VERSION, opset_imports=opset)
    inputs, outputs = Schema((seen,)), Schema((got,))
    given: Any = {"windows": windows.to_json(), "window_schema": schema}
    manifest = Manifest(name="counting", inputs=inputs, outputs=outputs, **given)
    return Bundle.write(path, Graph.from_proto(model), manifest, {})


@contextlib.contextmanager
def served(bundle: Bundle) -> Iterator[int]:
    """A server of a bundle in a process of its own; its port."""
    command = [sys.executable, "-m", "drivetrain.cli", "serve", f"{bundle.path}", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline().decode().rsplit(":", 1)[1])
    finally:
        process.terminate()
        process.wait(60)


@contextlib.contextmanager
def followed(broker: Broker, room: Path, name: str, **more: Any) -> Iterator[dt.Stream]:
    """A stream that is followed in a thread while the block runs."""
    topic = broker.topic(1)
    events = dt.Kafka(topic, servers=broker.servers, types={"card": "string", "at": "timestamp"})
    given = {"name": name, "events": events, "into": room / name, "every": "10ms", **more}
    stream = dt.Stream(**given)
    stop, failed = Event(), []

    def run() -> None:
        try:
            follow(stream, room / f"{name}-room", stop=stop)
        except BaseException as error:
            failed.append(error)

    thread = Thread(target=run)
    thread.start()
    while not (Path(str(stream.into)) / "_delta_log").exists() and thread.is_alive():
        time.sleep(0.01)
    try:
        yield stream
    finally:
        stop.set()
        thread.join()
    if failed:
        raise failed[0]


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    options = words(__doc__)
    for measured in figures(options.quick):
        show(measured, options.json)
