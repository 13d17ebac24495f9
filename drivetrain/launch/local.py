"""Processes on this machine, as many as the job's resources ask for."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import FrameType

from drivetrain.core.errors import wrong
from drivetrain.core.job import Job


@dataclass(frozen=True, kw_only=True)
class Local:
    """Starts a job's processes side by side, and ends all of them when one fails.

    Each process finds its place in ``RANK``, ``LOCAL_RANK`` and ``WORLD_SIZE``, as torch reads
    them.

    Attributes:
        grace: seconds between asking the others to end and ending them.
    """

    grace: float = 10.0

    def render(self, job: Job) -> str:
        """The processes as lines for a POSIX shell."""
        command = shlex.join(job.command)
        lines = [
            " ".join([*(f"{k}={shlex.quote(v)}" for k, v in environment.items()), command])
            for environment in _environments(job)
        ]
        return "\n".join(lines) + "\n"

    def start(self, job: Job) -> int:
        """Run the job to its end; the first exit status that is not 0, or 0.

        SIGINT and SIGTERM are passed on, so that no process outlives this one.
        """
        children = [
            subprocess.Popen(job.command, env={**os.environ, **environment})
            for environment in _environments(job)
        ]
        with _passing_signals_to(children):
            return self._wait(children)

    def _wait(self, children: list["subprocess.Popen[bytes]"]) -> int:
        running = list(children)
        while running:
            for child in running:
                try:
                    status = child.wait(timeout=0.05)
                except subprocess.TimeoutExpired:
                    continue
                running.remove(child)
                if status != 0:
                    self._end(running)
                    return status if status > 0 else 128 - status
                break
        return 0

    def _end(self, children: list["subprocess.Popen[bytes]"]) -> None:
        for child in children:
            child.terminate()
        for child in children:
            try:
                child.wait(timeout=self.grace)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _environments(job: Job) -> list[Mapping[str, str]]:
    resources = job.resources
    if resources.nodes != 1:
        raise wrong("resources.nodes", resources.nodes, "1 with the launcher 'local'")
    if resources.processes < 1:
        raise wrong("resources.processes", resources.processes, "1 or more")
    threads = {"OMP_NUM_THREADS": str(resources.cpus)} if resources.cpus else {}
    world = str(resources.processes)
    return [
        {
            **job.environment,
            **threads,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": world,
        }
        for rank in range(resources.processes)
    ]


class _passing_signals_to:  # noqa: N801 (reads as what it does in a with statement)
    def __init__(self, children: list["subprocess.Popen[bytes]"]) -> None:
        self._children = children
        self._before: dict[int, object] = {}

    def __enter__(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._pass_on)

    def __exit__(self, *error: object) -> None:
        for number, action in self._before.items():
            signal.signal(number, action)  # pyright: ignore[reportArgumentType]

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        for child in self._children:
            if child.poll() is None:
                child.send_signal(number)


def this_command(*arguments: str) -> tuple[str, ...]:
    """The command line that runs drivetrain in this very environment."""
    return (sys.executable, "-m", "drivetrain.cli", *arguments)
