"""Quality figures against scikit-learn and against arithmetic by hand."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from drivetrain.core.batch import Batch
from drivetrain.core.metric import Metric
from drivetrain.core.schema import MISSING_INT
from drivetrain.watch.quality import (
    Hits,
    LogLikelihood,
    Ranking,
    Reliability,
    SquaredError,
    auc,
    calibration_error,
)


def figure(value: float) -> Metric:
    return Metric(name="figure", value=value)


def value(measurement, truth, scores, size: int = 7) -> float:
    """The figure over the rows shown in batches of ``size``."""
    for start in range(0, len(truth), size):
        part = slice(start, start + size)
        measurement.add(Batch({"y": truth[part]}), Batch({"p": scores[part]}))
    (metric,) = measurement.finish()
    return metric.value


@settings(derandomize=True, deadline=None, max_examples=150)
@given(
    st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=2, max_size=60),
    st.integers(1, 60),
)
def test_auc_with_ties_is_that_of_scikit_learn(pairs, size):
    scores = np.array([score / 8 for score, _ in pairs], np.float32)
    labels = np.array([label for _, label in pairs], np.int64)
    assume(0 < labels.sum() < len(labels))
    found = value(Ranking("y", "p", figure), labels, scores, size)
    assert found == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_auc_of_many_random_scores_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    scores = rng.random(20_000).astype(np.float32)
    labels = (rng.random(20_000) < scores).astype(np.int64)
    found = value(Ranking("y", "p", figure), labels, scores, 999)
    assert found == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.floats(-5, 5), st.booleans()), min_size=2, max_size=40))
def test_auc_does_not_change_under_a_growing_map_and_turns_over_under_a_falling_one(pairs):
    scores = np.array([score for score, _ in pairs])
    labels = np.array([label for _, label in pairs])
    assume(0 < labels.sum() < len(labels))
    ranks = np.unique(scores, return_inverse=True)[1].astype(float)
    assert auc(ranks**3, labels) == auc(scores, labels)
    assert auc(-ranks, labels) == pytest.approx(1 - auc(scores, labels), abs=1e-12)


@pytest.mark.parametrize("labels", [[0, 0, 0], [1, 1, 1]])
def test_auc_of_one_label_is_not_a_number_and_breaks_its_bound(labels):
    measurement = Ranking("y", "p", lambda v: Metric(name="auc", value=v, at_least=0.0))
    measurement.add(Batch({"y": np.array(labels)}), Batch({"p": np.ones(3, np.float32)}))
    (metric,) = measurement.finish()
    assert np.isnan(metric.value)
    assert not metric.holds


def test_auc_of_a_score_that_is_not_a_number_is_none():
    assert np.isnan(auc(np.array([0.1, np.nan]), np.array([True, False])))


def test_log_loss_is_that_of_scikit_learn_even_where_a_sure_answer_is_wrong():
    rng = np.random.default_rng(1)
    scores = rng.random(500).astype(np.float32)
    scores[:4] = [0.0, 1.0, 0.0, 1.0]
    labels = rng.integers(0, 2, 500)
    labels[:4] = [0, 0, 1, 1]
    found = value(LogLikelihood("y", "p", figure), labels, scores)
    assert found == pytest.approx(log_loss(labels, scores), rel=1e-6)


def test_log_loss_of_several_classes_is_that_of_scikit_learn():
    rng = np.random.default_rng(2)
    scores = rng.dirichlet([1, 2, 3], 300).astype(np.float32)
    labels = rng.integers(0, 3, 300)
    found = value(LogLikelihood("y", "p", figure), labels, scores)
    assert found == pytest.approx(log_loss(labels, scores), rel=1e-5)


def test_log_loss_refuses_what_is_no_probability():
    with pytest.raises(ValueError, match=r"output 'p': found 1\.5, allowed: probabilities"):
        value(LogLikelihood("y", "p", figure), np.array([1]), np.array([1.5], np.float32))


def test_accuracy_counts_answers_from_the_threshold_on():
    truth, scores = np.array([1, 1, 0, 0]), np.array([0.7, 0.6, 0.6, 0.1], np.float32)
    assert value(Hits("y", "p", figure, 0.5), truth, scores) == 0.75
    assert value(Hits("y", "p", figure, 0.65), truth, scores) == 0.75
    assert value(Hits("y", "p", figure, 0.05), truth, scores) == 0.5


def test_accuracy_of_several_classes_takes_the_likeliest():
    scores = np.eye(3, dtype=np.float32)[[0, 1, 2, 2]]
    assert value(Hits("y", "p", figure, 0.5), np.array([0, 1, 2, 0]), scores) == 0.75


def test_rmse_is_in_the_unit_of_the_target():
    found = value(SquaredError("y", "p", figure), np.array([1.0, 2.0]), np.array([4.0, 6.0]))
    assert found == pytest.approx(np.sqrt((9 + 16) / 2))


def test_a_row_without_a_target_does_not_count():
    truth = np.array([1, MISSING_INT, 0])
    assert value(Hits("y", "p", figure, 0.5), truth, np.array([0.9, 0.9, 0.9], np.float32)) == 0.5
    numbers = np.array([1.0, np.nan])
    assert value(SquaredError("y", "p", figure), numbers, np.array([3.0, 3.0])) == 2.0


def test_a_target_that_is_no_class_is_refused_by_value():
    with pytest.raises(ValueError, match=r"target 'y': found 2\.0, allowed: whole numbers from 0"):
        value(Ranking("y", "p", figure), np.array([0, 2]), np.array([0.1, 0.2], np.float32))


def test_strings_are_no_target():
    with pytest.raises(ValueError, match="target 'y': found 'strings'"):
        value(Hits("y", "p", figure, 0.5), np.array(["a"], object), np.array([0.1], np.float32))


def test_one_column_of_scores_is_one_score_a_row():
    scores = np.array([[0.9], [0.1]], np.float32)
    assert value(Hits("y", "p", figure, 0.5), np.array([1, 0]), scores) == 1.0


def test_no_rows_give_no_figure():
    for kind in (Ranking, LogLikelihood, SquaredError):
        (metric,) = kind("y", "p", figure).finish()
        assert np.isnan(metric.value)


def test_calibration_error_of_two_bins_by_hand():
    scores = np.array([0.2, 0.2, 0.2, 0.2, 0.8, 0.8, 0.8, 0.8])
    right = np.array([1, 0, 0, 0, 1, 1, 1, 1], bool)
    # shares of ones are 0.25 and 1.0, stated are 0.2 and 0.8, each for half of the rows
    assert calibration_error(scores, right, 2) == pytest.approx((0.05 + 0.2) / 2)


@settings(derandomize=True, deadline=None, max_examples=80)
@given(
    st.lists(st.tuples(st.integers(0, 10), st.booleans()), min_size=1, max_size=50),
    st.integers(1, 20),
    st.integers(0, 1000),
)
def test_calibration_error_does_not_depend_on_the_order_of_the_rows(pairs, bins, seed):
    scores = np.array([score / 10 for score, _ in pairs])
    right = np.array([r for _, r in pairs])
    order = np.random.default_rng(seed).permutation(len(pairs))
    first = calibration_error(scores, right, bins)
    assert first == pytest.approx(calibration_error(scores[order], right[order], bins), abs=1e-12)
    assert 0 <= first <= 1


def test_calibration_error_of_one_bin_is_the_bias():
    scores, right = np.array([0.1, 0.5, 0.9]), np.array([True, True, True])
    assert calibration_error(scores, right, 1) == pytest.approx(0.5)


def test_honest_probabilities_are_calibrated_and_overstated_ones_are_not():
    rng = np.random.default_rng(3)
    honest = rng.random(50_000).astype(np.float32)
    right = (rng.random(50_000) < honest).astype(np.int64)
    assert value(Reliability("y", "p", figure, 15), right, honest, 5_000) < 0.01
    assert value(Reliability("y", "p", figure, 15), right, np.sqrt(honest), 5_000) > 0.1


def test_calibration_of_several_classes_is_of_the_likeliest():
    scores = np.array([[0.6, 0.3, 0.1], [0.6, 0.3, 0.1]], np.float32)
    found = value(Reliability("y", "p", figure, 1), np.array([0, 1]), scores)
    assert found == pytest.approx(0.1)  # stated 0.6, right in a half
