"""Passes one after another, each measured before and after, and refused where it breaks a bound."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from drivetrain.compress.best import Best, Quality
from drivetrain.compress.report import SIZES, compare
from drivetrain.core.errors import wrong
from drivetrain.core.metric import Emit, Metric, Note, silent

if TYPE_CHECKING:
    from drivetrain.core.batch import Batch
    from drivetrain.core.graph import Graph
    from drivetrain.core.seams import Pass

Rows = Callable[[], "Iterable[Batch]"]


@dataclass(frozen=True)
class Given:
    """A pass that was made elsewhere, such as a model that was pruned and trained again."""

    name: str
    graph: "Graph"

    def __call__(self, graph: "Graph", calibration: Rows) -> "Graph":
        """The graph that is there already."""
        return self.graph


def apply(
    graph: "Graph", passes: "Sequence[Pass]", quality: Quality, rows: Rows, emit: Emit = silent
) -> "tuple[Graph, list[Metric]]":
    """Apply each pass; one that breaks a bound is refused, and the graph before it goes on.

    For each there are metrics ``compress/{pass}/…``: the bytes, the milliseconds at 1 and 64
    rows and the probes' figures, each ``before_…`` and ``after_…``, how far the predictions are
    apart, and ``kept``.

    Args:
        graph: raw columns to predictions.
        passes: in order; a model in eight bits that was made elsewhere is a candidate of the
            ``Best`` that follows it, for nothing can be made of it any more.
        quality: the probes' figures of a graph over the validation split, by name.
        rows: gives batches of raw validation rows, anew at each call.
        emit: hears all figures, and what was refused.

    Raises:
        ValueError: there are no validation rows, or a pass can't take the graph.
    """
    report: list[Metric] = []
    before = quality(graph)
    sample = next((batch for batch in rows() if len(batch)), None)
    if sample is None:
        raise wrong("compress", "no validation rows", "a split with some, to measure passes on")
    for step in _with_candidates(passes):
        name = f"compress/{step.name}"
        if isinstance(step, Best) and step.pin is None:
            candidate, tried = _chosen(step, graph, quality, rows, emit)
            report += tried
            if candidate is graph:
                continue
        else:
            candidate = step(graph, rows)
        after = quality(candidate)
        # A time bounds promotion alone: a refusal by it would make the bundle a matter of chance.
        broken = [m for n, m in after.items() if m.repeatable and not m.holds and before[n].holds]
        found = [
            *compare(graph, candidate, [sample], name),
            *_both(name, before, after),
            Metric(name=f"{name}/kept", value=float(not broken)),
        ]
        report += found
        for metric in found:
            emit(metric)
        emit(Note(stage="compress", text=f"{step.name}: {_summary(name, found, after)}"))
        if broken:
            why = "; ".join(str(metric) for metric in broken)
            text = f"{step.name} is refused, the graph before it stays: {why}"
            emit(Note(stage="compress", text=text, warning=True))
        else:
            graph, before = candidate, after
    return graph, report


def _with_candidates(passes: "Sequence[Pass]") -> "Sequence[Pass]":
    """The passes, where a model in eight bits stands before a ``Best`` that one with it."""
    if len(passes) < 2:
        return passes
    made, best, *others = passes
    if not (isinstance(made, Given) and isinstance(best, Best)):
        return passes
    if not any(node.op_type == "QuantizeLinear" for node in made.graph.proto.graph.node):
        return passes
    return [replace(best, passes=(made, *best.passes)), *others]


def _chosen(
    step: Best, graph: "Graph", quality: Quality, rows: Rows, emit: Emit
) -> "tuple[Graph, list[Metric]]":
    """What the best candidate made, or the very graph; and what was measured of all of them."""
    choice = step.choose(graph, rows, quality)
    report = [replace(m, name=f"compress/{step.name}/{m.name}") for m in choice.report]
    for metric in report:
        emit(metric)
    for name, why in choice.refused.items():
        emit(Note(stage="compress", text=f"{step.name}: {name} is no candidate: {why}"))
    text = (
        f"{step.name}: no candidate is faster, the graph stays as it is"
        if choice.name is None
        else f"{step.name}: {choice.name} is the fastest on this machine; "
        f"pin={choice.name!r} takes it on every other"
    )
    emit(Note(stage="compress", text=text))
    return choice.graph, report


def _both(name: str, before: Mapping[str, Metric], after: Mapping[str, Metric]) -> Iterator[Metric]:
    for key, metric in after.items():
        for when, value in (("before", before[key].value), ("after", metric.value)):
            yield Metric(name=f"{name}/{when}_{key}", value=value, repeatable=metric.repeatable)


def _summary(name: str, found: Sequence[Metric], quality: Mapping[str, Metric]) -> str:
    """One line for a person: size, times and quality, before and after."""
    value = {metric.name.removeprefix(f"{name}/"): metric.value for metric in found}
    keys = [f"batch{size}_ms" for size in SIZES]
    keys += [key for key, metric in quality.items() if metric.repeatable]
    sizes = " → ".join(f"{value[f'{when}_bytes'] / 1024:.1f}" for when in ("before", "after"))
    parts = [f"{key} {value[f'before_{key}']:.4g} → {value[f'after_{key}']:.4g}" for key in keys]
    return ", ".join([f"{sizes} KiB", *parts])
