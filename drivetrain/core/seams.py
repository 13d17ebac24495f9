"""The seven protocols between the stages; whoever implements one enters the pipeline."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from drivetrain.core.metric import Emit, Metric, silent
from drivetrain.core.schema import FeatureField, FeatureSchema, Schema
from drivetrain.core.world import World

if TYPE_CHECKING:
    from torch import nn

    from drivetrain.core.batch import Array, Batch
    from drivetrain.core.bundle import Bundle
    from drivetrain.core.graph import Graph
    from drivetrain.core.job import Job
    from drivetrain.core.measured import Fitted
    from drivetrain.core.statistic import Statistic

Split = Literal["train", "validate", "test"]
SPLITS: tuple[Split, ...] = ("train", "validate", "test")


@dataclass(frozen=True)
class Shard:
    """Which part of a split one worker reads: part ``index`` of ``count`` disjoint ones."""

    index: int = 0
    count: int = 1


@dataclass(frozen=True)
class Order:
    """A shuffle that is the same whenever seed and epoch are."""

    seed: int = 0
    epoch: int = 0


@runtime_checkable
class Source(Protocol):
    """Where rows come from: a table, a topic, a sampler, a rollout, a robot's log."""

    @property
    def schema(self) -> Schema:
        """The columns of every batch."""
        ...

    def batches(self, split: Split, shard: Shard = Shard()) -> Iterator["Batch"]:
        """The rows of one shard of a split, in a fixed order, never all at once in memory."""
        ...


@runtime_checkable
class Tabular(Source, Protocol):
    """A source whose rows lie in Parquet files, so that an engine may read them by itself."""

    def files(self, split: Split) -> Sequence[str]:
        """The files that hold a split, in order."""
        ...


class Examples(Protocol):
    """Model inputs and targets: a source seen through the feature graph.

    This is what a strategy trains on. A batch has the columns of ``features.tensors`` and one
    for each target.
    """

    @property
    def events(self) -> Source:
        """The source underneath, for strategies that speak to it (a rollout, a sampler)."""
        ...

    @property
    def features(self) -> FeatureSchema:
        """What the model's inputs are."""
        ...

    @property
    def targets(self) -> Schema:
        """The columns that the loss sees and the server never does."""
        ...

    def rows(self, split: Split) -> int | None:
        """How many rows a split has, or None where nobody can know."""
        ...

    def batches(
        self,
        split: Split,
        shard: Shard = Shard(),
        *,
        size: int,
        order: Order | None = None,
        start: int = 0,
    ) -> Iterator["Batch"]:
        """Batches of ``size`` rows (the last may be smaller).

        Where the rows can be counted, all shards have equally many batches, so that workers that
        wait for one another never wait in vain; the last one of a shard may then have no rows.

        Args:
            split: which rows.
            shard: which part of them.
            size: rows a batch, of all shards together.
            order: a seeded shuffle; None keeps the source's order.
            start: how many rows to skip, of all shards together, for resuming in the middle of
                an epoch.
        """
        ...


class Addressable(Examples, Protocol):
    """Examples whose rows have numbers, for strategies that draw rows instead of going round."""

    def take(self, split: Split, rows: "Array") -> "Batch":
        """The rows of these numbers, from 0 to below ``rows(split)``, in the order given.

        Args:
            split: which rows.
            rows: int64 ``[n]``; may be empty.
        """
        ...


@runtime_checkable
class Feature(Protocol):
    """Raw columns to one tensor: what must be known of the data, then nodes of a graph.

    A feature is row-wise: what it gives for a row depends on that row and the statistics only.
    """

    @property
    def name(self) -> str:
        """The feature's name, unique within a system."""
        ...

    @property
    def columns(self) -> tuple[str, ...]:
        """The raw columns that it reads."""
        ...

    def statistics(self) -> Sequence["Statistic"]:
        """What must be known of the training rows; values merge over shards and engines."""
        ...

    def field(self, schema: Schema, fitted: "Fitted") -> FeatureField:
        """What the feature gives a model.

        Raises:
            ValueError: a column is absent or of a type that the feature can't take.
        """
        ...

    def nodes(self, graph: Any, schema: Schema, fitted: "Fitted") -> str:
        """Add the feature's nodes to a graph builder; returns the name of its output tensor."""
        ...


class Engine(Protocol):
    """Computes statistics over a source's training rows: DuckDB, Spark, a federation."""

    def aggregate(
        self, source: Source, statistics: Sequence["Statistic"], emit: Emit = silent
    ) -> "Fitted":
        """The value of each statistic over the split ``train``, in one pass."""
        ...


@dataclass(frozen=True, kw_only=True)
class Run:
    """What the pipeline lends a strategy for one training.

    Attributes:
        directory: the strategy's own; what it writes there survives a restart of this very
            training and of no other, so that a checkpoint found there is one to resume from.
        emit: where measurements go. A repeatable metric without a step is a figure of the whole
            training, and stands in the bundle's manifest.
        device: where tensors live, as torch names it.
        world: the processes that run this training together; each calls ``fit``, with the same
            directory where they share a disk.
    """

    directory: Path
    emit: Emit = silent
    device: str = "cpu"
    world: World = World()


@dataclass(frozen=True)
class Reduced:
    """A fitted model that was then made smaller, beside what it was.

    The pipeline measures one against the other, as it does for a ``Pass``, and goes on with the
    one before where the smaller one breaks a bound.

    Attributes:
        model: the smaller one, fitted again.
        before: the one that it was made from.
        name: the name under which its figures appear, such as ``prune``.
    """

    model: "nn.Module"
    before: "nn.Module"
    name: str


class Strategy(Protocol):
    """Fits a model on examples: Single, AllReduce, FedAvg, PPO.

    A strategy whose models are no torch modules also has ``build(factory, features, seed)``, which
    makes what ``fit`` is given, and answers a ``Graph``. It may further have

    - ``predictions(outputs)``: named predictions, rows first, from what a module answers: part of
      the served graph, where a classifier's logits become a probability. Without it the module's
      outputs are served under their own names;
    - ``own_model``: True where the strategy is the model itself (ALS), so that a system declares
      none;
    - ``columns``: raw columns that its graph takes beside the features' tensors;
    - ``reads``: targets that it reads from ``source.events`` itself, whose batches have the rows
      of the examples in the same order. They may be text, and are not among the examples' own;
    - ``tables``: sources that it reads beside the events, such as attributes of items: a change of
      their files trains anew.
    """

    def fit(self, model: "nn.Module", source: Examples, run: Run) -> "nn.Module | Graph | Reduced":
        """The fitted model (the one given, or another of the same inputs and outputs).

        A graph instead takes ``source.features.tensors`` and gives named predictions.
        """
        ...


class Pass(Protocol):
    """Makes a graph smaller or faster: Quantize, Prune, Optimize."""

    @property
    def name(self) -> str:
        """The name under which its figures appear, such as ``int8``."""
        ...

    def __call__(self, graph: "Graph", calibration: Callable[[], Iterable["Batch"]]) -> "Graph":
        """The changed graph.

        Args:
            graph: raw columns to predictions.
            calibration: gives batches of raw validation rows, anew at each call.
        """
        ...


class Probe(Protocol):
    """Measures a bundle: quality, calibration, latency, drift."""

    def __call__(self, bundle: "Bundle", batches: Iterable["Batch"]) -> Sequence[Metric]:
        """Metrics, each with the bound that it must keep, if any.

        Args:
            bundle: what is measured.
            batches: raw rows with their targets.
        """
        ...


class Launcher(Protocol):
    """Starts jobs: local processes, Slurm, Kubernetes, Ray."""

    def render(self, job: "Job") -> str:
        """What would run, as text for a person or another program; pure."""
        ...

    def start(self, job: "Job") -> int:
        """Run the job to its end; its exit status."""
        ...


ModelFactory = Callable[..., "nn.Module"]
"""Makes a model; called with the :class:`FeatureSchema`, or with nothing if it takes nothing."""
