"""Windows in the server: what they cost a request, how fast it observes, how soon it is back.

    python bench/state.py --quick --json

The bundle gives one number out of the one that a request brings and, in one of its two forms, six
windows over 100,000 cards (20,000 with `--quick`). `window_online_served_us` is the CPU of a
request of one row with the windows less that without them, both asked alike over 64 connections;
the peer is the request without. Observations are durable: each answer has waited for the disk.
"""

import contextlib
import http.client
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from onnx import TensorProto, helper

from bench.figure import Figure, figure, show, words
from bench.load import Request, cpu_of, wrk
from bench.ours import READY, status
from bench.processes import Running, free_port, started
from drivetrain.core.batch import Batch
from drivetrain.core.bundle import Bundle, Manifest
from drivetrain.core.graph import IR_VERSION, OPSET, Graph
from drivetrain.core.schema import Field, Schema
from drivetrain.core.window import Window, Windows
from drivetrain.serve.execution.filling import Filling
from drivetrain.serve.state.embedded import Embedded
from drivetrain.serve.state.posts import Limits, Post
from drivetrain.serve.telemetry.metrics import Metrics

HOUR = 3_600_000_000
START = 1_750_000_000_000_000
SCHEMA = Schema(
    (
        Field("at", "timestamp"),
        Field("card", "string"),
        Field("amount", "float64"),
        Field("settled", "timestamp"),
    )
)
WINDOWS = Windows(
    "at",
    (
        ("hourly", Window(by="card", stat="count", over="1h")),
        ("spent", Window("amount", by="card", stat="sum", over="1h", known="settled")),
        ("mean", Window("amount", by="card", stat="mean", over="24h", known="settled")),
        ("top", Window("amount", by="card", stat="max", over="24h", known="settled")),
        ("last", Window("amount", by="card", stat="last", known="settled")),
        ("since", Window(by="card", stat="since")),
    ),
    HOUR,
)
_TYPES = {"int64": TensorProto.INT64, "float64": TensorProto.DOUBLE, "float32": TensorProto.FLOAT}
_POST = 500
"""Rows of a post in the figure of observed rows."""


def write(path: Path, windows: Windows | None) -> Bundle:
    """A bundle of ``far``, out of ``distance`` and of the windows if there are any."""
    filled = () if windows is None else windows.fields(SCHEMA)
    inputs = Schema((Field("distance", "float32"), Field("at", "timestamp"),
                     Field("card", "string"), *filled))  # fmt: skip
    taken = [Field("distance", "float32"), *filled]
    nodes = [helper.make_node("Cast", [f.name], [f"{f.name}32"], to=1) for f in taken]
    nodes.append(helper.make_node("Sum", [f"{f.name}32" for f in taken], ["far"]))
    given = [helper.make_tensor_value_info(f.name, _TYPES[f.dtype], ["rows"]) for f in taken]
    said = [helper.make_tensor_value_info("far", TensorProto.FLOAT, ["rows"])]
    graph = helper.make_graph(nodes, "cards", given, said)
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, ir_version=IR_VERSION, opset_imports=opset)
    manifest = Manifest(
        name="cards",
        inputs=inputs,
        outputs=Schema((Field("far", "float32"),)),
        windows={} if windows is None else windows.to_json(),
        window_schema=Schema(()) if windows is None else SCHEMA,
    )
    return Bundle.write(path, Graph.from_proto(model), manifest, {})


def batches(keys: int, each: int, rows: int = 8192) -> Iterator[Batch]:
    """Made observations of so many cards, ``each`` of one in the mean, in order of time."""
    random = np.random.default_rng(0)
    names = np.array([f"card {n}" for n in range(keys)], object)
    total = keys * each
    for first in range(0, total, rows):
        count = min(rows, total - first)
        at = START + (np.arange(first, first + count) * HOUR) // total
        # Each card once before any comes again, so that there are as many as it says.
        numbers = np.arange(first, first + count) % keys
        amount = random.normal(50, 20, count)
        yield Batch({"at": at, "card": names[numbers], "amount": amount, "settled": at})


def fill(room: Path, bundle: Bundle, keys: int, each: int) -> None:
    """What a server would have in its directory that was told of so much."""
    import asyncio

    filling = Filling.of(bundle.manifest)
    assert filling is not None

    async def told() -> None:
        state = Embedded("cards", room, 8 << 30, Metrics())
        state.keep(filling.kept, Limits(8192))
        ended: list[Any] = []
        for number, batch in enumerate(batches(keys, each), 1):
            state.observe(Post((batch,), len(batch), 40 * len(batch)), ended.append)
            while len(ended) < number:
                await asyncio.sleep(0.0005)
        await state.close()

    asyncio.run(told())


@contextlib.contextmanager
def serving(folder: Path, bundle: Bundle, state: Path | None = None) -> Iterator[Running]:
    """A server of one process."""
    port = free_port()
    words = ["serve", str(bundle.path), "--port", str(port), "--set=serve.workers=1"]
    words += [f"--set=store={folder}/store", f"--set=serve.state_bytes={8 << 30}"]
    words += [f"--set=serve.state={state}"] if state is not None else []
    command = [sys.executable, "-m", "drivetrain.cli", *words]
    with started(command, folder / "log", port) as server:
        server.wait(lambda: status(port, READY) == 200, 120.0)
        yield server


def event_to_prediction(
    url: str, alias: str, observation: Mapping[str, Any], request: Mapping[str, Any], times: int
) -> list[float]:
    """Seconds from the post of an observation to a prediction that has seen it, each time.

    Both go over one open connection, one after the other: the observation is answered when it is
    safe, and what is asked behind the answer sees it.

    Raises:
        RuntimeError: an answer is none of 200.
    """
    host, _, port = url.removeprefix("http://").partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    bodies = (
        (f"/observe/{alias}", json.dumps(observation)),
        (f"/predict/{alias}", json.dumps(request)),
    )
    found: list[float] = []
    try:
        for _ in range(times):
            begun = time.perf_counter()
            for target, body in bodies:
                connection.request("POST", target, body)
                answer = connection.getresponse()
                text = answer.read()
                if answer.status != 200:
                    raise RuntimeError(f"{target} answered {answer.status}: {text[:300]!r}")
            found.append(time.perf_counter() - begun)
    finally:
        connection.close()
    return found


def figures(quick: bool) -> Iterator[Figure]:
    """What windows cost where they are served."""
    keys = 20_000 if quick else 100_000
    with tempfile.TemporaryDirectory(prefix="drivetrain-bench-") as name:
        folder = Path(name)
        windowed, plain = write(folder / "windowed", WINDOWS), write(folder / "plain", None)
        room = folder / "state"
        fill(room / "cards", windowed, keys, 10)
        yield from recovery(folder, windowed, room, 3 if quick else 7)
        with (
            serving(folder, windowed, room) as mine,
            serving(folder, plain) as bare,
        ):
            yield from served(mine, bare, 3 if quick else 7)
            yield from observed(mine, 3 if quick else 7)
            yield from soon(mine, 300 if quick else 2000)


def recovery(folder: Path, bundle: Bundle, room: Path, rounds: int) -> Iterator[Figure]:
    """``state_recovery_seconds``: until a log of 1,000,000 rows (200,000) is in memory again;
    ``state_bytes_per_key``: what a card takes there, of both tracks together."""
    seconds: list[float] = []
    size = keys = 0
    for _ in range(rounds):
        copy = folder / "copy"
        shutil.copytree(room / "cards", copy)
        begun = time.perf_counter()
        state = Embedded("cards", copy, 8 << 30, Metrics())
        seconds.append(time.perf_counter() - begun)
        size, keys = state.memory.size, state.memory.keys
        assert state._journal is not None
        state._journal.close()
        shutil.rmtree(copy)
    yield figure("state_recovery_seconds", seconds, "none: a bound", 10.0)
    yield figure("state_bytes_per_key", [size / keys * len(WINDOWS.tracks)], "none: stated", 0.0)


def served(mine: Running, bare: Running, rounds: int) -> Iterator[Figure]:
    """``window_online_served_us``: CPU microseconds that six windows add to a request."""
    row = {"distance": 1.5, "at": START + HOUR, "card": "card 17"}
    request = Request(target="/predict/cards", body=json.dumps(row).encode())
    for server in (mine, bare):
        wrk(server.url, request, 64, 1)
    added: list[float] = []
    without: list[float] = []
    for _ in range(rounds):
        cost = {}
        for server in (mine, bare):
            load, cost[server.pid] = cpu_of(server, lambda s=server: wrk(s.url, request, 64, 2))
            if load.failed:
                raise RuntimeError(f"{load.failed} of {load.answered} requests failed")
        added.append((cost[mine.pid] - cost[bare.pid]) * 1e6)
        without.append(cost[bare.pid] * 1e6)
    peer = f"the same request without, {statistics.median(without):.1f} us"
    yield figure("window_online_served_us", added, peer, 20.0)


def observed(mine: Running, rounds: int) -> Iterator[Figure]:
    """``observe_per_second``: durable rows, 500 to a post on one connection; and
    ``observe_posts_per_second``: durable posts of one row, over 64 connections."""
    host, port = mine.url.removeprefix("http://").split(":")
    bodies = [
        json.dumps({"rows": list(batch.rows())}).encode()
        for _, batch in zip(range(20), batches(10_000, 1, _POST), strict=False)
    ]
    rates: list[float] = []
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    for _ in range(rounds):
        begun = time.perf_counter()
        for body in bodies:
            connection.request("POST", "/observe/cards", body)
            answer = connection.getresponse()
            if answer.status != 200:
                raise RuntimeError(f"observing answered {answer.status}: {answer.read()[:300]!r}")
            answer.read()
        rates.append(len(bodies) * _POST / (time.perf_counter() - begun))
    connection.close()
    yield figure("observe_per_second", rates, "none: stated", 0.0)
    one = json.dumps(next(next(batches(1, 1)).rows())).encode()
    posts: list[float] = []
    for _ in range(rounds):
        load = wrk(mine.url, Request(target="/observe/cards", body=one), 64, 2)
        if load.failed:
            raise RuntimeError(f"{load.failed} of {load.answered} posts failed")
        posts.append(load.rps)
    yield figure("observe_posts_per_second", posts, "none: stated", 0.0)


def soon(mine: Running, times: int) -> Iterator[Figure]:
    """``observed_to_prediction_p99_ms``: from the post of an observation to a prediction that has
    seen it."""
    observation = {"at": START + HOUR, "card": "new", "amount": 1.0, "settled": START + HOUR}
    request = {"distance": 1.0, "at": START + HOUR + 1, "card": "new"}
    seconds = event_to_prediction(mine.url, "cards", observation, request, times)
    middle, worst = np.percentile(seconds, [50, 99]) * 1e3
    peer = f"none: stated; p50 {middle:.2f} ms"
    yield figure("observed_to_prediction_p99_ms", [float(worst)], peer, 0.0)


if __name__ == "__main__":
    options = words(__doc__)
    for measured in figures(options.quick):
        show(measured, options.json)
