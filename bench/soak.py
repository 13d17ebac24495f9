"""A long mixed load with a reload every ten seconds: what memory it costs, and what fails."""

import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from bench import ours
from bench.clients import Clients
from bench.figure import Figure, figure
from bench.load import h2load, wrk
from bench.ours import Place, serving
from bench.processes import Running
from bench.speed import say

QUICK_SECONDS = 60.0
FULL_SECONDS = 1800.0
_RELOAD_SECONDS = 10.0
_RATE = 200.0
"""Binary requests a second beside the rows: enough to mix, too few to starve them."""


def soak(at: Place, seconds: float) -> Iterator[Figure]:
    """``soak_memory_growth`` and ``soak_5xx``.

    Growth is the median resident size of all our processes over the last fifth of the run,
    against the second fifth: in the first one caches and both versions find their place.
    """
    sizes: list[float] = []
    ended = threading.Event()
    with serving(at) as server:
        watch = threading.Thread(target=_watch, args=(at, server, sizes, ended), daemon=True)
        rows, binary = ours.one_row(), ours.binary(64)
        with (
            Clients(server.port, ours.poisoned(), 2, pause=0.05) as bad,
            Clients(server.port, ours.v2_row(), 2, pause=0.01) as v2,
            ThreadPoolExecutor(2) as pool,
        ):
            watch.start()
            loads = [
                pool.submit(wrk, server.url, rows, 8, seconds),
                pool.submit(h2load, server.url, binary, 4, seconds, http1=True, rate=_RATE),
            ]
            found = [load.result() for load in loads]
        ended.set()
        watch.join(30)
    at.promote(0)
    if bad.seen.good or not bad.seen.bad:
        raise RuntimeError(f"poisoned requests were answered {bad.seen}")
    failed = sum(load.failed for load in found) + v2.seen.bad + v2.seen.lost
    failed += bad.seen.lost + sum(n for code, n in bad.seen.answered.items() if code >= 500)
    fifth = len(sizes) // 5
    first, last = statistics.median(sizes[fifth : 2 * fifth]), statistics.median(sizes[-fifth:])
    say(f"soak: {sum(load.answered for load in found) + v2.seen.good} answered in {seconds:g} s, "
        f"{bad.seen.bad} refused, {first:.1f} MB then {last:.1f} MB")  # fmt: skip
    yield figure("soak_memory_growth", [last / first - 1], "itself, earlier", 0.02)
    yield figure("soak_5xx", [failed], "none: a bound", 0.0)


def _watch(at: Place, server: Running, sizes: list[float], ended: threading.Event) -> None:
    """Look at the memory once a second, and move the alias every ten."""
    number, moved = 0, time.monotonic()
    while not ended.wait(1.0):
        sizes.append(server.resident_mb())
        if time.monotonic() - moved >= _RELOAD_SECONDS:
            number, moved = 1 - number, time.monotonic()
            at.promote(number)
