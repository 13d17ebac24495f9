"""Probes: what is measured of a bundle, and the bounds that gate its promotion."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from drivetrain.core.errors import unknown, wrong
from drivetrain.core.metric import Emit, Metric, Note
from drivetrain.core.seams import Probe
from drivetrain.watch.listener import stderr
from drivetrain.watch.off_policy import OffPolicy
from drivetrain.watch.ranking import Ranking

if TYPE_CHECKING:
    from drivetrain.core.batch import Batch
    from drivetrain.core.bundle import Bundle


class Measurement(Protocol):
    """A measurement under way: it is shown every batch once and then asked for its metrics."""

    @property
    def outputs(self) -> Sequence[str]:
        """The predictions that it wants to see."""
        ...

    def add(self, batch: "Batch", predictions: "Batch") -> None:
        """Take in raw rows with their targets, and what the bundle answers for them."""
        ...

    def finish(self) -> Sequence[Metric]:
        """The metrics of all rows seen; a figure that they do not define is NaN."""
        ...


@runtime_checkable
class Shared(Protocol):
    """A probe that shares one pass over the rows, and their predictions, with its like.

    A probe without ``begin`` is called as :class:`~drivetrain.core.seams.Probe` says and scores
    the rows by itself.
    """

    def begin(self, bundle: "Bundle") -> Measurement:
        """Start a measurement of ``bundle``.

        Raises:
            ValueError: the bundle has no such target or output.
        """
        ...


def evaluate(
    bundle: "Bundle",
    probes: Iterable[Probe],
    batches: Iterable["Batch"],
    prefix: str = "test/",
) -> list[Metric]:
    """Measure a bundle with all probes in one pass: rows are read once and scored once.

    Args:
        bundle: what is measured.
        probes: in the order of the metrics.
        batches: raw rows with their targets; a one-time iterator will do.
        prefix: says which rows these were. It goes before the name of every metric but those
            that are not repeatable: a time belongs to the machine and to no split.

    Raises:
        ValueError: a target or an output does not exist, or two probes measure one metric.
    """
    from drivetrain.watch.onepass import run

    found = run(bundle, list(probes), batches)
    named = [m if not m.repeatable else replace(m, name=prefix + m.name) for m in found]
    names = [metric.name for metric in named]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two probes measure {name!r}: remove one, or name another target.")
    return named


def declared(described: Iterable[Mapping[str, Any]], emit: Emit = stderr) -> list[Probe]:
    """The probes of a described system, such as a manifest holds.

    A probe from outside this package can't be made again from its description: ``emit`` hears
    of each that is left out.
    """
    probes: list[Probe] = []
    for description in described:
        values = dict(description)
        name = values.pop("type", None)
        kind = PROBES.get(str(name))
        if kind is None or not set(values) <= {field.name for field in fields(kind)}:
            text = f"probe {name!r} is not one of drivetrain's: it is left out, and so is its bound"
            emit(Note(stage="test", text=text, warning=True))
            continue
        tuples = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        probes.append(kind(**tuples))
    return probes


def _alone(probe: Shared, bundle: "Bundle", batches: Iterable["Batch"]) -> Sequence[Metric]:
    """Measure with one probe: how a shared one keeps the seam's own signature."""
    from drivetrain.watch.onepass import run

    return run(bundle, [probe], batches)  # pyright: ignore[reportArgumentType]


def pair(bundle: "Bundle", target: str | None, output: str | None, probe: str) -> tuple[str, str]:
    """The target and the output that a probe compares.

    Left out, the target is the bundle's only one, and the output the one of the target's name
    or else the only one.

    Raises:
        ValueError: a name does not exist (the error suggests the nearest), or there are several
            to choose from.
    """
    targets, outputs = bundle.manifest.targets.names, bundle.manifest.outputs.names
    if target is None:
        if len(targets) != 1:
            raise wrong(f"probe {probe}", targets, f"target= one of {', '.join(targets) or 'none'}")
        target = targets[0]
    elif target not in targets:
        raise unknown("target", target, targets, f"probe {probe}")
    if output is None and target not in outputs and len(outputs) == 1:
        output = outputs[0]
    output = target if output is None else output
    if output not in outputs:
        raise unknown("output", output, outputs, f"probe {probe}")
    return target, output


def _name(bundle: "Bundle", name: str, output: str) -> str:
    """A metric's name: with several targets, the output tells their metrics apart."""
    return name if len(bundle.manifest.targets) == 1 else f"{name}/{output}"


@dataclass(frozen=True)
class AUC:
    """Area under the ROC curve, exact: the share of pairs in order, ties by half.

    The rank statistic of Mann and Whitney (1947); rows without a target do not count. Labels are
    0 and 1. NaN where only one label occurs. Memory: the score and one byte for each row.

    Attributes:
        at_least: the bound that gates promotion.
        target: the column of labels; None takes the bundle's only target.
        output: the prediction; None takes the one of the target's name.
    """

    at_least: float | None = None
    target: str | None = None
    output: str | None = None

    def begin(self, bundle: "Bundle") -> Measurement:
        """Start ranking."""
        from drivetrain.watch import quality

        target, output = pair(bundle, self.target, self.output, "AUC")
        name = _name(bundle, "auc", output)
        return quality.Ranking(
            target, output, lambda v: Metric(name=name, value=v, at_least=self.at_least)
        )

    def __call__(self, bundle: "Bundle", batches: Iterable["Batch"]) -> Sequence[Metric]:
        """The metric ``auc``."""
        return _alone(self, bundle, batches)


@dataclass(frozen=True)
class LogLoss:
    """Mean negative log-likelihood in nats, of labels 0 and 1 or of class numbers.

    Probabilities are kept away from 0 and 1 by the machine epsilon of their type, as
    scikit-learn's ``log_loss`` does.

    Attributes:
        at_most: the bound that gates promotion.
        target: the column of labels; None takes the bundle's only target.
        output: one probability a row, or one for each class.
    """

    at_most: float | None = None
    target: str | None = None
    output: str | None = None

    def begin(self, bundle: "Bundle") -> Measurement:
        """Start summing."""
        from drivetrain.watch.quality import LogLikelihood

        target, output = pair(bundle, self.target, self.output, "LogLoss")
        name = _name(bundle, "log_loss", output)
        return LogLikelihood(
            target, output, lambda v: Metric(name=name, value=v, at_most=self.at_most)
        )

    def __call__(self, bundle: "Bundle", batches: Iterable["Batch"]) -> Sequence[Metric]:
        """The metric ``log_loss``."""
        return _alone(self, bundle, batches)


@dataclass(frozen=True)
class Accuracy:
    """The share of rows whose likeliest class is the target.

    Attributes:
        at_least: the bound that gates promotion.
        target: the column of labels; None takes the bundle's only target.
        output: one probability a row, or one score for each class.
        threshold: from which probability on a single one says 1.
    """

    at_least: float | None = None
    target: str | None = None
    output: str | None = None
    threshold: float = 0.5

    def begin(self, bundle: "Bundle") -> Measurement:
        """Start counting."""
        from drivetrain.watch.quality import Hits

        target, output = pair(bundle, self.target, self.output, "Accuracy")
        name = _name(bundle, "accuracy", output)
        return Hits(
            target,
            output,
            lambda v: Metric(name=name, value=v, at_least=self.at_least),
            self.threshold,
        )

    def __call__(self, bundle: "Bundle", batches: Iterable["Batch"]) -> Sequence[Metric]:
        """The metric ``accuracy``."""
        return _alone(self, bundle, batches)


@dataclass(frozen=True)
class Calibration:
    """Expected calibration error: how far stated probabilities lie from observed shares.

    The mean over bins, by rows, of |mean probability - share of ones| (Naeini, Cooper and
    Hauskrecht 2015), in bins of equal mass (Nguyen and O'Connor 2015); equal scores stay in one
    bin, so that the order of the rows does not matter. With several classes: of the likeliest
    one (Guo et al. 2017).

    Attributes:
        at_most: the bound that gates promotion.
        bins: how many.
        target: the column of labels; None takes the bundle's only target.
        output: one probability a row, or one for each class.
    """

    at_most: float | None = None
    bins: int = 15
    target: str | None = None
    output: str | None = None

    def __post_init__(self) -> None:
        if self.bins < 1:
            raise wrong("Calibration.bins", self.bins, "1 or more")

    def begin(self, bundle: "Bundle") -> Measurement:
        """Start collecting."""
        from drivetrain.watch.quality import Reliability

        target, output = pair(bundle, self.target, self.output, "Calibration")
        name = _name(bundle, "calibration_error", output)
        return Reliability(
            target,
            output,
            lambda v: Metric(name=name, value=v, at_most=self.at_most),
            self.bins,
        )

    def __call__(self, bundle: "Bundle", batches: Iterable["Batch"]) -> Sequence[Metric]:
        """The metric ``calibration_error``."""
        return _alone(self, bundle, batches)


@dataclass(frozen=True)
class RMSE:
    """Root mean square error, in the target's unit.

    Attributes:
        at_most: the bound that gates promotion.
        target: the column of numbers; None takes the bundle's only target.
        output: the prediction; None takes the one of the target's name.
    """

    at_most: float | None = None
    target: str | None = None
    output: str | None = None

    def begin(self, bundle: "Bundle") -> Measurement:
        """Start summing."""
        from drivetrain.watch.quality import SquaredError

        target, output = pair(bundle, self.target, self.output, "RMSE")
        name = _name(bundle, "rmse", output)
        return SquaredError(
            target, output, lambda v: Metric(name=name, value=v, at_most=self.at_most)
        )

    def __call__(self, bundle: "Bundle", batches: Iterable["Batch"]) -> Sequence[Metric]:
        """The metric ``rmse``."""
        return _alone(self, bundle, batches)


@dataclass(frozen=True)
class Latency:
    """How long the bundle's graph takes from raw columns to predictions, on one thread.

    The rows are real ones, another group for each run as far as the first batches go. Neither
    the network nor the parsing of requests is in it: the server's own histogram has those.

    Attributes:
        p50_ms: the bound of the median, in milliseconds.
        p99_ms: the bound of the 99th percentile, in milliseconds.
        rows: how many go through the graph at once.
        repeats: timed runs, after a tenth as many that are not.
        seconds: after which no further run starts, once 100 were timed.
    """

    p50_ms: float | None = None
    p99_ms: float | None = None
    rows: int = 1
    repeats: int = 1000
    seconds: float = 5.0

    def __post_init__(self) -> None:
        for name in ("rows", "repeats"):
            if getattr(self, name) < 1:
                raise wrong(f"Latency.{name}", getattr(self, name), "1 or more")

    def begin(self, bundle: "Bundle") -> Measurement:
        """Start collecting rows; the clock runs in the end."""
        from drivetrain.watch.timing import Timing

        return Timing(bundle, self.rows, self.repeats, self.seconds, self.p50_ms, self.p99_ms)

    def __call__(self, bundle: "Bundle", batches: Iterable["Batch"]) -> Sequence[Metric]:
        """The metrics ``latency/p50_ms`` and ``latency/p99_ms``, which no run repeats."""
        return _alone(self, bundle, batches)


@dataclass(frozen=True)
class Drift:
    """How far the rows lie from those that the bundle was fitted on, column by column.

    The population stability index; see :mod:`drivetrain.watch.drift`. Every column is measured
    of which the bundle holds quantiles or counts, and the predictions where it holds theirs.

    Attributes:
        at_most: the bound of each column; 0.1 is commonly read as some drift, 0.25 as much.
        columns: only these; empty takes all.
        ignore: columns that move on by nature, such as the month.
        bins: how many a numeric column is cut into.
    """

    at_most: float | None = 0.25
    columns: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    bins: int = 10

    def begin(self, bundle: "Bundle") -> Measurement:
        """Start sketching."""
        from drivetrain.watch.drift import DriftMeasurement

        return DriftMeasurement(bundle, self.columns, self.ignore, self.bins, self.at_most)

    def __call__(self, bundle: "Bundle", batches: Iterable["Batch"]) -> Sequence[Metric]:
        """The metrics ``drift/psi/COLUMN``."""
        return _alone(self, bundle, batches)


PROBES: Mapping[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        AUC,
        LogLoss,
        Accuracy,
        Calibration,
        RMSE,
        Latency,
        Drift,
        OffPolicy,
        Ranking,
    )
}
