"""Drift: how far rows lie from those that a bundle was fitted on, told from mergeable sketches.

Nothing but the bundle's own statistics is needed: the training rows may be gone.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from drivetrain.core import measured
from drivetrain.core.batch import Array, Batch
from drivetrain.core.bundle import Bundle
from drivetrain.core.errors import unknown
from drivetrain.core.measured import Fitted, Value, as_numbers
from drivetrain.core.metric import Metric
from drivetrain.core.sketch import Counts, QuantileSketch
from drivetrain.core.statistic import Quantiles, Statistic, TopK
from drivetrain.watch.reference import OWN_BIN, DriftValue, Live, references

PREDICTION = "prediction."
"""What goes before an output's name where predictions are columns, as in feedback."""


class Drifting:
    """Takes in rows and says how far they have drifted; memory does not grow with the rows.

    Attributes:
        columns: those that can be compared.
    """

    def __init__(
        self,
        fitted: Fitted,
        columns: Sequence[str] = (),
        ignore: Sequence[str] = (),
        bins: int = 10,
    ) -> None:
        """Start with no rows.

        Args:
            fitted: the reference.
            columns: only these; empty takes all that have a reference.
            ignore: none of these.
            bins: how many a numeric column is cut into.

        Raises:
            ValueError: a column has no reference; the error suggests the nearest.
        """
        found = references(fitted, bins)
        for name in (*columns, *ignore):
            if name not in found:
                raise unknown("column", name, found, "the statistics of the bundle")
        self._references = {
            name: reference
            for name, reference in found.items()
            if name not in ignore and (not columns or name in columns)
        }
        self._live: dict[str, Live] = {}
        self.columns: tuple[str, ...] = tuple(self._references)

    def sketch(self, batch: Batch) -> dict[str, Live]:
        """The sketches of one batch, of the columns that it has."""
        return {
            name: reference.sketch(batch.column(name))
            for name, reference in self._references.items()
            if name in batch
        }

    def add(self, batch: Batch) -> None:
        """Take in a batch; columns that it lacks are passed over."""
        if len(batch):
            _merge_into(self._live, self.sketch(batch))

    def values(self) -> dict[str, DriftValue]:
        """The drift of each column that was seen."""
        return self.compare(self._live)

    def compare(self, live: Mapping[str, Live]) -> dict[str, DriftValue]:
        """The drift of given sketches."""
        return {
            name: reference.compare(live[name])  # pyright: ignore[reportArgumentType]
            for name, reference in self._references.items()
            if name in live
        }


def _merge_into(total: dict[str, Any], more: Mapping[str, Any]) -> None:
    for name, value in more.items():
        total[name] = total[name].merge(value) if name in total else value


class Window:
    """The drift of about the last ``rows`` rows of a stream that never ends.

    Rows are sketched in slices and the oldest slice is forgotten: yesterday's million rows do
    not hide what happened in the last hour.
    """

    SLICES = 10

    def __init__(self, drifting: Drifting, rows: int = 100_000) -> None:
        self._drifting = drifting
        self._limit = max(rows // self.SLICES, 1)
        self._slices: deque[tuple[int, dict[str, Live]]] = deque(maxlen=self.SLICES + 1)

    @property
    def rows(self) -> int:
        """How many rows are in the window."""
        return sum(rows for rows, _ in self._slices)

    def add(self, batch: Batch) -> None:
        """Take in a batch of at most a slice's rows or so."""
        if not len(batch):
            return
        if not self._slices or self._slices[-1][0] >= self._limit:
            self._slices.append((0, {}))
        rows, live = self._slices.pop()
        _merge_into(live, self._drifting.sketch(batch))
        self._slices.append((rows + len(batch), live))

    def values(self) -> dict[str, DriftValue]:
        """The drift of the window's rows."""
        total: dict[str, Live] = {}
        for _, live in self._slices:
            _merge_into(total, live)
        return self._drifting.compare(total)


def drift(
    fitted: Fitted,
    batches: Iterable[Batch],
    columns: Sequence[str] = (),
    ignore: Sequence[str] = (),
    bins: int = 10,
) -> Mapping[str, DriftValue]:
    """The drift of each column of ``batches`` against the fitted statistics.

    Raises:
        ValueError: a column has no reference; the error suggests the nearest.
    """
    drifting = Drifting(fitted, columns, ignore, bins)
    for batch in batches:
        drifting.add(batch)
    return drifting.values()


def prediction_statistics(bundle: Bundle, batches: Iterable[Batch]) -> Fitted:
    """The reference of a bundle's predictions: add it to the statistics to watch them drift.

    A single float for each row is sketched, a single string or integer counted; wider outputs
    have no histogram.
    """
    outputs = [f.name for f in bundle.manifest.outputs if all(n == 1 for n in f.shape)]
    known: Fitted = {}
    for batch in batches:
        if len(batch):
            columns = predictions_as_columns(bundle, batch, outputs)
            values = dict(_statistic_of(name, column) for name, column in columns.items())
            known = measured.merge(known, values) if known else values
    return known


def _statistic_of(name: str, column: Array) -> tuple[Statistic, Value]:
    if column.dtype.kind == "f":
        return Quantiles(name), QuantileSketch.of(as_numbers(column))
    values, counts = np.unique(column, return_counts=True)
    pairs = zip(values.tolist(), counts.tolist(), strict=True)
    capacity = OWN_BIN * 20
    return TopK(name, capacity), Counts.of(pairs, 0, capacity)


def predictions_as_columns(
    bundle: Bundle, batch: Batch, outputs: Sequence[str]
) -> dict[str, Array]:
    """Predictions for raw rows as feedback names them, one value a row."""
    answered = bundle.session.run(batch, list(outputs)) if outputs else Batch({})
    return {PREDICTION + name: answered[name].reshape(len(batch)) for name in outputs}


class DriftMeasurement:
    """The drift of the rows, and of the predictions where the bundle holds their statistics."""

    def __init__(
        self,
        bundle: Bundle,
        columns: Sequence[str],
        ignore: Sequence[str],
        bins: int,
        at_most: float | None,
    ) -> None:
        self._drifting = Drifting(bundle.fitted, columns, ignore, bins)
        self._at_most = at_most
        watched = {name.removeprefix(PREDICTION) for name in self._drifting.columns}
        self.outputs: Sequence[str] = tuple(
            field.name
            for field in bundle.manifest.outputs
            if field.name in watched and PREDICTION + field.name in self._drifting.columns
        )

    def add(self, batch: Batch, predictions: Batch) -> None:
        """Sketch the rows."""
        answered = {PREDICTION + o: predictions[o].reshape(len(batch)) for o in self.outputs}
        self._drifting.add(batch.with_columns(answered))

    def finish(self) -> Sequence[Metric]:
        """One metric for each column."""
        return [
            Metric(name=f"drift/psi/{column}", value=value.psi, at_most=self._at_most)
            for column, value in self._drifting.values().items()
        ]
