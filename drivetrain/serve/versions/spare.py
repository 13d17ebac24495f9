"""How busy the other threads of a process are: whether there is time for what nobody waits for."""

import os
import threading
import time
from pathlib import Path

_TASKS = Path("/proc/self/task")


class Spare:
    """Watches every thread of this process but the one that asks.

    A thread's demand is the share of the time in which it computed or waited for a core: a loop
    that is behind has a demand near 1 however few cores are left to it, and one that waits for
    requests has none. Linux tells both (Documentation/scheduler/sched-stats); elsewhere what all
    threads computed together stands for it.
    """

    def __init__(self) -> None:
        self._looked = time.perf_counter()
        self._seen = _demands()

    def busiest(self) -> float:
        """The demand of the busiest other thread since this was last asked, 0 to about 1."""
        now, demands = time.perf_counter(), _demands()
        seconds = max(now - self._looked, 1e-9)
        own = threading.get_native_id()
        grown = [
            seen - self._seen.get(thread, 0.0) for thread, seen in demands.items() if thread != own
        ]
        self._looked, self._seen = now, demands
        return max(grown, default=0.0) / seconds


def _demands() -> dict[int, float]:
    """Seconds for which each thread has computed or waited for a core, by its identity."""
    found: dict[int, float] = {}
    try:
        for thread in os.listdir(_TASKS):
            try:
                computed, waited, _ = (_TASKS / thread / "schedstat").read_bytes().split()
            except FileNotFoundError:  # it ended meanwhile
                continue
            found[int(thread)] = (int(computed) + int(waited)) / 1e9
    except (OSError, ValueError):  # a system that does not tell
        return {0: time.process_time() - time.thread_time()}
    return found
