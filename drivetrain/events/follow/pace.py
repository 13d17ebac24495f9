"""How a stream goes: what it counts, and the file from which others see it."""

import json
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from drivetrain.core.batch import Array
from drivetrain.core.metric import Emit, Metric, Progress

OVER = 10.0
"""Seconds over which rates and latencies are taken."""

SAMPLED = 256
"""Messages of a batch whose latency is taken, evenly."""

STATUS = "status.json"


@dataclass
class Pace:
    """Counts what a stream has done since it was started.

    Attributes:
        name: the stream's.
        topic: that it reads.
        emit: hears each batch.
        path: the file that others look at; a look is never torn.
        kept: gives how many keys windows keep in this process, and their bytes; None: none do.
    """

    name: str
    topic: str
    emit: Emit
    path: Path
    messages: int = 0
    rows: int = 0
    dead: int = 0
    commits: int = 0
    version: int | None = None
    problem: str | None = None
    kept: Callable[[], tuple[int, int]] | None = None
    _recent: deque[tuple[float, int, int, Array]] = field(
        default_factory=deque[tuple[float, int, int, Array]]
    )

    def batch(self, messages: int, rows: int, dead: int, version: int, times: Array) -> None:
        """Count a batch that is committed.

        Args:
            messages: of the batch.
            rows: that they became.
            dead: messages among them that did not fit.
            version: of the table.
            times: the messages' own clock, in microseconds; -1 where there is none.
        """
        self.messages += messages
        self.rows += rows
        self.dead += dead
        self.commits += 1
        self.version = version
        now = time.time()
        seen = times[:: max(len(times) // SAMPLED, 1)]
        self._recent.append((now, messages, rows, now * 1e3 - seen[seen >= 0] / 1e3))
        self.emit(Progress(stage="stream", done=self.messages, unit="messages"))
        found = self._latency()
        for name, value in (("latency_p99_ms", found["p99"]), ("dead_letters", self.dead)):
            if value is not None:
                step = self.commits
                metric = Metric(name=f"stream/{name}", value=value, step=step, repeatable=False)
                self.emit(metric)

    @contextmanager
    def beginning(self) -> Generator[None]:
        """Let others see why a run could not even begin."""
        try:
            yield
        except InterruptedError:  # asked to end, which is no problem
            raise
        except Exception as error:
            self.problem = str(error)
            self.look({}, {}, ended=True)
            raise

    def look(self, positions: Mapping[int, int], lag: Mapping[int, int], *, ended: bool) -> None:
        """Let others see how it goes."""
        now = time.time()
        while self._recent and now - self._recent[0][0] > OVER:
            self._recent.popleft()
        seconds = now - self._recent[0][0] if len(self._recent) > 1 else 0.0
        of_rate = list(self._recent)[1:]  # what was counted since the first one
        rate = sum(rows for _, _, rows, _ in of_rate) / seconds if seconds > 0 else 0.0
        found: dict[str, Any] = {
            "at": now,
            "name": self.name,
            "topic": self.topic,
            "pid": os.getpid(),
            "ended": ended,
            "messages": self.messages,
            "rows": self.rows,
            "dead_letters": self.dead,
            "commits": self.commits,
            "version": self.version,
            "rows_per_s": rate,
            "lag": sum(lag.values()) if positions and len(lag) == len(positions) else None,
            "latency_ms": self._latency(),
            "positions": {str(partition): at for partition, at in positions.items()},
            "lags": {str(partition): behind for partition, behind in lag.items()},
            "problem": self.problem,
        }
        if self.kept is not None:
            found["window_keys"], found["window_bytes"] = self.kept()
        new = self.path.with_suffix(".new")  # no need to last longer than the machine runs
        new.write_text(json.dumps(found))
        new.replace(self.path)

    def _latency(self) -> dict[str, float | None]:
        recent = list(self._recent)  # in one go: on Spark batches are counted in another thread
        every = [found for *_, found in recent if len(found)]
        if not every:
            return {"p50": None, "p99": None}
        p50, p99 = np.percentile(np.concatenate(every), (50, 99))
        return {"p50": float(p50), "p99": float(p99)}
