"""The engine that reads a source's own batches: for every source, in memory of one batch."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from drivetrain.core.metric import Emit, Metric, Progress, silent
from drivetrain.core.seams import Source
from drivetrain.core.statistic import Statistic

if TYPE_CHECKING:
    from drivetrain.core.batch import Batch
    from drivetrain.core.measured import Fitted


@dataclass(frozen=True)
class Streaming:
    """Computes statistics from ``source.batches("train")``, one batch in memory at a time."""

    def aggregate(
        self, source: Source, statistics: Sequence[Statistic], emit: Emit = silent
    ) -> "Fitted":
        """The value of each statistic over the split ``train``, in one pass.

        Raises:
            ValueError: a statistic names a column that is absent or of a wrong type.
        """
        from drivetrain.features.engines.accumulate import accumulate, check

        check(statistics, source.schema)
        began = time.perf_counter()
        seen = _Seen(source, emit)
        fitted = accumulate(statistics, seen.batches()) if statistics else {}
        report(emit, time.perf_counter() - began, seen.rows)
        return fitted


class _Seen:
    """A source's training batches, counted as they pass."""

    def __init__(self, source: Source, emit: Emit) -> None:
        self._source = source
        self._emit = emit
        self.rows = 0

    def batches(self) -> "Iterator[Batch]":
        for batch in self._source.batches("train"):
            self.rows += len(batch)
            yield batch
            self._emit(Progress(stage="features", done=self.rows))


def report(emit: Emit, seconds: float, rows: int) -> None:
    """Emit what a fit took: seconds, rows and rows a second."""
    emit(Metric(name="features/train_rows", value=rows))
    emit(Metric(name="features/fit_seconds", value=seconds, repeatable=False))
    if seconds > 0 and rows:
        emit(Metric(name="features/fit_rows_per_s", value=rows / seconds, repeatable=False))
