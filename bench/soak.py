"""A long mixed load with a reload every ten seconds: what memory it costs, and what fails.

The load is an open one, of so many requests a second in all: rows as JSON, V2 as JSON and as binary
tensors, gRPC, and rows that fail in the run. At the default rate the server and its load take about
a third of one core, so that a machine can be used beside it, and how long a reload takes is not
hidden behind a queue.
"""

import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from bench import ours
from bench.clients import Clients
from bench.figure import Figure, figure
from bench.load import h2load
from bench.ours import ALIAS, Place, serving
from bench.processes import Running
from bench.speed import say

QUICK_SECONDS = 60.0
FULL_SECONDS = 1800.0
RATE = 500.0
"""Requests a second, all kinds together."""
_RELOAD_SECONDS = 10.0
_ROWS, _BINARY, _GRPC = 0.7, 0.05, 0.15
"""Of the rate; the rest is V2 JSON and poison, whose clients know of each single request."""
_GRPC_BYTES = 20
"""An answer of gRPC without a prediction is shorter, and has status 200 all the same."""


def soak(at: Place, seconds: float, rate: float = RATE) -> Iterator[Figure]:
    """``soak_memory_growth`` and ``soak_5xx``.

    Growth is the median resident size of all our processes over the last fifth of the run,
    against the second fifth: in the first one caches and both versions find their place.

    Args:
        at: where both versions lie.
        seconds: how long.
        rate: requests a second.

    Raises:
        RuntimeError: the load or the reloads were not what they should be.
    """
    ended = threading.Event()
    pause = 4 / (rate * (1 - _ROWS - _BINARY - _GRPC))
    with serving(at) as server:
        watch = _Watch(at, server, ended)
        with (
            Clients(server.port, ours.poisoned(), 1, pause=2 * pause) as bad,
            Clients(server.port, ours.v2_row(), 2, pause=pause) as v2,
            ThreadPoolExecutor(4) as pool,
        ):
            watching = pool.submit(watch)
            load = partial(h2load, server.url, seconds=seconds)
            loads = [
                pool.submit(load, ours.one_row(), 8, http1=True, rate=rate * _ROWS),
                pool.submit(load, ours.binary(64), 4, http1=True, rate=rate * _BINARY),
                pool.submit(load, ours.over_grpc(), 4, rate=rate * _GRPC),
            ]
            try:
                found = [each.result() for each in loads]
            finally:
                ended.set()  # or else the pool would wait for the watch for ever
            watching.result()
        cpu = server.cpu_seconds() / seconds
    at.promote(0)
    if bad.seen.good or not bad.seen.bad or not v2.seen.good or not all(f.answered for f in found):
        raise RuntimeError(f"poisoned requests were answered {bad.seen}, good ones {v2.seen}")
    if found[-1].bytes_each < _GRPC_BYTES:
        raise RuntimeError(f"answers of gRPC had {found[-1].bytes_each:.0f} bytes")
    failed = sum(each.failed for each in found) + v2.seen.bad + v2.seen.lost
    failed += bad.seen.lost + sum(n for code, n in bad.seen.answered.items() if code >= 500)
    fifth = len(watch.sizes) // 5
    first = statistics.median(watch.sizes[fifth : 2 * fifth])
    last = statistics.median(watch.sizes[-fifth:])
    good = sum(load.answered for load in found) + v2.seen.good
    if failed:
        say(f"soak: failed {[load.failed for load in found]}, V2 {v2.seen}, poison {bad.seen}")
    say(f"soak: {good} answered in {seconds:g} s at {cpu:.0%} of a core, {bad.seen.bad} refused, "
        f"{watch.reloads} reloads, {first:.1f} MB then {last:.1f} MB, "
        f"most {max(watch.sizes):.1f} MB")  # fmt: skip
    yield figure("soak_memory_growth", [last / first - 1], "itself, earlier", 0.02)
    yield figure("soak_5xx", [failed], "none: a bound", 0.0)


class _Watch:
    """Looks at the memory once a second, and moves the alias every ten.

    Attributes:
        sizes: megabytes.
        reloads: that took effect.
    """

    def __init__(self, at: Place, server: Running, ended: threading.Event) -> None:
        self.sizes: list[float] = []
        self.reloads = 0
        self._at, self._server, self._ended = at, server, ended

    def __call__(self) -> None:
        number, moved, version = 0, time.monotonic(), self._version()
        while not self._ended.wait(1.0):
            self.sizes.append(self._server.resident_mb())
            if time.monotonic() - moved < _RELOAD_SECONDS:
                continue
            found = self._version()
            self.reloads += found != version
            version = found
            number, moved = 1 - number, time.monotonic()
            self._at.promote(number)
        if not self.reloads and len(self.sizes) > 3 * _RELOAD_SECONDS:
            raise RuntimeError("no reload was seen")

    def _version(self) -> bytes:
        return ours.get(self._server.port, f"/v2/models/{ALIAS}")
