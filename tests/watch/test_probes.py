"""Probes on a bundle whose predictions are known."""

import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from drivetrain.core.describe import describe
from drivetrain.core.metric import Metric
from drivetrain.core.schema import Field, Schema
from drivetrain.core.seams import Probe
from drivetrain.watch.probes import (
    AUC,
    RMSE,
    Accuracy,
    Calibration,
    Drift,
    Latency,
    LogLoss,
    declared,
    evaluate,
)

ALL: tuple[Probe, ...] = (
    AUC(at_least=0.6),
    LogLoss(at_most=1.0),
    Accuracy(),
    Calibration(at_most=0.1),
    RMSE(),
    Latency(p99_ms=1000, repeats=20),
    Drift(at_most=0.25),
)


@dataclass(frozen=True)
class Rows:
    """A probe from outside: it knows nothing of shared passes."""

    most: int = 10**9

    def __call__(self, bundle, batches) -> Sequence[Metric]:
        seen, total = 0, 0.0
        for batch in batches:
            seen += len(batch)
            total += float(bundle.predict(batch)["late"].sum())
            if seen >= self.most:
                break
        return [Metric(name="rows", value=seen), Metric(name="sum", value=total)]


def test_all_probes_measure_in_one_pass_over_a_one_time_iterator(bundle, rows, cut):
    data = rows(2_000, seed=1)
    read: list[int] = []

    def once() -> Iterable:
        for batch in cut(data, 300):
            read.append(len(batch))
            yield batch

    found = {m.name: m for m in evaluate(bundle, (*ALL, Rows()), once())}
    scores = bundle.predict(data)["late"]
    assert sum(read) == 2_000
    assert found["test/auc"].value == pytest.approx(roc_auc_score(data["late"], scores), abs=1e-12)
    assert found["test/log_loss"].value == pytest.approx(log_loss(data["late"], scores), rel=1e-6)
    assert found["test/accuracy"].value == np.mean((scores >= 0.5) == data["late"])
    assert found["test/rmse"].value == pytest.approx(np.sqrt(np.mean((scores - data["late"]) ** 2)))
    assert found["test/calibration_error"].value < 0.05
    assert found["test/drift/psi/x"].value < 0.05
    assert found["test/drift/psi/carrier"].value < 0.05
    assert found["test/rows"].value == 2_000
    assert found["test/sum"].value == pytest.approx(float(scores.sum()), rel=1e-5)
    assert all(metric.holds for metric in found.values())


def test_metrics_come_in_the_order_of_the_probes(bundle, rows, cut):
    probes = (Rows(), RMSE(), AUC())
    found = evaluate(bundle, probes, cut(rows(50), 20), prefix="validate/")
    expected = ["validate/rows", "validate/sum", "validate/rmse", "validate/auc"]
    assert [metric.name for metric in found] == expected


def test_a_time_belongs_to_no_split_and_is_not_repeatable(bundle, rows):
    found = evaluate(bundle, [Latency(p50_ms=0.0, rows=4, repeats=10)], [rows(3)])
    assert [metric.name for metric in found] == ["latency/p50_ms", "latency/p99_ms"]
    assert not any(metric.repeatable for metric in found)
    assert 0 < found[0].value <= found[1].value
    assert not found[0].holds
    assert found[1].holds


def test_a_probe_keeps_the_signature_of_the_seam(bundle, rows, cut):
    batches = cut(rows(200), 64)
    (metric,) = AUC(at_least=2.0)(bundle, iter(batches))
    assert metric.name == "auc"
    assert metric.at_least == 2.0
    (same,) = evaluate(bundle, [AUC()], batches, prefix="")
    assert same.value == metric.value


def test_a_probe_that_stops_early_does_not_hold_up_the_others(bundle, rows, cut):
    found = evaluate(bundle, [Rows(most=10), AUC()], cut(rows(500), 10), prefix="")
    assert {metric.name for metric in found} == {"rows", "sum", "auc"}
    assert found[0].value == 10


def test_what_a_probe_from_outside_raises_reaches_the_caller(bundle, rows, cut):
    def broken(bundle, batches):
        next(iter(batches))
        raise RuntimeError("the probe broke")

    with pytest.raises(RuntimeError, match="the probe broke"):
        evaluate(bundle, [broken, AUC()], cut(rows(500), 10))


def test_an_error_while_reading_ends_the_probes_threads(bundle, rows):
    import threading

    def torn():
        yield rows(10)
        raise OSError("torn file")

    before = threading.active_count()
    with pytest.raises(OSError, match="torn file"):
        evaluate(bundle, [Rows()], torn())
    assert threading.active_count() == before


def test_no_rows_measure_as_not_a_number_and_break_bounds(bundle):
    found = evaluate(bundle, ALL, [])
    bounded = [m for m in found if m.at_least is not None or m.at_most is not None]
    assert bounded
    assert not any(metric.holds for metric in bounded)


def test_two_probes_of_one_metric_are_refused(bundle, rows):
    with pytest.raises(ValueError, match="two probes measure 'test/auc'"):
        evaluate(bundle, [AUC(), AUC(at_least=0.1)], [rows(10)])


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        (AUC(target="lat"), r"unknown target 'lat' in probe AUC\. Did you mean 'late'\?"),
        (LogLoss(output="lste"), r"unknown output 'lste' in probe LogLoss\. Did you mean 'late'\?"),
        (Drift(ignore=("carier",)), r"unknown column 'carier'.*Did you mean 'carrier'\?"),
    ],
)
def test_a_mistyped_name_suggests_the_nearest(bundle, probe, message):
    with pytest.raises(ValueError, match=message):
        evaluate(bundle, [probe], [])


def test_several_targets_must_be_chosen_from_and_are_told_apart(new_bundle, rows):
    two = Schema((Field("late", "int64"), Field("lost", "int64")))
    bundle = new_bundle(targets=two)
    with pytest.raises(ValueError, match="target= one of late, lost"):
        evaluate(bundle, [AUC()], [])
    data = rows(100)
    data = data.with_columns({"lost": 1 - data["late"]})
    probes = [AUC(target="late"), LogLoss(target="lost", output="late")]
    found = evaluate(bundle, probes, [data], prefix="")
    assert [metric.name for metric in found] == ["auc/late", "log_loss/late"]


def test_the_only_output_is_taken_whatever_its_name(new_bundle, rows):
    bundle = new_bundle(targets=Schema((Field("arrived_late", "int64"),)))
    data = rows(100)
    data = data.with_columns({"arrived_late": data["late"]})
    (metric,) = evaluate(bundle, [AUC()], [data])
    assert 0.5 < metric.value <= 1


def test_described_probes_are_made_again():
    assert declared([describe(probe) for probe in ALL]) == list(ALL)
    drift = Drift(ignore=("month",))
    assert declared([describe(drift)]) == [drift]


def test_a_described_probe_from_outside_is_left_out_aloud():
    heard: list = []
    assert declared([describe(Rows()), describe(AUC())], heard.append) == [AUC()]
    (note,) = heard
    assert note.warning
    assert "'Rows'" in note.text


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Calibration(bins=0), r"Calibration\.bins: found 0"),
        (lambda: Latency(rows=0), r"Latency\.rows: found 0"),
    ],
)
def test_an_option_out_of_range_is_refused_when_declared(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_declaring_probes_imports_nothing_heavy():
    code = (
        "import sys, drivetrain.watch.probes as p; p.AUC(), p.Latency(), p.Drift();"
        "print([m for m in ('numpy', 'torch', 'onnxruntime', 'rich') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
