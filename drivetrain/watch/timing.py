"""Times a bundle's graph on real rows."""

import time
from collections.abc import Sequence

import numpy as np

from drivetrain.core.batch import Batch, feed
from drivetrain.core.bundle import Bundle
from drivetrain.core.metric import Metric

GROUPS = 64
"""Groups of rows that are timed in turn, so that no single row's cost is all that is seen."""
ENOUGH = 100
"""Timed runs without which a 99th percentile says nothing."""


class Timing:
    """Collects rows, then times the graph over them."""

    outputs: Sequence[str] = ()

    def __init__(
        self,
        bundle: Bundle,
        rows: int,
        repeats: int,
        seconds: float,
        p50_ms: float | None,
        p99_ms: float | None,
    ) -> None:
        self._bundle = bundle
        self._rows = rows
        self._repeats = repeats
        self._seconds = seconds
        self._bounds = {"latency/p50_ms": p50_ms, "latency/p99_ms": p99_ms}
        self._held: list[Batch] = []
        self._count = 0

    def add(self, batch: Batch, predictions: Batch) -> None:
        """Keep rows until there are enough."""
        wanted = self._rows * GROUPS - self._count
        if wanted > 0:
            rows = np.arange(min(wanted, len(batch)))
            self._held.append(batch.select(self._bundle.manifest.inputs.names).take(rows))
            self._count += len(rows)

    def finish(self) -> Sequence[Metric]:
        """Run and report the percentiles."""
        times = self._times()
        values = np.percentile(times, (50, 99)).tolist() if times else [float("nan")] * 2
        return [
            Metric(name=name, value=value, at_most=bound, repeatable=False)
            for (name, bound), value in zip(self._bounds.items(), values, strict=True)
        ]

    def _times(self) -> list[float]:
        """Milliseconds of each run."""
        if not self._count:
            return []
        every = Batch.concat(self._held)
        groups = max(self._count // self._rows, 1)
        session = self._bundle.graph.session(threads=1)
        names = list(self._bundle.manifest.outputs.names)
        feeds: list[dict[str, object]] = []
        for group in range(groups):
            start = group * self._rows
            at = np.arange(start, start + self._rows) % self._count  # few rows: some go twice
            part = every.take(at)
            feeds.append({name: feed(part, name, shape) for name, shape in session.inputs})
        for run in range(max(self._repeats // 10, 1)):
            session.raw(feeds[run % groups], names)
        times: list[float] = []
        stop = time.perf_counter() + self._seconds
        for run in range(self._repeats):
            begin = time.perf_counter()
            session.raw(feeds[run % groups], names)
            end = time.perf_counter()
            times.append((end - begin) * 1000)
            if end > stop and run + 1 >= ENOUGH:
                break
        return times
