"""Processes of one job on this machine: how they are started, watched, judged and ended."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

from drivetrain.core.job import LOST

LOSS_SECONDS = 3.0
"""How long after one has failed the others have to fail of it by themselves."""
POLL_SECONDS = 0.05
_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


class Children:
    """The processes of one start; at the end of the block none of them is left.

    Args:
        command: of each.
        environments: what each finds beside this process's own environment.
        grace: seconds between asking processes to end and ending them.

    Attributes:
        processes: in the order of ``environments``.
        late: the places of those that stood still when the others had failed.
    """

    def __init__(
        self,
        command: Sequence[str],
        environments: Sequence[Mapping[str, str]],
        grace: float = 10.0,
    ) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self.late: list[int] = []
        self.grace = grace
        self._command = command
        self._environments = environments
        self._asked: set[int] = set()
        self._failed: float | None = None

    def start(self) -> "Children":
        """Start all of them.

        Raises:
            OSError: the command can't be started; none is left.
        """
        try:
            for environment in self._environments:
                process = subprocess.Popen(
                    self._command,
                    env={**os.environ, **environment},
                    preexec_fn=_end_with(os.getpid()),
                )
                self.processes.append(process)
        except BaseException:
            self.end()
            raise
        return self

    __enter__ = start

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    def send(self, number: int) -> None:
        """Pass a signal on to those that run; one that was stopped goes on, and so hears it."""
        for place, process in enumerate(self.processes):
            if process.poll() is None:
                self._asked.add(place)
                process.send_signal(number)
                process.send_signal(signal.SIGCONT)

    def outcome(self) -> tuple[int, int] | None:
        """The place and status of the one that failed, ``(0, 0)`` if all ended well; None while
        that is not known. When it is known, none of them runs.

        Those that lose their company end by themselves; whose fault it was is told by them.
        """
        statuses = [process.poll() for process in self.processes]
        if all(status == 0 for status in statuses):
            return 0, 0
        if not any(statuses):
            return None
        now = time.monotonic()
        if self._failed is None:
            self._failed = now
        # One that was asked to end may still be writing its checkpoint when the first has ended.
        patience = self.grace if self._asked else min(LOSS_SECONDS, self.grace)
        if None in statuses and not self.stopped and now < self._failed + patience:
            return None
        found = self.fault()
        self.late = [place for place, status in enumerate(statuses) if status is None]
        self.end()
        return found

    def wait(self) -> tuple[int, int]:
        """As :meth:`outcome`, when it is known."""
        while True:
            found = self.outcome()
            if found is not None:
                return found
            time.sleep(POLL_SECONDS)

    def fault(self) -> tuple[int, int]:
        """The place and status of the one that failed, of those that have ended.

        Errors of their own come first, then those that were killed, then those that lost the others
        (some libraries abort when they do), and last whoever ended as it was asked to.
        """

        def order(item: tuple[int, int]) -> int:
            place, status = item
            if place in self._asked and -status in (signal.SIGTERM, signal.SIGINT):
                return 3
            if status in (LOST, -signal.SIGABRT):
                return 2
            return int(status < 0)

        ended = ((place, process.poll()) for place, process in enumerate(self.processes))
        return min(((at, status) for at, status in ended if status), key=order, default=(0, 0))

    @property
    def running(self) -> bool:
        """Whether one of them runs."""
        return any(process.poll() is None for process in self.processes)

    @property
    def stopped(self) -> bool:
        """Whether some run and a signal has stopped all of these: then none ends by itself."""
        running = [process for process in self.processes if process.poll() is None]
        return bool(running) and all(map(_is_stopped, running))

    def kill(self) -> None:
        """End those that run, now."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()

    def end(self, grace: float | None = None) -> None:
        """Ask those that run to end, and end those that do not.

        Args:
            grace: seconds that they have all together; None for this one's own.
        """
        running = [process for process in self.processes if process.poll() is None]
        self.send(signal.SIGTERM)
        last = time.monotonic() + (self.grace if grace is None else grace)
        for process in running:
            try:
                process.wait(timeout=max(last - time.monotonic(), 0.0))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _is_stopped(process: subprocess.Popen[bytes]) -> bool:
    if sys.platform != "linux":
        return False
    # Told again each time that it is asked, until the process goes on.
    asked = os.WSTOPPED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, process.pid, asked) is not None


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


def say(text: str) -> None:
    """Tell whoever watches this process."""
    print(f"drivetrain: {text}", file=sys.stderr, flush=True)
