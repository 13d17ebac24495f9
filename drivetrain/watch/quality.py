"""Measurements that compare predictions with targets: ranking, likelihood, calibration, error."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np

from drivetrain.core.batch import Array, Batch
from drivetrain.core.errors import wrong
from drivetrain.core.measured import as_numbers
from drivetrain.core.metric import Metric

Figure = Callable[[float], Metric]
"""Gives a value its name and its bound."""


class Comparison(ABC):
    """Shows a subclass the scores and the targets of the rows whose target is known."""

    def __init__(self, target: str, output: str, figure: Figure) -> None:
        self._target = target
        self._output = output
        self._figure = figure

    @property
    def outputs(self) -> Sequence[str]:
        """The prediction that is compared."""
        return (self._output,)

    def add(self, batch: Batch, predictions: Batch) -> None:
        """Compare the rows that have a target."""
        column = batch.column(self._target)
        if not isinstance(column, np.ndarray) or column.dtype == object:
            raise wrong(f"target {self._target!r}", "strings", "numbers")
        truth = as_numbers(column)
        scores = predictions[self._output]
        if scores.ndim == 2 and scores.shape[1] == 1:
            scores = scores[:, 0]
        if scores.ndim not in (1, 2) or len(truth) != len(scores):
            shape = scores.shape
            raise wrong(f"output {self._output!r}", shape, f"one or more scores for {len(truth)}")
        known = np.isfinite(truth)
        if not known.all():
            truth, scores = truth[known], scores[known]
        if len(truth):
            self.compare(scores, truth)

    def finish(self) -> Sequence[Metric]:
        """The one metric."""
        return (self._figure(self.value()),)

    @abstractmethod
    def compare(self, scores: Array, truth: Array) -> None:
        """Take scores ``[rows]`` or ``[rows, classes]`` and float64 targets ``[rows]``."""

    @abstractmethod
    def value(self) -> float:
        """The figure; NaN where the rows do not define it."""

    def labels(self, truth: Array, classes: int) -> Array:
        """Targets as class numbers.

        Raises:
            ValueError: a target is no class number.
        """
        whole = truth.astype(np.int64)
        bad = (whole != truth) | (whole < 0) | (whole >= classes)
        if bad.any():
            allowed = f"whole numbers from 0 to {classes - 1}"
            raise wrong(f"target {self._target!r}", float(truth[bad][0]), allowed)
        return whole


class Ranking(Comparison):
    """The exact area under the ROC curve."""

    def __init__(self, target: str, output: str, figure: Figure) -> None:
        super().__init__(target, output, figure)
        self._scores: list[Array] = []
        self._labels: list[Array] = []

    def compare(self, scores: Array, truth: Array) -> None:
        """Keep the score of class 1 and the label."""
        if scores.ndim == 2:
            if scores.shape[1] != 2:
                raise wrong(f"output {self._output!r}", scores.shape, "one score a row, or two")
            scores = scores[:, 1]
        self._labels.append(self.labels(truth, 2).astype(bool))
        self._scores.append(scores.copy())  # not a view that would hold on to the whole batch

    def value(self) -> float:
        """The share of pairs in order."""
        if not self._scores:
            return float("nan")
        return auc(np.concatenate(self._scores), np.concatenate(self._labels))


def auc(scores: Array, labels: Array) -> float:
    """Area under the ROC curve: P(score of a one > score of a zero) + half P(equal).

    Exact: pairs are counted in whole numbers. NaN with one label only, or with a score that is
    NaN.

    Args:
        scores: float ``[rows]``.
        labels: bool ``[rows]``.
    """
    ones = int(labels.sum())
    zeros = len(labels) - ones
    if not ones or not zeros or np.isnan(scores).any():
        return float("nan")
    order = np.argsort(scores)
    scores, labels = scores[order], labels[order]
    last = np.append(np.flatnonzero(scores[1:] != scores[:-1]), len(scores) - 1)  # of each tie
    ones_below = np.cumsum(labels, dtype=np.int64)[last]
    zeros_below = last + 1 - ones_below
    tied_ones = np.diff(ones_below, prepend=0)
    tied_zeros = np.diff(zeros_below, prepend=0)
    twice = int((tied_ones * (2 * zeros_below - tied_zeros)).sum())
    return twice / (2 * ones * zeros)


class LogLikelihood(Comparison):
    """The mean negative log-likelihood."""

    def __init__(self, target: str, output: str, figure: Figure) -> None:
        super().__init__(target, output, figure)
        self._sum = 0.0
        self._rows = 0

    def compare(self, scores: Array, truth: Array) -> None:
        """Sum -log of the probability that the target was given."""
        if not np.issubdtype(scores.dtype, np.floating):
            raise wrong(f"output {self._output!r}", str(scores.dtype), "probabilities")
        if scores.size and (scores.min() < 0 or scores.max() > 1):
            found = float(scores.min() if scores.min() < 0 else scores.max())
            raise wrong(f"output {self._output!r}", found, "probabilities from 0 to 1")
        epsilon = np.finfo(scores.dtype).eps
        clipped = np.clip(scores, epsilon, 1 - epsilon).astype(np.float64)
        if scores.ndim == 2:
            at = self.labels(truth, scores.shape[1])
            given = clipped[np.arange(len(at)), at] / clipped.sum(axis=1)
        else:
            ones = self.labels(truth, 2).astype(bool)
            given = np.where(ones, clipped, 1 - clipped)
        self._sum -= float(np.log(given).sum())
        self._rows += len(truth)

    def value(self) -> float:
        """The mean, in nats."""
        return self._sum / self._rows if self._rows else float("nan")


class Hits(Comparison):
    """The share of right answers."""

    def __init__(self, target: str, output: str, figure: Figure, threshold: float) -> None:
        super().__init__(target, output, figure)
        self._threshold = threshold
        self._hits = 0
        self._rows = 0

    def compare(self, scores: Array, truth: Array) -> None:
        """Count answers that are the target."""
        if scores.ndim == 2:
            answer = scores.argmax(axis=1)
            truth = self.labels(truth, scores.shape[1])
        else:
            answer = scores >= self._threshold
            truth = self.labels(truth, 2)
        self._hits += int((answer == truth).sum())
        self._rows += len(truth)

    def value(self) -> float:
        """The share."""
        return self._hits / self._rows if self._rows else float("nan")


class SquaredError(Comparison):
    """The root mean square error."""

    def __init__(self, target: str, output: str, figure: Figure) -> None:
        super().__init__(target, output, figure)
        self._sum = 0.0
        self._rows = 0

    def compare(self, scores: Array, truth: Array) -> None:
        """Sum the squares."""
        if scores.ndim != 1:
            raise wrong(f"output {self._output!r}", scores.shape, "one number a row")
        self._sum += float(np.square(scores.astype(np.float64) - truth).sum())
        self._rows += len(truth)

    def value(self) -> float:
        """The root of the mean."""
        return (self._sum / self._rows) ** 0.5 if self._rows else float("nan")


class Reliability(Comparison):
    """The expected calibration error."""

    def __init__(self, target: str, output: str, figure: Figure, bins: int) -> None:
        super().__init__(target, output, figure)
        self._bins = bins
        self._scores: list[Array] = []
        self._right: list[Array] = []

    def compare(self, scores: Array, truth: Array) -> None:
        """Keep the stated probability and whether it came true."""
        if scores.ndim == 2:
            answer = scores.argmax(axis=1)
            right = answer == self.labels(truth, scores.shape[1])
            scores = scores[np.arange(len(answer)), answer]
        else:
            right = self.labels(truth, 2).astype(bool)
        self._scores.append(scores.copy())
        self._right.append(right)

    def value(self) -> float:
        """The error over all rows."""
        if not self._scores:
            return float("nan")
        scores, right = np.concatenate(self._scores), np.concatenate(self._right)
        return calibration_error(scores, right, self._bins)


def calibration_error(scores: Array, right: Array, bins: int) -> float:
    """Expected calibration error in bins of equal mass; equal scores share a bin.

    Args:
        scores: stated probabilities, float ``[rows]``.
        right: whether each came true, bool ``[rows]``.
        bins: how many.
    """
    if np.isnan(scores).any():
        return float("nan")
    stated, group, rows = np.unique(scores, return_inverse=True, return_counts=True)
    true = np.bincount(group, weights=right, minlength=len(stated))
    middle = np.cumsum(rows) - rows / 2
    at = (middle * bins // len(scores)).astype(np.int64)
    gap = np.bincount(at, weights=rows * stated.astype(np.float64) - true)
    return float(np.abs(gap).sum() / len(scores))
