"""Processes on this machine, as many as the job's resources ask for."""

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import FrameType

from drivetrain.core.errors import wrong
from drivetrain.core.job import LOST, Job

STEADY_SECONDS = 60.0
_POLL_SECONDS = 0.05
_LOSS_SECONDS = 3.0


@dataclass(frozen=True, kw_only=True)
class Local:
    """Starts a job's processes side by side, and ends all of them when one fails.

    Each process finds its place in ``RANK``, ``LOCAL_RANK`` and ``WORLD_SIZE``, as torch reads
    them. They meet at a free port of this machine, which is ``MASTER_PORT``.

    Attributes:
        grace: seconds between asking the others to end and ending them.
        restarts: how often in a row all are started anew when one was killed or lost the others; a
            process that ends because of an error of its own ends the job. Processes that worked
            for :data:`STEADY_SECONDS` begin a new row.
    """

    grace: float = 10.0
    restarts: int = 0

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

        SIGINT and SIGTERM are passed on, so that no process outlives this one.
        """
        left = self.restarts
        while True:
            began = time.monotonic()
            children = [
                subprocess.Popen(job.command, env={**os.environ, **environment})
                for environment in _environments(job, str(_free_port()))
            ]
            with _passing_signals_to(children) as signals:
                rank, status = self._wait(children)
            if (status >= 0 and status != LOST) or signals.passed:
                return status if status >= 0 else 128 - status
            if time.monotonic() - began >= STEADY_SECONDS:
                left = self.restarts
            if not left:
                return status if status >= 0 else 128 - status
            left -= 1
            how = f"was ended by signal {-status}" if status < 0 else "lost the others"
            print(
                f"drivetrain: rank {rank} {how}; all {len(children)} start anew from the last "
                f"checkpoint ({left} restarts left)",
                file=sys.stderr,
                flush=True,
            )

    def _wait(self, children: list["subprocess.Popen[bytes]"]) -> tuple[int, int]:
        """Wait for the end of all; the rank and status of the one that failed, or ``(0, 0)``."""
        while not any(child.poll() for child in children):
            if all(child.returncode == 0 for child in children):
                return 0, 0
            time.sleep(_POLL_SECONDS)
        # Those that lose their company end by themselves; whose fault it was is told by them.
        end = time.monotonic() + min(_LOSS_SECONDS, self.grace)
        while time.monotonic() < end and any(child.poll() is None for child in children):
            time.sleep(_POLL_SECONDS)
        ended = {rank: child.poll() for rank, child in enumerate(children)}
        self._end([child for child in children if child.returncode is None])
        failed = {rank: status for rank, status in ended.items() if status}
        return min(failed.items(), key=lambda item: _fault(item[1]))

    def _end(self, children: list["subprocess.Popen[bytes]"]) -> None:
        for child in children:
            child.terminate()
        for child in children:
            try:
                child.wait(timeout=self.grace)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _fault(status: int) -> int:
    """Errors of their own first, then those that were killed, then those that lost the others."""
    if status == LOST:
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
        {
            **job.environment,
            **threads,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            **world,
        }
        for rank in range(resources.processes)
    ]


class _passing_signals_to:  # noqa: N801 (reads as what it does in a with statement)
    def __init__(self, children: list["subprocess.Popen[bytes]"]) -> None:
        self.passed = False
        self._children = children
        self._before: dict[int, object] = {}

    def __enter__(self) -> "_passing_signals_to":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._pass_on)
        return self

    def __exit__(self, *error: object) -> None:
        for number, action in self._before.items():
            signal.signal(number, action)  # pyright: ignore[reportArgumentType]

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.passed = True
        for child in self._children:
            if child.poll() is None:
                child.send_signal(number)


def this_command(*arguments: str) -> tuple[str, ...]:
    """The command line that runs drivetrain in this very environment."""
    return (sys.executable, "-m", "drivetrain.cli", *arguments)
