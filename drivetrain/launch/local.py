"""Processes on this machine, as many as the job's resources ask for."""

import shlex
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any

from drivetrain.core.errors import wrong
from drivetrain.core.job import LOST, Job
from drivetrain.launch.children import Children, say

STEADY_SECONDS = 60.0


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
            with _Signals(self.sizes) as signals:
                environments = _environments(job, str(free_port()))
                with Children(job.command, environments, self.grace) as children:
                    signals.reach(children)
                    rank, status = children.wait()
                    if children.late and status == LOST and not signals.passed:
                        late = ", ".join(map(str, children.late))
                        say(f"rank {late} stood still when the others had ended")
            ended = status in (0, LOST) or status < 0
            if signals.wanted is not None and not signals.passed and ended:
                if status == 0:  # they were done before they heard of it
                    return 0
                job = replace(job, resources=replace(job.resources, processes=signals.wanted))
                say(f"{signals.wanted} processes go on from the last checkpoint")
                continue
            if signals.passed or (status >= 0 and status != LOST):
                return status if status >= 0 else 128 - status
            if time.monotonic() - began >= STEADY_SECONDS:
                left = self.restarts
            if not left:
                return status if status >= 0 else 128 - status
            left -= 1
            how = f"was ended by signal {-status}" if status < 0 else "lost the others"
            say(
                f"rank {rank} {how}; all {job.resources.processes} start anew from the last "
                f"checkpoint ({left} restarts left)"
            )


class _Signals:
    """What reaches the launcher during one start, and is passed on to its processes.

    Attributes:
        passed: the job was asked to end.
        wanted: how many processes there shall be instead; None for as many.
    """

    def __init__(self, sizes: Callable[[], int] | None) -> None:
        self.passed = False
        self.wanted: int | None = None
        self._sizes = sizes
        self._children: Children | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_Signals":
        # The handlers come first: a signal between two starts must reach those that run.
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._pass_on)
        if self._sizes is not None:
            self._before[signal.SIGHUP] = signal.signal(signal.SIGHUP, self._resize)
        return self

    def __exit__(self, *error: object) -> None:
        for number, action in self._before.items():
            signal.signal(number, action)

    def reach(self, children: Children) -> None:
        """Pass on what comes from now on, and what came while they were started."""
        self._children = children
        if self.passed or self.wanted is not None:
            children.send(signal.SIGTERM)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self.passed = True
        if self._children is not None:
            self._children.send(number)

    def _resize(self, number: int, frame: FrameType | None) -> None:
        assert self._sizes is not None
        now = 0 if self._children is None else len(self._children.processes)
        try:
            size = self._sizes()
        except (ValueError, OSError) as error:
            say(f"the number of processes stays {now}: {error}")
            return
        if size != now and size > 0:
            self.wanted = size
            if self._children is not None:
                self._children.send(signal.SIGTERM)


def free_port() -> int:
    """A port of this machine that nobody listens at."""
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
