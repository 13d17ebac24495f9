"""Tries several passes and takes the one that is fastest here and still good enough."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from drivetrain.core.errors import unknown, wrong
from drivetrain.core.metric import Metric

if TYPE_CHECKING:
    from drivetrain.core.batch import Batch
    from drivetrain.core.graph import Graph
    from drivetrain.core.seams import Pass

LARGER: Mapping[str, bool] = {
    "auc": True,
    "accuracy": True,
    "log_loss": False,
    "rmse": False,
    "calibration_error": False,
}
"""Of which of this package's figures the larger one is the better one."""

GAIN = 0.05
"""How much faster a candidate must be than the graph as it is; clocks disagree on less."""

TRAINED = ("quantize", "prune-quantize")
"""Candidates that a training makes: its model in eight bits, by ``quantize=`` of a strategy."""

Quality = Callable[["Graph"], Mapping[str, Metric]]


@dataclass(frozen=True)
class Choice:
    """What was chosen, and what all candidates were measured to be.

    Attributes:
        name: of the candidate; None if the graph stays as it is.
        graph: what it made, or the graph as it was.
        report: metrics named ``{candidate}/…``.
        refused: for each candidate that is none, why.
    """

    name: str | None
    graph: "Graph"
    report: tuple[Metric, ...]
    refused: Mapping[str, str]


@dataclass(frozen=True)
class Best:
    """Of several passes the one whose graph is fastest, among those that cost little quality.

    Every candidate is made from the same graph, held against ``metric`` over the validation
    split, and timed at 1 and at 64 rows, all in turns, so that whatever else the machine does
    falls on each. The fastest has the least geometric mean of the two times as shares of the
    graph's own. If none is 5 % faster the graph stays.

    Which one that is depends on the machine. So the choice is recorded in the manifest
    (``compress/best/…/chosen``), and ``pin`` makes it part of the declaration: a pinned run
    measures no other candidate, and gives the same bundle on any machine.

    Where training made a model in eight bits (``quantize=`` of a strategy) and this is the first
    pass, that model is a candidate too, named ``quantize``, beside what the passes make of the
    model as it was.

    Attributes:
        passes: the candidates; a tuple among them is a chain, such as
            ``(Quantize("int8"), Optimize())``. Each goes by its passes' names joined by ``+``;
            of equal names the later ones get ``-2``, ``-3`` and so on.
        metric: a figure of the system's probes, such as ``auc``.
        at_most_loss: how much worse that figure may be than the graph's own, in its unit.
        larger: whether a larger figure is better; None knows it of this package's probes.
        pin: the name of the candidate to take, unmeasured against the others.
    """

    passes: "tuple[Pass | tuple[Pass, ...], ...]"
    metric: str = field(kw_only=True)
    at_most_loss: float = field(kw_only=True)
    larger: bool | None = field(default=None, kw_only=True)
    pin: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.passes, tuple) or not self.passes or () in self.passes:
            raise wrong("Best.passes", self.passes, "a tuple of passes, or of tuples of them")
        if not self.at_most_loss >= 0:
            raise wrong("Best.at_most_loss", self.at_most_loss, "a number of 0 or more")
        if self.larger is None and self._known is None:
            allowed = "True or False, for it is not known of other probes' figures"
            raise wrong(f"Best.larger of {self.metric!r}", None, allowed)
        if self.pin is not None and self.pin not in (*self.chains, *TRAINED):
            raise unknown("candidate", self.pin, self.chains, "Best.pin")

    @property
    def name(self) -> str:
        """``best``, or the name of the pinned candidate: it then is nothing but that."""
        return "best" if self.pin is None else self.pin

    @property
    def chains(self) -> "dict[str, tuple[Pass, ...]]":
        """The candidates by name."""
        found: dict[str, tuple[Pass, ...]] = {}
        for entry in self.passes:
            chain = entry if isinstance(entry, tuple) else (entry,)
            plain = name = "+".join(step.name for step in chain)
            number = 1
            while name in found:
                number += 1
                name = f"{plain}-{number}"
            found[name] = chain
        return found

    def __call__(self, graph: "Graph", calibration: "Callable[[], Iterable[Batch]]") -> "Graph":
        """What the pinned candidate makes.

        Raises:
            ValueError: none is pinned; :meth:`choose` also takes what it chooses by.
        """
        if self.pin is None:
            raise wrong("Best.pin", None, "a candidate; what is best is found by choose()")
        if self.pin not in self.chains:
            names = ", ".join(self.chains)
            raise wrong("Best.pin", self.pin, f"{names}: the strategy made no such model")
        return _made(self.chains[self.pin], graph, calibration)

    def choose(
        self, graph: "Graph", calibration: "Callable[[], Iterable[Batch]]", quality: Quality
    ) -> Choice:
        """Make, judge and time every candidate.

        Args:
            graph: raw columns to predictions.
            calibration: gives batches of raw validation rows, anew at each call.
            quality: the probes' figures of a graph over the validation split.

        Raises:
            ValueError: the probes measure no such figure, or there are no validation rows.
        """
        before = quality(graph)
        if self.metric not in before:
            raise unknown("metric", self.metric, before, "Best: the system's probes")
        made: dict[str, Graph] = {}
        report: list[Metric] = []
        refused: dict[str, str] = {}
        for name, chain in self.chains.items():
            try:
                candidate = _made(chain, graph, calibration)
            except ValueError as error:  # such as a graph without anything to quantize
                refused[name] = str(error)
                continue
            after = quality(candidate)
            report += _measured(name, candidate, after)
            why = self._refusal(before, after)
            if why:
                refused[name] = why
            else:
                made[name] = candidate
        shares, times = _timed(graph, made, calibration)
        report += times
        chosen = min(shares, key=lambda name: shares[name], default=None)
        if chosen is not None and shares[chosen] > 1 - GAIN:
            chosen = None
        report += [
            # A matter of the machine, and yet a fact of the bundle, which its manifest must tell.
            Metric(name=f"{name}/chosen", value=float(name == chosen))
            for name in self.chains
        ]
        graph = graph if chosen is None else made[chosen]
        return Choice(chosen, graph, tuple(report), refused)

    @property
    def _known(self) -> bool | None:
        """What is known of the metric; with several targets its name has one behind a slash."""
        return LARGER.get(self.metric, LARGER.get(self.metric.partition("/")[0]))

    def _refusal(self, before: Mapping[str, Metric], after: Mapping[str, Metric]) -> str:
        """Why a candidate is none; empty if it is one."""
        larger = self._known if self.larger is None else self.larger
        was, now = before[self.metric].value, after[self.metric].value
        loss = was - now if larger else now - was
        if not loss <= self.at_most_loss:  # also if it is no number any more
            return f"{self.metric} {now:.6g} after {was:.6g}, allowed: {self.at_most_loss:g} worse"
        broken = [m for n, m in after.items() if m.repeatable and not m.holds and before[n].holds]
        return "; ".join(map(str, broken))


def _made(
    chain: "Sequence[Pass]", graph: "Graph", calibration: "Callable[[], Iterable[Batch]]"
) -> "Graph":
    for step in chain:
        graph = step(graph, calibration)
    return graph


def _measured(name: str, candidate: "Graph", after: Mapping[str, Metric]) -> Iterator[Metric]:
    yield Metric(name=f"{name}/bytes", value=float(len(candidate.model)))
    for key, metric in after.items():
        yield Metric(name=f"{name}/{key}", value=metric.value, repeatable=metric.repeatable)


def _timed(
    graph: "Graph", made: "Mapping[str, Graph]", calibration: "Callable[[], Iterable[Batch]]"
) -> tuple[dict[str, float], list[Metric]]:
    """For each candidate its time as a share of the graph's own, and all times."""
    from drivetrain.compress.report import SIZES, latency

    if not made:
        return {}, []
    sample = next((batch for batch in calibration() if len(batch)), None)
    if sample is None:
        raise wrong("Best: validation rows", 0, "1 or more")
    sessions = [candidate.session(1) for candidate in (graph, *made.values())]
    times: list[Metric] = []
    logs = dict.fromkeys(made, 0.0)
    for size in SIZES:
        own, *others = latency(sessions, sample, size)
        for name, took in zip(made, others, strict=True):
            times.append(Metric(name=f"{name}/batch{size}_ms", value=took, repeatable=False))
            logs[name] += math.log(took / own) / len(SIZES)
    return {name: math.exp(log) for name, log in logs.items()}, times
