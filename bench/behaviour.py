"""How our server behaves: its start, its memory, a reload, bad clients, overload and its end."""

import compileall
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import psutil

from bench import ours
from bench.clients import Clients
from bench.figure import Figure, figure
from bench.load import Load, Request, h2load, wrk
from bench.ours import ALIAS, READY, Place, serving
from bench.processes import Running, free_port, started
from bench.speed import say

_OFFERED = 3.0
_CROWDS = 8
_BUSY = 0.8
"""Of its core: a load beyond it does not ask when it was to."""
_PATIENCE = 1.0
"""Seconds that a client waits for an answer in the overload."""
_BUFFERED_MB = 256.0
"""What the server may hold of requests by its own limits, ``HttpLimits.buffered_bytes``."""


def ready(at: Place, quick: bool) -> Iterator[Figure]:
    """``ready_seconds``: from the command to a ready server, one worker a core.

    The package's bytecode is there, as pip leaves it: a checkout that Python may not write to
    (``PYTHONDONTWRITEBYTECODE``) would be compiled at every start.
    """
    compileall.compile_dir(ours.ROOT / "drivetrain", quiet=1)
    seconds: list[float] = []
    workers = len(os.sched_getaffinity(0))
    for _ in range(5 if quick else 15):
        port = free_port()
        with started(ours.command(at, port, workers), at.folder / "ours.log", port) as server:
            seconds.append(server.wait(lambda p=port: ours.status(p, READY) == 200, 30.0, 0.002))
    yield figure("ready_seconds", seconds, "none: a bound", 0.5)


def memory(at: Place, quick: bool) -> Iterator[Figure]:
    """``worker_mb``: resident 2^20 bytes of a server with one worker, after load."""
    sizes: list[float] = []
    for _ in range(2 if quick else 5):
        with serving(at, workers=1) as server:
            wrk(server.url, ours.one_row(), 64, 2)
            wrk(server.url, ours.binary(), 16, 1)
            sizes.append(_resident_mb(server))
    yield figure("worker_mb", sizes, "none: a bound", 110.0)


def _resident_mb(server: Running) -> float:
    return sum(process.memory_info().rss for process in server.tree()) / 2**20


def reload(at: Place, quick: bool) -> Iterator[Figure]:
    """``reload_p99_vs_steady``: seconds over seconds, less is better; a reload every 2 s."""
    rounds, seconds = (3, 6.0) if quick else (5, 20.0)
    ratios: list[float] = []
    try:
        with serving(at) as server:
            wrk(server.url, ours.one_row(), 16, 1)
            for _ in range(rounds):
                steady = wrk(server.url, ours.one_row(), 16, seconds)
                reloads = _Reloads(at, server.port, every=2.0, seconds=seconds)
                moved = wrk(server.url, ours.one_row(), 16, seconds, during=reloads)
                if steady.failed or moved.failed:
                    raise RuntimeError(f"{moved.failed} requests failed beside a reload")
                if not reloads.seen:
                    raise RuntimeError("no reload was seen")
                ratios.append(moved.p99 / steady.p99)
                say(f"reload: p99 {moved.p99 * 1e3:.2f} ms with {reloads.seen} reloads, "
                    f"{steady.p99 * 1e3:.2f} ms without")  # fmt: skip
    finally:
        at.promote(0)
    yield figure("reload_p99_vs_steady", ratios, "itself without reloads", 2.0)


class _Reloads:
    """Moves the alias to and fro while a load runs; ``seen`` are those that took effect."""

    def __init__(self, at: Place, port: int, every: float, seconds: float) -> None:
        self.seen = 0
        self._at, self._port, self._every, self._seconds = at, port, every, seconds
        self._number = 0

    def __call__(self) -> None:
        end = time.monotonic() + self._seconds - self._every / 2
        version = self._version()
        while time.monotonic() < end:
            self._number = 1 - self._number
            self._at.promote(self._number)
            time.sleep(self._every)
            found = self._version()
            self.seen += found != version
            version = found

    def _version(self) -> bytes:
        return ours.get(self._port, f"/v2/models/{ALIAS}")


def poison(at: Place, quick: bool) -> Iterator[Figure]:
    """``poisoned_good_failed``: good requests that failed beside a client of bad ones."""
    failed: list[float] = []
    with serving(at) as server:
        for _ in range(2 if quick else 5):
            with Clients(server.port, ours.poisoned(), 2, pause=0.001) as bad:
                load = wrk(server.url, ours.one_row(), 16, 3)
            if (
                bad.seen.good
                or bad.seen.lost
                or not bad.seen.bad
                or set(bad.seen.answered) != {400}
            ):
                raise RuntimeError(f"poisoned requests were answered {bad.seen}")
            failed.append(load.failed)
            say(f"poison: {load.answered} good answered, {load.failed} failed, "
                f"beside {bad.seen.bad} bad")  # fmt: skip
    yield figure("poisoned_good_failed", failed, "none: a bound", 0.0, max(failed))


def drain(at: Place, quick: bool) -> Iterator[Figure]:
    """``drain_lost``: requests that were sent and had no answer when SIGTERM ended the server."""
    lost: list[float] = []
    for _ in range(3 if quick else 10):
        with serving(at) as server:
            with Clients(server.port, ours.one_row(), 16) as clients:
                time.sleep(0.7)
                server.signal(signal.SIGTERM)
                code = server.wait_end(25.0)
                time.sleep(0.1)
            seen = clients.seen
            if code or not seen.good or not seen.refused:
                raise RuntimeError(f"the server ended with {code}; the clients saw {seen}")
        lost.append(seen.lost + seen.bad)
        say(f"drain: {seen.good} answered, {seen.lost} lost, {seen.bad} refused after acceptance")
    yield figure("drain_lost", lost, "none: a bound", 0.0, max(lost))


def overload(at: Place, quick: bool) -> Iterator[Figure]:
    """``overload_goodput``: answers in time at three times the peak's offered load, over the peak.

    One worker on one core and the load on another, so that what is offered takes nothing from
    what serves; what the load takes of its core is told, and a load that lacks time to ask for
    as much as was meant is none. What the server leaves unread for a while is offered too: it
    waits with its client, who asks for the more afterwards. Of the answers those count that came
    within :data:`_PATIENCE`, by h2load's own log. ``overload_extra_mb`` is what the server's
    memory grew by at most.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        say("left out: overload needs a core for the load and one for the server")
        return
    seconds = 4.0 if quick else 20.0
    request = ours.binary(64)
    shares: list[float] = []
    extra: list[float] = []
    for _ in range(2 if quick else 5):
        with serving(at, workers=1, cores=cores[:1]) as server:
            h2load(server.url, request, 32, 1.0, http1=True, cores=cores[1:])
            peak = h2load(server.url, request, 32, seconds, http1=True, cores=cores[1:])
            before = _resident_mb(server)
            loads = _crowd(server.url, request, seconds, _OFFERED * peak.rps, cores[1:])
            heard = sum(load.answered + load.failed for load in loads) / seconds / peak.rps
            late = sum(load.late for load in loads)
            good = (sum(load.answered for load in loads) - late) / seconds
            cpu = sum(load.cpu for load in loads)
            say(
                f"overload: peak {peak.rps:.0f}/s, then {_OFFERED:g} times as many offered and "
                f"{heard:.2f} times heard, {good:.0f}/s answered in time, {late} late (the load "
                f"took {cpu:.0%} of its core)"
            )
            if cpu > _BUSY:
                raise RuntimeError(f"the load took {cpu:.0%} of its core and may have asked less")
            shares.append(good / peak.rps)
            extra.append(_peak_mb(server) - before)
    yield figure("overload_goodput", shares, "its own peak", 0.9)
    yield figure("overload_extra_mb", extra, "none: a bound", _BUFFERED_MB)


def _crowd(
    url: str, request: Request, seconds: float, rate: float, cores: Sequence[int]
) -> list[Load]:
    """An open load of 1024 connections, whatever the answers take.

    h2load's connections begin together and then ask in step: so several of it, one behind the
    other, or 1024 requests would come in one moment, and then none for as long as they take.
    """

    def one(number: int) -> Load:
        time.sleep(number / _CROWDS * 1024 / rate)
        share = (request, 1024 // _CROWDS, seconds)
        return h2load(
            url, *share, http1=True, rate=rate / _CROWDS, patience=_PATIENCE, cores=cores
        )  # fmt: skip

    with ThreadPoolExecutor(_CROWDS) as pool:
        return list(pool.map(one, range(_CROWDS)))


def _peak_mb(server: Running) -> float:
    """The greatest resident size of its processes so far, together."""
    total = 0.0
    for process in server.tree():
        with open(f"/proc/{process.pid}/status") as file:
            found = dict(line.split(":", 1) for line in file)
        total += int(found["VmHWM"].split()[0]) / 1024
    return total


def kill(at: Place, quick: bool) -> Iterator[Figure]:
    """``kill_worker_succeeded``: the share of requests answered while a worker is killed."""
    shares: list[float] = []
    for _ in range(2 if quick else 5):
        with serving(at, workers=2) as server:
            wrk(server.url, ours.one_row(), 64, 1)
            load = wrk(server.url, ours.one_row(), 64, 8, during=lambda s=server: _kill_one(s))
            if not _until(lambda s=server: len(s.tree()) == 3, 5.0):
                raise RuntimeError("the killed worker has no successor")
        shares.append(load.answered / (load.answered + load.failed))
        say(f"kill: {load.answered} answered, {load.failed} failed")
    yield figure("kill_worker_succeeded", shares, "none: a bound", 0.999, statistics.mean(shares))


def _kill_one(server: Running) -> None:
    time.sleep(3.0)
    psutil.Process(server.tree()[1].pid).kill()


def _until(true: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True
