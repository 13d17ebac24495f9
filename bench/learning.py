"""A factorization that learns while it is served: how soon an event is seen, what an answer takes.

    python bench/learning.py --quick --json

The catalogue has 100,000 items of 64 numbers; the factors of the first bundle are drawn, not
trained, which makes no difference to what a run costs. `event_to_ranking_p99_ms` is one post to
`/observe`, flushed to the disk, and the next request, whose list must lack the item that stood
first in it: both over one open connection. `recommend_als_…` asks for the best 20 of that bundle,
`recommend_p99_ms_c16` the whole recommender of `bench/recommend.py`: windows, features, recall, and
the ranking of 200 candidates. Posts of events go on meanwhile, ten a second, so that the lists are
answered from tensors that change.
"""

import contextlib
import http.client
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from bench import recommend
from bench.figure import Figure, figure, show, words
from bench.graphs import Drawn
from bench.load import Request, cpu_of, wrk
from bench.ours import READY, status
from bench.processes import Running, free_port, started
from bench.state import event_to_prediction

ITEMS, USERS, FACTORS, K = 100_000, 20_000, 64, 20


def drawn(folder: Path) -> Any:
    """A bundle of made factors, users and items as text; every item was had by somebody."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    import drivetrain as dt

    random = np.random.default_rng(0)
    item = np.append(np.arange(ITEMS), (random.random(2 * ITEMS) ** 2 * ITEMS).astype(int))
    user = random.integers(0, USERS, len(item))
    columns = {
        "user": [f"user {n}" for n in user],
        "item": [f"item {n}" for n in item],
        "part": ["train"] * (len(item) - 2) + ["validate", "test"],
    }
    pq.write_table(pa.table(columns), folder / "rows.parquet")
    system = dt.System(
        name="drawn",
        events=dt.Parquet(str(folder / "rows.parquet")).split(dt.ColumnSplit("part")),
        features=(dt.Index("user"),),
        targets=("item",),
        train=Drawn(target="item", k=K, factors=FACTORS, online=dt.Online()),
    )
    site = dt.Site(store=str(folder / "store"), work=str(folder / "work"), device="cpu")
    return dt.run(system, site)


@contextlib.contextmanager
def serving(folder: Path, bundle: Any) -> Iterator[Running]:
    """A server of one process that keeps what it learns."""
    port = free_port()
    said = ["serve", str(bundle.path), "--port", str(port), "--set=serve.workers=1"]
    said += [f"--set=store={folder}/store", f"--set=serve.state={folder}/state-{port}"]
    said += [f"--set=serve.state_bytes={4 << 30}"]
    command = [sys.executable, "-m", "drivetrain.cli", *said]
    with started(command, folder / "log", port) as server:
        server.wait(lambda: status(port, READY) == 200, 300.0)
        yield server


class Asking:
    """One connection to one alias."""

    def __init__(self, server: Running, alias: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        self._alias = alias

    def post(self, kind: str, body: Mapping[str, Any]) -> Any:
        """What is answered to a post.

        Raises:
            RuntimeError: it is not answered with 200.
        """
        self._connection.request("POST", f"/{kind}/{self._alias}", json.dumps(body))
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{kind} answered {answer.status}: {text[:300]!r}")
        return json.loads(text)

    def items(self, row: Mapping[str, Any]) -> list[Any]:
        """The list for a row."""
        return self.post("predict", row)["predictions"][0]["items"]

    def close(self) -> None:
        """Let go of the connection."""
        self._connection.close()


def soon(server: Running, alias: str, rows: Sequence[Mapping[str, Any]], item: str) -> list[float]:
    """Seconds from the post of an event to a list without its item, for each row in turn.

    Raises:
        RuntimeError: the next list still has it.
    """
    asking, found = Asking(server, alias), list[float]()
    try:
        for row in rows:
            first = asking.items(row)[0]
            begun = time.perf_counter()
            asking.post("observe", {**row, item: first})
            after = asking.items(row)
            found.append(time.perf_counter() - begun)
            if first in after:
                raise RuntimeError(f"the next list still has {first!r}")
    finally:
        asking.close()
    return found


@contextlib.contextmanager
def told(server: Running, alias: str, event: Callable[[int], Mapping[str, Any]]) -> Iterator[None]:
    """Events are posted while the block runs, ten a second."""
    ended = threading.Event()

    def post() -> None:
        asking, number = Asking(server, alias), 0
        with contextlib.closing(asking):
            while not ended.wait(0.1):
                asking.post("observe", event(number))
                number += 1

    thread = threading.Thread(target=post)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def asked(
    server: Running,
    alias: str,
    row: Mapping[str, Any],
    event: Callable[[int], Mapping[str, Any]],
    name: str,
    rounds: int,
) -> Iterator[Figure]:
    """`{name}_p99_ms_c1` and `_c16`: of an answer, by how many ask at once."""
    request = Request(target=f"/predict/{alias}", body=json.dumps(row).encode())
    wrk(server.url, request, 16, 2)
    for connections in (1, 16):
        worst, middle, cost, rate = [], [], [], []
        for _ in range(rounds):
            with told(server, alias, event):
                load, cpu = cpu_of(server, lambda c=connections: wrk(server.url, request, c, 3))
            if load.failed:
                raise RuntimeError(f"{load.failed} of {load.answered} requests failed")
            worst.append(load.p99 * 1e3)
            middle.append(load.p50 * 1e3)
            cost.append(cpu * 1e3)
            rate.append(load.rps)
        peer = (
            f"none: stated; p50 {np.median(middle):.2f} ms, {np.median(rate):.0f} a second, "
            f"{np.median(cost):.2f} ms of CPU each"
        )
        goal = 10.0 if connections == 16 else 0.0
        yield figure(f"{name}_p99_ms_c{connections}", worst, peer, goal)


def of_factors(quick: bool) -> Iterator[Figure]:
    """How soon an event is seen, and what the answers of a factorization take."""
    with tempfile.TemporaryDirectory(prefix="drivetrain-bench-") as name:
        folder = Path(name)
        bundle = drawn(folder)
        with serving(folder, bundle) as server:
            alias = "drawn"
            rows = [{"user": f"user {n}"} for n in range(200 if quick else 2000)]
            soon(server, alias, rows[:20], "item")
            seconds = soon(server, alias, rows, "item")
            middle, worst = np.percentile(seconds, [50, 99]) * 1e3
            peer = f"the issue's bound; p50 {middle:.2f} ms"
            yield figure("event_to_ranking_p99_ms", [float(worst)], peer, 100.0)

            def event(number: int) -> Mapping[str, Any]:
                return {"user": f"user {number % 500}", "item": f"item {number * 7919 % ITEMS}"}

            rounds = 2 if quick else 5
            yield from asked(server, alias, rows[7], event, "recommend_als", rounds)


def of_recommender(quick: bool) -> Iterator[Figure]:
    """What the answers of the whole recommender take, features and ranking included."""
    import drivetrain as dt

    with tempfile.TemporaryDirectory(prefix="drivetrain-bench-") as name:
        folder = Path(name)
        method = dt.ALS(
            target="item", user="user_index", factors=64, iterations=3, online=dt.Online()
        )
        site = dt.Site(store=str(folder / "store"), work=str(folder / "work"), device="cpu")
        bundle = dt.run(recommend.made(folder, quick=quick, recall=method), site)
        assert bundle is not None
        with serving(folder, bundle) as server:
            at = 10**13
            row = dict.fromkeys(bundle.manifest.inputs.names)
            windows = set(bundle.manifest.windows.get("windows", {}))
            row = {
                n: v for n, v in row.items() if n not in windows and n not in ("recent", "often")
            }
            row |= {"user": 77, "age": 30.0, "at": at}

            def event(number: int) -> Mapping[str, Any]:
                return {"user": number % 500, "item": number * 7919 % ITEMS, "at": at + number}

            yield from asked(server, "made", row, event, "recommend", 2 if quick else 5)
            event_to_prediction(server.url, "made", event(0), row, 20)
            seconds = event_to_prediction(server.url, "made", event(1), row, 200 if quick else 2000)
            middle, worst = np.percentile(seconds, [50, 99]) * 1e3
            peer = f"the issue's bound; p50 {middle:.2f} ms"
            yield figure("event_to_whole_ranking_p99_ms", [float(worst)], peer, 100.0)


def figures(quick: bool) -> Iterator[Figure]:
    """Every figure."""
    for part in (of_factors, of_recommender):
        yield from part(quick)


if __name__ == "__main__":
    options = words(__doc__)
    for measured in figures(options.quick):
        show(measured, options.json)
