"""Merging over any partition gives what the whole gives; sketches keep to their error bounds."""

import json
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.core import sketch
from drivetrain.core.batch import Batch, Categorical
from drivetrain.core.measured import from_json, measure, merge, to_json
from drivetrain.core.schema import MISSING_INT
from drivetrain.core.sketch import BUCKETS, Counts, DistinctSketch, MomentsValue, QuantileSketch
from drivetrain.core.statistic import Distinct, Moments, Quantiles, Statistic, TopK

repeatable = settings(deadline=None, derandomize=True, max_examples=80)

anything = st.floats(width=64)
sensible = st.one_of(st.floats(-1e6, 1e6), st.sampled_from([np.nan, np.inf, -np.inf, 0.0, -0.0]))
words = st.one_of(st.sampled_from(["", "a", "b", "UA"]), st.text(max_size=3))
integers = st.one_of(st.integers(-3, 3), st.integers(-(2**63), 2**63 - 1))


def parts_of(values: list[Any], cuts: list[int]) -> list[list[Any]]:
    ends = sorted({min(cut, len(values)) for cut in cuts} | {0, len(values)})
    return [values[a:b] for a, b in pairwise(ends)] or [values]


def column(values: list[Any]) -> Batch:
    if values and isinstance(values[0], str):
        return Batch({"x": np.array([*values, None], dtype=object)[:-1]})
    if values and isinstance(values[0], int):
        return Batch({"x": np.array(values, np.int64)})
    return Batch({"x": np.array(values, np.float64)})


def whole_and_merged(statistic: Statistic, values: list[Any], cuts: list[int]) -> tuple[Any, Any]:
    whole = measure(statistic, column(values))
    parts = [measure(statistic, column(part)) for part in parts_of(values, cuts)]
    merged: Any = parts[-1]
    for part in parts[:-1]:  # another order than that of the rows
        merged = merged.merge(part)
    return whole, merged


cuts = st.lists(st.integers(0, 60), max_size=4)


@repeatable
@given(st.lists(anything, min_size=1, max_size=60), cuts)
def test_quantile_sketches_merge_exactly(values: list[float], cuts: list[int]):
    whole, merged = whole_and_merged(Quantiles("x"), values, cuts)
    assert merged.to_json() == whole.to_json()


@settings(deadline=None, derandomize=True, max_examples=15)
@given(st.integers(0, 2**32), st.lists(st.integers(0, 30_000), max_size=4))
def test_quantile_sketches_that_collapse_merge_exactly(seed: int, cuts: list[int]):
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(30_000) * np.exp(rng.normal(0, rng.uniform(0, 20), 30_000))
    whole = QuantileSketch.of(values)
    assert len(whole.keys) <= BUCKETS
    assert whole.precision < sketch.PRECISION
    ends = sorted({0, *cuts, len(values)})
    merged = QuantileSketch.of(values[:0])
    for a, b in zip(ends[::-1][1:], ends[::-1], strict=False):
        merged = QuantileSketch.of(values[a:b]).merge(merged)
    assert merged.to_json() == whole.to_json()


@repeatable
@given(st.one_of(st.lists(words, max_size=60), st.lists(integers, max_size=60)), cuts)
def test_counts_and_distinct_sketches_merge_exactly(values: list[Any], cuts: list[int]):
    for statistic in (TopK("x"), Distinct("x")):
        whole, merged = whole_and_merged(statistic, values or [""], cuts)
        assert merged.to_json() == whole.to_json()


@repeatable
@given(
    st.lists(sensible, min_size=1, max_size=60), cuts, st.sampled_from(["identity", "signed_log"])
)
def test_moments_merge_to_rounding(values: list[float], cuts: list[int], of: Any):
    whole, merged = whole_and_merged(Moments("x", of), values, cuts)
    for name in ("count", "missing", "minimum", "maximum"):
        assert getattr(merged, name) == getattr(whole, name)
    scale = max(abs(whole.minimum), abs(whole.maximum)) if whole.count else 0.0
    assert merged.mean == pytest.approx(whole.mean, rel=1e-12, abs=1e-12 * scale)
    assert merged.std == pytest.approx(whole.std, rel=1e-7, abs=1e-7 * scale)


@repeatable
@given(st.lists(sensible, min_size=1, max_size=60))
def test_moments_are_those_of_the_finite_values(values: list[float]):
    found = measure(Moments("x"), column(values))
    assert isinstance(found, MomentsValue)
    finite = np.array([v for v in values if np.isfinite(v)])
    assert (found.count, found.missing) == (len(finite), len(values) - len(finite))
    if len(finite):
        scale = np.abs(finite).max()
        assert found.mean == pytest.approx(finite.mean(), rel=1e-12, abs=1e-12 * scale)
        assert found.std == pytest.approx(finite.std(), rel=1e-9, abs=1e-9 * scale)
        assert (found.minimum, found.maximum) == (finite.min(), finite.max())


def test_moments_do_not_cancel_far_from_zero():
    values = 1e9 + np.array([0.0, 1.0, 2.0] * 1000)
    parts = [measure(Moments("x"), Batch({"x": v})) for v in np.split(values, 30)]
    merged: Any = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part)
    assert merged.std == pytest.approx((2 / 3) ** 0.5, rel=1e-9)


@repeatable
@given(
    st.lists(anything.filter(np.isfinite), min_size=1, max_size=100),
    st.lists(st.floats(0, 1), min_size=1, max_size=5),
)
def test_quantiles_are_within_their_relative_error(values: list[float], shares: list[float]):
    found = QuantileSketch.of(np.array(values))
    assert found.precision == sketch.PRECISION
    near = np.quantile(values, shares, method="lower"), np.quantile(values, shares, method="higher")
    for value, low, high in zip(found.quantile(shares), *near, strict=True):
        slack = 2.0**-found.precision
        assert value >= low - slack * abs(low) - 1e-300
        assert value <= high + slack * abs(high) + 1e-300


def test_the_error_bound_holds_after_collapsing():
    values = np.exp(np.random.default_rng(0).normal(0, 3, 200_000))
    found = QuantileSketch.of(values)
    shares = np.linspace(0.001, 0.999, 97)
    exact = np.quantile(values, shares, method="lower")
    assert 2.0**-found.precision < 0.02
    assert np.abs(found.quantile(shares) / exact - 1).max() < 2.0**-found.precision


@repeatable
@given(
    st.lists(anything, min_size=1, max_size=50), st.lists(anything.filter(np.isfinite), max_size=5)
)
def test_shares_below_are_shares(values: list[float], edges: list[float]):
    found = QuantileSketch.of(np.array(values))
    shares = found.share_below(sorted(edges))
    if found.count:
        assert ((shares >= 0) & (shares <= 1 + 1e-12)).all()
        assert (np.diff(shares) >= -1e-12).all()
        assert found.share_below(found.maximum) == pytest.approx(1.0)
        assert found.share_below(-np.inf) == 0.0
    else:
        assert np.isnan(shares).all()


def test_extremes_are_exact_and_shapes_are_kept():
    found = QuantileSketch.of(np.array([1.7, -3.3, np.nan, 1.7e308, -np.inf]))
    assert (found.count, found.missing) == (3, 2)
    assert found.quantile([[0.0, 1.0]]).tolist() == [[-3.3, 1.7e308]]
    assert np.isnan(QuantileSketch.of(np.array([np.nan])).quantile([0.5, 0.9])).all()


def test_zero_has_no_sign():
    for kind in (Moments("x"), Quantiles("x")):
        texts = {
            json.dumps(measure(kind, column(list(order))).to_json())
            for order in ((0.0, -0.0), (-0.0, 0.0), (-0.0, -0.0))
        }
        assert len(texts) == 1


def test_missing_integers_and_strings_are_missing():
    numbers = Batch({"x": np.array([1, MISSING_INT, 3])})
    assert measure(Moments("x"), numbers) == MomentsValue(2, 1, 2.0, 2.0, 1.0, 3.0)
    assert measure(TopK("x"), numbers) == Counts(((1, 1), (3, 1)), missing=1)
    codes, values = np.array([0, 1, 0, 2], np.int32), np.array(["a", "", "a"], dtype=object)
    texts = Batch({"x": Categorical(codes, values)})
    assert measure(TopK("x"), texts) == Counts((("a", 3),), missing=1)


def test_the_commonest_come_first_and_equals_in_order_of_value():
    counted = measure(TopK("x", capacity=2), column(["b", "a", "c", "b", "a", "", "d"]))
    assert counted == Counts((("a", 2), ("b", 2)), missing=1, others=2, capacity=2)
    assert counted.count == 6


@pytest.mark.parametrize("distinct", [0, 1, 100, 5_000, 50_000])
def test_distinct_counts_are_near(distinct: int):
    batch = Batch({"x": np.array([f"user-{i}" for i in range(distinct)], dtype=object)})
    found = measure(Distinct("x"), batch)
    assert isinstance(found, DistinctSketch)
    assert found.estimate == pytest.approx(distinct, rel=4 * 0.0163, abs=1)


def test_hashes_are_the_low_half_of_md5():
    # as DuckDB's md5_number_lower and any other engine's MD5 give it
    assert sketch.text_hash("") == 0x7E42F8EC980980E9
    assert sketch.text_hash("é") != sketch.text_hash("e")


def test_everything_survives_json_in_order():
    values: list[float] = [1.5, np.nan, -2.0, 1e300, 0.0]
    fitted: dict[Statistic, Any] = {}
    for made in (Quantiles("x"), Moments("x"), Moments("x", of="signed_log")):
        fitted[made] = measure(made, column(values))
        fitted[type(made)(column="empty")] = measure(type(made)("x"), column([float("nan")]))
    fitted[TopK("i", capacity=3)] = measure(TopK("x", capacity=3), column([1, 2, 2, 9, 8]))
    fitted[Distinct("s")] = measure(Distinct("x"), column(["a", "b"]))
    text = json.dumps(to_json(fitted))
    again = from_json(json.loads(text))
    assert list(again) == list(fitted)
    assert json.dumps(to_json(again)) == text
    merged = merge(again, fitted)
    assert to_json(merged) == to_json(merge(fitted, fitted))


def test_answers_to_different_questions_do_not_merge():
    one = {Quantiles("x"): QuantileSketch.of(np.arange(3.0))}
    with pytest.raises(ValueError, match="same statistics"):
        merge(one, {Quantiles("y"): one[Quantiles("x")]})
