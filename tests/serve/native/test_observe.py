"""Values are counted where Python counts them."""

import math

import numpy as np
import pytest
from compiled_part import compiled
from hypothesis import given
from hypothesis import strategies as st

from drivetrain.serve import native
from drivetrain.serve.execution import predicted
from drivetrain.serve.telemetry.family import Histogram
from drivetrain.serve.telemetry.metrics import DECILES

kinds = st.sampled_from([np.float32, np.float64])
values = st.floats(width=32) | st.sampled_from([*DECILES, 0.0, -0.0, math.nan, math.inf])


def in_python(histogram, array):
    """The rule itself."""
    for value in array.reshape(-1).tolist():
        if math.isfinite(value):
            histogram.observe(value)


@given(st.lists(values, max_size=90), kinds, st.sampled_from([(-1,), (-1, 1)]))
def test_values_are_counted_and_summed_as_one_by_one(given, kind, shape):
    array = np.array(given, kind).reshape(shape)
    found, expected = Histogram(DECILES), Histogram(DECILES)
    for _ in range(2):
        predicted.observe(found, array)
        in_python(expected, array)
    assert found.counts == expected.counts
    assert found.sum == pytest.approx(expected.sum, rel=1e-6, abs=1e30)


@compiled
@given(st.lists(st.floats(-1e30, 1e30), max_size=90))
def test_the_compiled_part_sums_in_the_order_of_the_values(given):
    array, histogram = np.array(given), Histogram(DECILES)
    in_python(histogram, array)
    counts = [0] * len(histogram.counts)
    assert native.compiled.observe(array, histogram.bounds, counts) == histogram.sum
    assert counts == histogram.counts


def test_without_the_compiled_part_few_and_many_are_counted_alike(monkeypatch):
    monkeypatch.setattr(predicted, "compiled", None)
    for size in (predicted._FEW, predicted._FEW + 1):
        array = np.linspace(-0.5, 1.5, size, dtype=np.float32)
        found, expected = Histogram(DECILES), Histogram(DECILES)
        predicted.observe(found, array)
        in_python(expected, array)
        assert found.counts == expected.counts
        assert found.sum == pytest.approx(expected.sum)


@compiled
def test_what_cannot_be_counted_is_refused():
    observe = native.compiled.observe
    with pytest.raises(TypeError):
        observe(np.zeros(1), (1.0,))
    with pytest.raises(TypeError):
        observe(np.zeros(1), [1.0], [0, 0])
    with pytest.raises(ValueError, match="one count more"):
        observe(np.zeros(1), (1.0,), [0])
    with pytest.raises(ValueError, match="float32 or float64"):
        observe(np.zeros(1, np.int64), (1.0,), [0, 0])
    with pytest.raises(TypeError):
        observe(np.zeros(1), ("1",), [0, 0])
