"""What a training costs while it runs: its speed, its waits, its messages and its memory."""

import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from drivetrain.core.metric import Metric
from drivetrain.train.loop.loop import Loop

_STATM = Path("/proc/self/statm")
_STATUS = Path("/proc/self/status")
_MEGABYTE = 1e6


class Telemetry:
    """Figures since the last time that they were told, none of them the same in two runs.

    ``train/communication_bytes`` and the peaks of memory count from the start of the process.

    They are told by the clock, and seldom: a figure a second shows as much to a person as a
    hundred, and whoever keeps them in a database has as many rows to write.

    Args:
        seconds: between two times.
    """

    def __init__(self, seconds: float = 1.0) -> None:
        self.seconds = seconds
        self._time: float | None = None
        self._rows = 0
        self._starved = 0.0
        self._sent = 0
        self._waited = 0.0

    def begin(self, loop: Loop) -> None:
        """Count from here, if nothing counts yet: what came before was a warm-up."""
        if self._time is None:
            self._from_now(loop, time.perf_counter())

    def _from_now(self, loop: Loop, now: float) -> None:
        self._time, self._rows, self._starved = now, loop.position.rows, loop.starved
        traffic = loop.group.traffic
        self._sent, self._waited = traffic.sent, traffic.waited

    def tell(self, loop: Loop, *, now: bool = False) -> None:
        """Emit the figures, if it is time or ``now`` says so."""
        clock = time.perf_counter()
        if self._time is None or not (now or clock >= self._time + self.seconds):
            return
        for name, value in self._figures(loop, clock - self._time):
            loop.emit(Metric(name=name, value=value, step=loop.step.done, repeatable=False))
        self._from_now(loop, clock)

    def _figures(self, loop: Loop, seconds: float) -> Iterator[tuple[str, float]]:
        rows = loop.position.rows - self._rows
        if rows <= 0 or seconds <= 0:
            return
        yield "train/rows_per_second", rows / seconds
        yield "train/data_wait_share", (loop.starved - self._starved) / seconds
        if loop.group.size > 1:
            traffic = loop.group.traffic
            yield "train/communication_bytes", traffic.sent
            yield "train/communication_bytes_per_second", (traffic.sent - self._sent) / seconds
            yield "train/communication_wait_share", (traffic.waited - self._waited) / seconds
        yield from memory(loop.step.device)


def memory(device: torch.device) -> Iterator[tuple[str, float]]:
    """Megabytes (10⁶ bytes) of this process, and on its GPU: now, and the most so far.

    Args:
        device: whose memory to tell beside the machine's.
    """
    if _STATM.exists():  # Linux alone tells what is held now
        pages = int(_STATM.read_text().split()[1])
        yield "memory/rss_mb", pages * resource.getpagesize() / _MEGABYTE
    yield "memory/rss_peak_mb", _peak() / _MEGABYTE
    if device.type == "cuda":
        yield "memory/device_mb", torch.cuda.memory_allocated(device) / _MEGABYTE
        yield "memory/device_peak_mb", torch.cuda.max_memory_allocated(device) / _MEGABYTE


def _peak() -> int:
    """The most bytes that this process held at once."""
    if _STATUS.exists():  # what started this process may have had more, which getrusage tells
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most * (1 if sys.platform == "darwin" else 1024)
