"""Servers and load as processes of their own: how they start, what they cost, and that they end."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import psutil

_PR_SET_CHILD_SUBREAPER = 36
_spawned: set[int] = set()
"""What this process started itself; a child that is not among them was left behind by one."""


def adopt_orphans() -> None:
    """Make what our processes leave behind our own child, so that :func:`end_all` finds it."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_all() -> None:
    """End every process that this one started, and theirs."""
    _end(psutil.Process().children(recursive=True), seconds=3.0)


def free_port() -> int:
    """A loopback port that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Running:
    """A server with all its processes.

    Attributes:
        pid: of the process that was started.
        port: where it listens, at 127.0.0.1.
        started: ``time.perf_counter()`` just before.
    """

    def __init__(
        self, process: "subprocess.Popen[bytes]", port: int, started: float, log: Path
    ) -> None:
        self.pid = process.pid
        self.port = port
        self.started = started
        self._process = process
        self._log = log

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def ended(self) -> bool:
        """Whether the first process has gone."""
        return self._process.poll() is not None

    def tree(self) -> list[psutil.Process]:
        """The process that was started and all below it."""
        with contextlib.suppress(psutil.NoSuchProcess):
            first = psutil.Process(self.pid)
            return [first, *first.children(recursive=True)]
        return []

    def cpu_seconds(self) -> float:
        """User and system time of all its processes so far."""
        total = 0.0
        for process in self.tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                total += sum(process.cpu_times()[:2])
        return total

    def resident_mb(self) -> float:
        """Megabytes (2^20) of memory, each shared page counted for its share (PSS)."""
        total = 0.0
        for process in self.tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_full_info().pss / 2**20
        return total

    def wait(self, ready: Callable[[], bool], seconds: float, pause: float = 0.02) -> float:
        """Wait until it is ready; gives the seconds since its start.

        Raises:
            RuntimeError: it ended, or was not ready in time.
        """
        while not ready():
            if self.ended:
                raise RuntimeError(f"ended with {self._process.returncode}; {self._printed()}")
            if time.perf_counter() - self.started > seconds:
                raise RuntimeError(f"not ready within {seconds:g} s; {self._printed()}")
            time.sleep(pause)
        return time.perf_counter() - self.started

    def _printed(self) -> str:
        return f"it printed: {self._log.read_text(errors='replace')[-800:].strip()}"

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process that was started."""
        self._process.send_signal(number)

    def wait_end(self, seconds: float) -> int:
        """Its exit status.

        Raises:
            subprocess.TimeoutExpired: it did not end.
        """
        return self._process.wait(seconds)


@contextlib.contextmanager
def started(
    command: Sequence[str],
    log: Path,
    port: int,
    env: Mapping[str, str] | None = None,
    cores: Sequence[int] | None = None,
) -> Iterator[Running]:
    """Run a server in its own process group while the block runs; all it started ends with it.

    Args:
        command: its command line.
        log: takes what it prints.
        port: where it will listen.
        env: further variables.
        cores: the cores that it may use; None is all of them.
    """
    if cores is not None:
        command = ["taskset", "-c", ",".join(map(str, cores)), *command]
    with log.open("ab") as file:
        begin = time.perf_counter()
        process = spawn(command, stdout=file, stderr=file, env=env, cwd=log.parent)
    running = Running(process, port, begin, log)
    try:
        yield running
    finally:
        tree = running.tree()
        if not running.ended:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
        orphans = [p for p in psutil.Process().children() if p.pid not in _spawned]
        below = [child for orphan in orphans for child in orphan.children(recursive=True)]
        _end([*tree, *orphans, *below], seconds=3.0)
        process.poll()


def spawn(
    command: Sequence[str],
    *,
    stdout: int | IO[bytes],
    stderr: int | IO[bytes],
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> "subprocess.Popen[bytes]":
    """Start a process in a session of its own: Ctrl-C is this process's, which then ends it."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        env={**os.environ, **(env or {})},
        cwd=cwd,
        start_new_session=True,
    )
    _spawned.add(process.pid)
    return process


def _end(processes: Sequence[psutil.Process], seconds: float) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=seconds)
