"""Drift against references of known distributions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.core.batch import Batch, Categorical
from drivetrain.core.measured import measure
from drivetrain.core.schema import MISSING_INT
from drivetrain.core.sketch import Counts, MomentsValue, QuantileSketch
from drivetrain.core.statistic import Moments, Quantiles, TopK
from drivetrain.watch.drift import (
    Drifting,
    Window,
    drift,
    prediction_statistics,
)
from drivetrain.watch.probes import Drift, evaluate
from drivetrain.watch.reference import FLOOR, OWN_BIN, stability_index

CARRIERS = np.array(["AA", "DL", "UA", "WN"], object)


def fitted_on(batch: Batch) -> dict:
    return {
        statistic: measure(statistic, batch)
        for name in batch.columns
        for statistic in [TopK(name) if batch[name].dtype == object else Quantiles(name)]
    }


numbers = st.lists(
    st.one_of(st.floats(-1e6, 1e6), st.integers(0, 5).map(float), st.just(float("nan"))),
    min_size=1,
    max_size=80,
)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(numbers, st.integers(1, 4), st.integers(0, 100))
def test_the_same_distribution_of_numbers_has_no_drift_at_all(values, times, seed):
    before = np.array(values)
    after = np.random.default_rng(seed).permutation(np.repeat(before, times))
    found = drift(fitted_on(Batch({"x": before})), [Batch({"x": after})])["x"]
    assert found.psi == pytest.approx(0, abs=1e-12)
    assert found.distance == pytest.approx(0, abs=1e-12)
    assert found.missing == pytest.approx(found.missing_before)
    assert found.rows == len(after)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.lists(st.sampled_from(["", "a", "b", "c"]), min_size=1), st.integers(1, 4))
def test_the_same_distribution_of_categories_has_no_drift_at_all(values, times):
    before = np.array(values, object)
    found = drift(fitted_on(Batch({"c": before})), [Batch({"c": np.repeat(before, times)})])["c"]
    assert found.psi == pytest.approx(0, abs=1e-12)
    assert found.distance == pytest.approx(0, abs=1e-12)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(numbers, numbers)
def test_drift_is_finite_and_never_negative(before, after):
    found = drift(fitted_on(Batch({"x": np.array(before)})), [Batch({"x": np.array(after)})])["x"]
    assert 0 <= found.psi + 1e-12 < np.inf
    assert 0 <= found.distance <= 1


@settings(derandomize=True, deadline=None, max_examples=40)
@given(numbers, st.integers(1, 30))
def test_drift_does_not_depend_on_how_rows_are_batched(values, size):
    fitted = fitted_on(Batch({"x": np.linspace(-5, 5, 50)}))
    column = np.array(values)
    whole = drift(fitted, [Batch({"x": column})])
    parts = [Batch({"x": column[i : i + size]}) for i in range(0, len(column), size)]
    assert drift(fitted, parts) == whole


@pytest.mark.parametrize("seed", range(5))
def test_rows_of_the_same_population_drift_by_about_what_chance_gives(seed):
    rng = np.random.default_rng(seed)
    before = Batch({"x": rng.lognormal(size=20_000), "c": rng.choice(CARRIERS, 20_000)})
    after = Batch({"x": rng.lognormal(size=5_000), "c": rng.choice(CARRIERS, 5_000)})
    for value in drift(fitted_on(before), [after]).values():
        assert value.psi < 4 * value.by_chance < 0.02
        assert value.distance < 0.03


def test_the_mean_drift_of_nothing_is_what_chance_gives():
    rng = np.random.default_rng(0)
    fitted = fitted_on(Batch({"x": rng.normal(size=10_000)}))
    found = [drift(fitted, [Batch({"x": rng.normal(size=500)})])["x"] for _ in range(200)]
    # over samples against one reference, most of the chance is the sample's
    assert np.mean([v.psi for v in found]) == pytest.approx(found[0].by_chance, rel=0.15)


def test_the_index_of_shifted_normals_is_jeffreys_divergence():
    rng = np.random.default_rng(0)
    fitted = fitted_on(Batch({"x": rng.normal(size=100_000)}))
    after = Batch({"x": rng.normal(0.5, 1.0, 100_000)})
    found = drift(fitted, [after], bins=50)["x"]
    assert found.psi == pytest.approx(0.25, rel=0.05)  # (difference of means / deviation)²
    exact = 0.1974  # 2 * Phi(0.25) - 1, where the two distribution functions are furthest apart
    assert found.distance == pytest.approx(exact, abs=0.01)


def test_the_index_by_hand():
    before, after = np.array([50, 50]), np.array([90, 10])
    expected = 0.4 * np.log(0.9 / 0.5) + (0.1 - 0.5) * np.log(0.1 / 0.5)
    assert stability_index(before, after) == pytest.approx(expected, rel=0.01)
    assert stability_index(np.array([1, 0]), np.array([0, 1])) == pytest.approx(
        2 * np.log((1 - FLOOR) / FLOOR), rel=0.01
    )


def test_an_atom_is_not_split_between_bins_by_a_coarser_reference():
    rng = np.random.default_rng(0)
    wide = np.concatenate([np.zeros(500), np.full(500, 7.0), rng.lognormal(0, 20, 4_000)])
    before = Batch({"x": wide})
    assert measure(Quantiles("x"), before).precision < 14
    found = drift(fitted_on(before), [Batch({"x": rng.choice(wide, 3_000)})])["x"]
    assert found.psi < 3 * found.by_chance


def test_missing_values_that_were_not_there_before_are_drift():
    before = Batch({"x": np.linspace(0, 1, 1_000)})
    gone = np.where(np.arange(1_000) % 2 == 0, np.nan, np.linspace(0, 1, 1_000))
    found = drift(fitted_on(before), [Batch({"x": gone})])["x"]
    assert (found.missing_before, found.missing) == (0.0, 0.5)
    assert found.psi > 1
    assert found.distance < 0.01


def test_unknown_and_missing_categories_are_told_apart():
    before = Batch({"c": CARRIERS[np.arange(1_000) % 4]})
    after = Batch({"c": np.array(["AA", "XX", "", "DL"], object)})
    found = drift(fitted_on(before), [after])["c"]
    assert (found.unknown, found.unknown_before) == (0.25, 0.0)
    assert (found.missing, found.missing_before) == (0.25, 0.0)
    assert found.psi > 1


def test_a_dictionary_encoded_column_drifts_as_a_plain_one():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 5, 400).astype(np.int32)
    values = np.array(["AA", "DL", "", "XX", "AA"], object)
    fitted = fitted_on(Batch({"c": CARRIERS[np.arange(100) % 4]}))
    encoded = drift(fitted, [Batch({"c": Categorical(codes, values)})])
    assert encoded == drift(fitted, [Batch({"c": values[codes]})])


def test_rare_categories_share_a_bin_so_that_chance_stays_small():
    rng = np.random.default_rng(0)
    names = np.array([f"merchant {i}" for i in range(5_000)], object)
    before = Batch({"c": rng.choice(names, 50_000)})
    found = drift(fitted_on(before), [Batch({"c": rng.choice(names, 2_000)})])["c"]
    assert found.by_chance < (OWN_BIN + 3) * (1 / 50_000 + 1 / 2_000)
    assert found.psi < 0.1


def test_integers_that_a_feature_looks_up_are_categories_and_missing_is_missing():
    before = Batch({"x": np.array([1, 1, 2, 2])})
    both = {s: measure(s, before) for s in (Quantiles("x"), TopK("x"))}
    found = drift(both, [Batch({"x": np.array([1, 2, 3, MISSING_INT])})])["x"]
    assert (found.unknown, found.missing) == (0.25, 0.25)


def test_counts_that_were_cut_say_how_much_was_unknown_before():
    counts = Counts.of([("a", 60), ("b", 40)], missing=0, capacity=1)
    found = drift({TopK("c"): counts}, [Batch({"c": np.array(["a", "a", "a", "b", "c"], object)})])
    assert found["c"].unknown == found["c"].unknown_before == 0.4
    assert found["c"].psi == pytest.approx(0, abs=1e-12)


def test_columns_without_a_distribution_have_no_drift():
    fitted = {
        Moments("m"): MomentsValue(10, 0, 0.0, 1.0, -1.0, 1.0),
        Quantiles("empty"): QuantileSketch.of(np.array([])),
        Quantiles("x"): QuantileSketch.of(np.array([1.0, 2.0])),
    }
    assert Drifting(fitted).columns == ("x",)


def test_a_column_all_missing_before_and_after_has_not_drifted():
    nothing = Batch({"x": np.full(10, np.nan)})
    found = drift(fitted_on(nothing), [nothing])["x"]
    assert (found.psi, found.distance) == (0.0, 0.0)
    here = drift(fitted_on(nothing), [Batch({"x": np.ones(10)})])["x"]
    assert here.psi > 1
    assert here.distance == 1.0


def test_chosen_and_ignored_columns():
    fitted = fitted_on(Batch({"x": np.ones(3), "y": np.ones(3)}))
    assert Drifting(fitted, columns=("y",)).columns == ("y",)
    assert Drifting(fitted, ignore=("y",)).columns == ("x",)
    with pytest.raises(ValueError, match="unknown column 'z'"):
        Drifting(fitted, columns=("z",))
    with pytest.raises(ValueError, match="bins: found 1"):
        Drifting(fitted, bins=1)


def test_a_window_forgets_the_oldest_rows():
    fitted = fitted_on(Batch({"x": np.linspace(0, 1, 1_000)}))
    drifting = Drifting(fitted)
    window = Window(drifting, rows=1_000)
    rng = np.random.default_rng(0)
    for _ in range(30):
        window.add(Batch({"x": rng.random(100)}))
    calm = window.values()["x"].psi
    for _ in range(11):
        window.add(Batch({"x": rng.random(100) + 5}))
    assert calm < 0.05
    assert window.rows <= 1_100
    moved = drift(fitted, [Batch({"x": rng.random(1_000) + 5})])["x"]
    assert window.values()["x"].psi == pytest.approx(moved.psi, rel=0.05)


def test_predictions_drift_where_their_statistics_were_kept(bundle, new_bundle, rows, cut):
    known = prediction_statistics(bundle, cut(rows(5_000), 1_000))
    watched = new_bundle(fitted={**bundle.fitted, **known})
    probe = [Drift(columns=("prediction.late",))]
    (calm,) = evaluate(watched, probe, cut(rows(3_000, seed=1), 700))
    (moved,) = evaluate(watched, probe, cut(rows(3_000, seed=1, shift=1.0), 700))
    assert calm.name == "test/drift/psi/prediction.late"
    assert calm.value < 0.02
    assert calm.holds
    assert not moved.holds


def test_a_drifted_column_is_named_by_the_bound_that_it_breaks(bundle, rows):
    found = evaluate(bundle, [Drift()], [rows(2_000, seed=2, shift=2.0)])
    assert [metric.name for metric in found if not metric.holds] == ["test/drift/psi/x"]
