"""Counts what graphs predict: the values of an output into a histogram."""

from bisect import bisect_left

import numpy as np

from drivetrain.core.batch import Array
from drivetrain.serve.native import compiled
from drivetrain.serve.telemetry.family import Histogram

_FEW = 64
"""Values that are counted one by one sooner than by numpy."""


def observe(histogram: Histogram, array: Array) -> None:
    """Count the finite values of an array."""
    if compiled is not None and array.flags.c_contiguous and array.dtype.char in "fd":
        histogram.sum += compiled.observe(array, histogram.bounds, histogram.counts)
        return
    if array.size <= _FEW:
        bounds, counts, total = histogram.bounds, histogram.counts, 0.0
        for value in array.reshape(-1).tolist():
            if value - value == 0.0:  # neither NaN nor infinite: such a sum would be lost
                counts[bisect_left(bounds, value)] += 1
                total += value
        histogram.sum += total
        return
    values = array.reshape(-1).astype(np.float64)
    values = values[np.isfinite(values)]
    places = np.searchsorted(np.asarray(histogram.bounds), values)
    for place, count in enumerate(np.bincount(places, minlength=len(histogram.counts)).tolist()):
        histogram.counts[place] += count
    histogram.sum += float(values.sum())
