"""What a pass cost and what it gained: size, difference of predictions, latency."""

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from drivetrain.core.metric import Metric

if TYPE_CHECKING:
    from drivetrain.core.batch import Array, Batch
    from drivetrain.core.graph import Graph, Session

SIZES = (1, 64)
ROUNDS = 15
SECONDS = 0.01  # one round of one graph at one size: long enough for the clock, short for a person


def compare(
    before: "Graph", after: "Graph", batches: Iterable["Batch"], name: str = "compress"
) -> Sequence[Metric]:
    """Metrics of a pass, named ``{name}/…``.

    ``before_bytes``, ``after_bytes``; ``max_abs_difference`` and ``mean_abs_difference`` over
    the float predictions, ``changed_share`` over the others; and, not repeatable,
    ``{before,after}_batch{1,64}_ms``: the median over rounds in which the two graphs take turns
    on one thread, so that whatever else the machine does falls on both.

    Args:
        before: the graph that the pass was given.
        after: the graph that it made.
        batches: raw rows; those of the first non-empty batch are timed.
        name: in front of each metric, such as the pass's own.

    Raises:
        ValueError: there are no rows, or the two graphs answer different things.
    """
    if before.outputs != after.outputs:
        raise ValueError(f"compare: found outputs {after.outputs}, allowed: {before.outputs}.")
    sessions = (before.session(1), after.session(1))
    sample: Batch | None = None
    tally = _Tally()
    for batch in batches:
        if len(batch):
            sample = batch if sample is None else sample
            tally.add(*(session.run(batch) for session in sessions))
    if sample is None:
        raise ValueError("compare: found 0 rows, allowed: 1 or more.")
    sizes = {"before_bytes": len(before.model), "after_bytes": len(after.model)}
    figures = [Metric(name=f"{name}/{key}", value=value) for key, value in sizes.items()]
    figures += [Metric(name=f"{name}/{key}", value=v) for key, v in tally.figures().items()]
    for size in SIZES:
        for when, value in zip(("before", "after"), latency(sessions, sample, size), strict=True):
            key = f"{name}/{when}_batch{size}_ms"
            figures.append(Metric(name=key, value=value, repeatable=False))
    return figures


class _Tally:
    """Sums over batches of how far two answers are apart."""

    def __init__(self) -> None:
        self.largest, self.total, self.numbers = 0.0, 0.0, 0
        self.changed, self.others = 0, 0

    def add(self, left: "Batch", right: "Batch") -> None:
        for name in left.columns:
            a, b = left[name], right[name]
            if a.dtype.kind == "f":
                difference = _difference(a, b)
                self.largest = max(self.largest, float(difference.max(initial=0.0)))
                self.total += float(difference.sum())
                self.numbers += difference.size
            else:
                self.changed += int((a != b).sum())
                self.others += a.size

    def figures(self) -> dict[str, float]:
        found: dict[str, float] = {}
        if self.numbers:
            found["max_abs_difference"] = self.largest
            found["mean_abs_difference"] = self.total / self.numbers
        if self.others:
            found["changed_share"] = self.changed / self.others
        return found


def _difference(a: "Array", b: "Array") -> "Array":
    """Absolute differences; nothing where both are the same or no number, infinite where one is."""
    import numpy as np

    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        apart = np.abs(a.astype(np.float64) - b.astype(np.float64))
    return np.where(same, 0.0, np.where(np.isnan(apart), np.inf, apart))


def latency(sessions: "Sequence[Session]", sample: "Batch", size: int) -> list[float]:
    """Median milliseconds of one run over ``size`` rows, for each session; they take turns."""
    import numpy as np

    from drivetrain.core.batch import feed

    rows = sample.take(np.arange(size) % len(sample))
    feeds = [{name: feed(rows, name, shape) for name, shape in s.inputs} for s in sessions]
    outputs = [session.outputs.names for session in sessions]
    repeats = 1
    for session, fed, names in zip(sessions, feeds, outputs, strict=True):
        session.raw(fed, names)  # the first run allocates
        start = time.perf_counter()
        session.raw(fed, names)
        repeats = max(repeats, int(SECONDS / max(time.perf_counter() - start, 1e-6)))
    seconds: list[list[float]] = [[] for _ in sessions]
    for _ in range(ROUNDS):
        for took, session, fed, names in zip(seconds, sessions, feeds, outputs, strict=True):
            start = time.perf_counter()
            for _ in range(repeats):
                session.raw(fed, names)
            took.append((time.perf_counter() - start) / repeats)
    return [float(np.median(took)) * 1e3 for took in seconds]
