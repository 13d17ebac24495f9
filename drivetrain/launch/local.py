"""Processes on this machine, as many as the job's resources ask for."""

import ctypes
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

from drivetrain.core.errors import wrong
from drivetrain.core.job import LOST, Job

STEADY_SECONDS = 60.0
_POLL_SECONDS = 0.05
_LOSS_SECONDS = 3.0
_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


@dataclass(frozen=True, kw_only=True)
class Local:
    """Starts a job's processes side by side, and ends all of them when one fails.

    Each process finds its place in ``RANK``, ``LOCAL_RANK`` and ``WORLD_SIZE``, as torch reads
    them; several meet at ``MASTER_PORT``, a free one of this machine.

    Attributes:
        grace: seconds between asking processes to end and ending them.
        restarts: how often in a row all are started anew when one was killed or lost the others; a
            process that ends because of an error of its own ends the job. Processes that worked
            for :data:`STEADY_SECONDS` begin a new row.
        sizes: asked on SIGHUP how many processes there shall be; if it is another number than now,
            those that run are asked to end, which a training does behind a checkpoint, and so many
            go on. None leaves SIGHUP alone.
    """

    grace: float = 10.0
    restarts: int = 0
    sizes: Callable[[], int] | None = None

    def render(self, job: Job) -> str:
        """The processes as lines for a POSIX shell."""
        command = shlex.join(job.command)
        lines = [
            " ".join([*(f"{k}={shlex.quote(v)}" for k, v in environment.items()), command])
            for environment in _environments(job, "$MASTER_PORT")
        ]
        return "\n".join(lines).replace("'$MASTER_PORT'", '"$MASTER_PORT"') + "\n"

    def start(self, job: Job) -> int:
        """Run the job to its end; 0, or the exit status of the process that failed.

        SIGINT and SIGTERM are passed on, so that no process outlives this one; when this one is
        killed, the kernel sends them SIGTERM (on Linux).
        """
        left = self.restarts
        while True:
            began = time.monotonic()
            with _Children(job, self.sizes) as children:
                rank, status = self._wait(children)
            if children.wanted is not None and (status in (0, LOST) or status < 0):
                if status == 0:  # they were done before they heard of it
                    return 0
                job = replace(job, resources=replace(job.resources, processes=children.wanted))
                _say(f"{children.wanted} processes go on from the last checkpoint")
                continue
            if children.passed or (status >= 0 and status != LOST):
                return status if status >= 0 else 128 - status
            if time.monotonic() - began >= STEADY_SECONDS:
                left = self.restarts
            if not left:
                return status if status >= 0 else 128 - status
            left -= 1
            how = f"was ended by signal {-status}" if status < 0 else "lost the others"
            _say(
                f"rank {rank} {how}; all {job.resources.processes} start anew from the last "
                f"checkpoint ({left} restarts left)"
            )

    def _wait(self, children: "_Children") -> tuple[int, int]:
        """Wait for the end of all; the rank and status of the one that failed, or ``(0, 0)``."""
        processes = children.processes
        while not any(process.poll() for process in processes):
            if all(process.returncode == 0 for process in processes):
                return 0, 0
            time.sleep(_POLL_SECONDS)
        # Those that lose their company end by themselves; whose fault it was is told by them.
        end = time.monotonic() + min(_LOSS_SECONDS, self.grace)
        while time.monotonic() < end and any(process.poll() is None for process in processes):
            time.sleep(_POLL_SECONDS)
        ended = {rank: process.poll() for rank, process in enumerate(processes)}
        self._end([process for process in processes if process.returncode is None])
        failed = {rank: status for rank, status in ended.items() if status}
        return min(failed.items(), key=lambda item: _fault(item[1]))

    def _end(self, processes: list["subprocess.Popen[bytes]"]) -> None:
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(timeout=self.grace)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class _Children:
    """The processes of one start, and the signals that are passed on to them.

    Attributes:
        processes: by rank.
        passed: the job was asked to end.
        wanted: how many processes there shall be instead; None for as many.
    """

    def __init__(self, job: Job, sizes: Callable[[], int] | None) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self.passed = False
        self.wanted: int | None = None
        self._job = job
        self._sizes = sizes
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_Children":
        # The handlers come first: a signal between two starts must reach those that run.
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._pass_on)
        if self._sizes is not None:
            self._before[signal.SIGHUP] = signal.signal(signal.SIGHUP, self._resize)
        for environment in _environments(self._job, str(_free_port())):
            process = subprocess.Popen(
                self._job.command,
                env={**os.environ, **environment},
                preexec_fn=_end_with(os.getpid()),
            )
            self.processes.append(process)
        if self.passed:
            self._send(signal.SIGTERM)
        return self

    def __exit__(self, *error: object) -> None:
        for number, action in self._before.items():
            signal.signal(number, action)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.passed = True
        self._send(number)

    def _resize(self, number: int, frame: FrameType | None) -> None:
        assert self._sizes is not None
        try:
            size = self._sizes()
        except (ValueError, OSError) as error:
            _say(f"the number of processes stays {len(self.processes)}: {error}")
            return
        if size != len(self.processes) and size > 0:
            self.wanted = size
            self._send(signal.SIGTERM)

    def _send(self, number: int) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)


def _end_with(parent: int) -> Callable[[], None] | None:
    """What lets a child be told when its parent ends, however that comes."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)

    def ask() -> None:
        libc.prctl(_SET_DEATH_SIGNAL, signal.SIGTERM)
        if os.getppid() != parent:  # it ended before the kernel was asked
            os.kill(os.getpid(), signal.SIGTERM)

    return ask


def _say(text: str) -> None:
    print(f"drivetrain: {text}", file=sys.stderr, flush=True)


def _fault(status: int) -> int:
    """Errors of their own first, then those that were killed, then those that lost the others;
    some libraries abort when they do."""
    if status in (LOST, -signal.SIGABRT):
        return 2
    return int(status < 0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _environments(job: Job, port: str) -> list[Mapping[str, str]]:
    resources = job.resources
    if resources.nodes != 1:
        raise wrong("resources.nodes", resources.nodes, "1 with the launcher 'local'")
    if resources.processes < 1:
        raise wrong("resources.processes", resources.processes, "1 or more")
    threads = {"OMP_NUM_THREADS": str(resources.cpus)} if resources.cpus else {}
    world = {"WORLD_SIZE": str(resources.processes)}
    if resources.processes > 1:
        world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        {**job.environment, **threads, "RANK": str(rank), "LOCAL_RANK": str(rank), **world}
        for rank in range(resources.processes)
    ]


def this_command(*arguments: str) -> tuple[str, ...]:
    """The command line that runs drivetrain in this very environment."""
    return (sys.executable, "-m", "drivetrain.cli", *arguments)
