"""What the best of several passes is, and what is said of the choice."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from drivetrain.compress import report as timing
from drivetrain.compress.apply import Given, apply
from drivetrain.compress.best import Best
from drivetrain.compress.optimize import Optimize
from drivetrain.compress.quantize import Quantize
from drivetrain.core.batch import Batch
from drivetrain.core.graph import Graph
from drivetrain.core.metric import Emitted, Metric, Note

Rows = Callable[..., Batch]


@dataclass(frozen=True)
class Marked:
    """A made pass: the same graph, marked, with a time and a quality of its own."""

    name: str
    ms: float
    auc: float

    def __call__(self, graph: Graph, calibration: Callable[[], Iterable[Batch]]) -> Graph:
        model = graph.proto
        model.graph.name = f"{self.ms} {self.auc}"
        return Graph.from_proto(model)


@dataclass(frozen=True)
class Failing:
    """A made pass that can't take the graph."""

    name: str = "failing"

    def __call__(self, graph: Graph, calibration: Callable[[], Iterable[Batch]]) -> Graph:
        raise ValueError("nothing to do here")


def mark(graph: Graph) -> tuple[float, float]:
    """The time and the quality that a graph is marked with; a plain one has 10 ms and 0.8."""
    words = graph.proto.graph.name.split()
    return (float(words[0]), float(words[1])) if len(words) == 2 else (10.0, 0.8)


def quality(graph: Graph) -> dict[str, Metric]:
    _, auc = mark(graph)
    found = [Metric(name="auc", value=auc, at_least=0.7), Metric(name="rmse", value=1 - auc)]
    return {metric.name: metric for metric in found}


@pytest.fixture
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times as the graphs are marked, and no clock."""
    marks: dict[int, float] = {}
    session = Graph.session

    def marked(self: Graph, *arguments: Any, **options: Any) -> Any:
        made = session(self, *arguments, **options)
        marks[id(made)] = mark(self)[0]
        return made

    def latency(sessions: Sequence[Any], sample: Batch, size: int) -> list[float]:
        return [marks[id(one)] * size for one in sessions]

    monkeypatch.setattr(Graph, "session", marked)
    monkeypatch.setattr(timing, "latency", latency)


SLOW, FAST, WRONG = Marked("slow", 9.0, 0.8), Marked("fast", 4.0, 0.795), Marked("wrong", 1.0, 0.5)


@pytest.mark.usefixtures("_clock")
def test_the_fastest_of_those_that_are_good_enough_is_taken(tabular: Graph, rows: Rows) -> None:
    best = Best((SLOW, FAST, WRONG, Failing()), metric="auc", at_most_loss=0.01)
    choice = best.choose(tabular, lambda: [rows(0), rows(20)], quality)
    assert choice.name == "fast"
    assert mark(choice.graph) == (4.0, 0.795)
    found = {metric.name: metric for metric in choice.report}
    assert found["fast/chosen"].value == 1
    assert {found[f"{name}/chosen"].value for name in ("slow", "wrong", "failing")} == {0}
    assert found["fast/chosen"].repeatable, "it is a fact of the bundle"
    assert found["fast/batch64_ms"].value == 4 * 64
    assert not found["fast/batch64_ms"].repeatable
    assert found["wrong/auc"].value == 0.5
    assert set(choice.refused) == {"wrong", "failing"}
    assert "auc 0.5 after 0.8, allowed: 0.01 worse" in choice.refused["wrong"]


@pytest.mark.usefixtures("_clock")
def test_what_is_no_faster_or_too_much_worse_leaves_the_graph(tabular: Graph, rows: Rows) -> None:
    barely = Marked("barely", 9.7, 0.8)
    best = Best((barely, WRONG), metric="auc", at_most_loss=0.01)
    choice = best.choose(tabular, lambda: [rows(20)], quality)
    assert choice.name is None
    assert choice.graph is tabular
    none = Best((WRONG,), metric="auc", at_most_loss=0.01)
    assert none.choose(tabular, lambda: [rows(20)], quality).graph is tabular


@pytest.mark.usefixtures("_clock")
def test_a_smaller_figure_is_worse_or_better_as_it_is_known_or_said(
    tabular: Graph, rows: Rows
) -> None:
    def chosen(**options: Any) -> str | None:
        best = Best((FAST,), at_most_loss=0.001, **options)
        return best.choose(tabular, lambda: [rows(20)], quality).name

    assert chosen(metric="auc") is None  # it fell by 0.005
    assert chosen(metric="rmse") is None  # it rose
    assert chosen(metric="rmse", larger=True) == "fast"
    with pytest.raises(ValueError, match=r"Best\.larger of 'churn'"):
        Best((FAST,), metric="churn", at_most_loss=0.1)
    with pytest.raises(ValueError, match="unknown metric 'auc/late'"):
        chosen(metric="auc/late")


@pytest.mark.usefixtures("_clock")
def test_a_bound_of_a_probe_also_rules_a_candidate_out(tabular: Graph, rows: Rows) -> None:
    best = Best((WRONG,), metric="rmse", at_most_loss=1.0)
    choice = best.choose(tabular, lambda: [rows(20)], quality)
    assert "auc 0.5 (at least 0.7)" in choice.refused["wrong"]


def test_a_pinned_candidate_is_taken_unmeasured(tabular: Graph, rows: Rows) -> None:
    best = Best((SLOW, (FAST, Optimize())), metric="auc", at_most_loss=0.0, pin="slow")
    assert best.name == "slow"
    assert mark(best(tabular, lambda: [rows(20)])) == (9.0, 0.8)
    free = Best(best.passes, metric="auc", at_most_loss=0.0)
    with pytest.raises(ValueError, match=r"Best\.pin: found None"):
        free(tabular, lambda: [rows(20)])
    with pytest.raises(ValueError, match=r"unknown candidate 'fasst'.*optimize-extended, slow"):
        Best(best.passes, metric="auc", at_most_loss=0.0, pin="fasst")


def test_equal_names_are_told_apart_and_wrong_options_named() -> None:
    best = Best((Quantize(), Quantize(per_channel=True)), metric="auc", at_most_loss=0.1)
    assert list(best.chains) == ["int8", "int8-2"]
    assert best.chains["int8-2"] == (Quantize(per_channel=True),)
    with pytest.raises(ValueError, match=r"Best\.passes"):
        Best((), metric="auc", at_most_loss=0.1)
    with pytest.raises(ValueError, match=r"Best\.at_most_loss"):
        Best((FAST,), metric="auc", at_most_loss=-0.1)


@pytest.mark.usefixtures("_clock")
def test_applied_it_reports_all_that_was_tried_and_what_it_cost(tabular: Graph, rows: Rows) -> None:
    heard: list[Emitted] = []
    best = Best((SLOW, FAST, WRONG), metric="auc", at_most_loss=0.01)
    graph, report = apply(tabular, [best], quality, lambda: [rows(20)], heard.append)
    assert mark(graph) == (4.0, 0.795)
    found = {metric.name: metric.value for metric in report}
    assert found["compress/best/fast/chosen"] == 1
    assert found["compress/best/wrong/auc"] == 0.5
    assert found["compress/best/before_auc"] == 0.8
    assert found["compress/best/after_auc"] == 0.795
    assert found["compress/best/kept"] == 1
    assert [h for h in heard if isinstance(h, Metric)] == report
    said = [h.text for h in heard if isinstance(h, Note)]
    assert any("wrong is no candidate" in text for text in said)
    assert any("pin='fast' takes it on every other" in text for text in said)
    stays = Best((WRONG,), metric="auc", at_most_loss=0.0)
    graph, report = apply(tabular, [stays], quality, lambda: [rows(20)])
    assert graph is tabular
    assert not any(metric.name == "compress/best/kept" for metric in report)


def test_a_real_choice_is_one_of_the_candidates(tabular: Graph, rows: Rows) -> None:
    """Which one is the machine's matter; that it is measured and recorded is not."""
    passes = (Quantize(calibration_rows=100), (Quantize(calibration_rows=100), Optimize()))
    best = Best(passes, metric="auc", at_most_loss=0.0)
    choice = best.choose(tabular, lambda: [rows(100)], quality)
    chosen = {m.name: m.value for m in choice.report if m.name.endswith("/chosen")}
    assert set(chosen) == {"int8/chosen", "int8+optimize-extended/chosen"}
    assert sum(chosen.values()) == (choice.name is not None)
    assert all(m.value > 0 for m in choice.report if m.name.endswith("_ms"))


@pytest.mark.usefixtures("_clock")
def test_a_model_in_eight_bits_is_a_candidate_of_the_best_behind_it(
    tabular: Graph, rows: Rows
) -> None:
    def candidates(made: Graph) -> set[str]:
        best = Best((SLOW, FAST), metric="auc", at_most_loss=0.01)
        _, report = apply(tabular, [Given("quantize", made), best], quality, lambda: [rows(20)])
        names = [metric.name.split("/") for metric in report]
        return {name[2] for name in names if name[1] == "best" and name[-1] == "chosen"}

    eight = Quantize(calibration_rows=20)(tabular, lambda: [rows(20)])
    assert candidates(eight) == {"quantize", "slow", "fast"}
    assert candidates(tabular) == {"slow", "fast"}
    pinned = Best((SLOW,), metric="auc", at_most_loss=0.0, pin="quantize")
    graph, _ = apply(tabular, [Given("quantize", eight), pinned], quality, lambda: [rows(20)])
    assert graph is eight
    with pytest.raises(
        ValueError, match=r"Best.pin: found 'quantize', allowed: slow: the strategy"
    ):
        apply(tabular, [pinned], quality, lambda: [rows(20)])
