"""The strategy for embedding tables larger than one process."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from drivetrain.core.errors import unknown, wrong
from drivetrain.core.schema import FeatureSchema
from drivetrain.core.seams import Examples, Reduced, Run
from drivetrain.train.all_reduce import AllReduce

if TYPE_CHECKING:
    from torch import nn

    from drivetrain.train.checkpoints.resume import Keep
    from drivetrain.train.loop.ending import Ending
    from drivetrain.train.loop.loop import Callback, Loop
    from drivetrain.train.loop.step import Exchange, Step
    from drivetrain.train.loop.validate import Validate
    from drivetrain.train.rows.remote_tables import RemoteTables
    from drivetrain.train.together.group import Group

ROW_OPTIMIZERS = ("rowwise_adagrad", "adagrad", "adam", "sgd")


@dataclass(frozen=True, kw_only=True)
class ParameterServer(AllReduce):
    """Trains large tables on servers, and all other weights as :class:`AllReduce` does.

    Every process is a worker and serves its share of the rows of each large table, so there is one
    role and its number is the site's. The other weights are small and needed whole by every batch:
    they are replicated and their gradients summed. A row comes to exist when it is first seen, with
    a value drawn from its id; an id that training never saw is served the mean of such values.

    Source: Li et al., Scaling Distributed Machine Learning with the Parameter Server, OSDI 2014;
    bounded staleness as in Ho et al., More Effective Distributed ML via a Stale Synchronous
    Parallel Parameter Server, NIPS 2013.

    Attributes:
        at_least: rows of a table that lives on the servers; smaller ones are like other weights.
        staleness: how many updates the rows that a batch sees may lack. 0 is the same training as
            in one process; from 1 on rows travel while the batch before computes.
        row_optimizer: of the rows: ``rowwise_adagrad`` (one number a row), ``adagrad``, ``adam``
            (moments of a row rest while it has no gradient) or ``sgd``.
        row_lr: the learning rate of rows, which follows ``schedule``; None takes ``lr``.
    """

    at_least: int = 100_000
    staleness: int = 0
    row_optimizer: Literal["rowwise_adagrad", "adagrad", "adam", "sgd"] = "rowwise_adagrad"
    row_lr: float | None = None
    wait_seconds: float = field(default=60.0, metadata={"declared": False})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.row_optimizer not in ROW_OPTIMIZERS:
            raise unknown("ParameterServer.row_optimizer", self.row_optimizer, ROW_OPTIMIZERS)
        if self.at_least < 1:
            raise wrong("ParameterServer.at_least", self.at_least, "an integer of at least 1")
        if self.staleness < 0:
            raise wrong("ParameterServer.staleness", self.staleness, "an integer of 0 or more")
        if self.row_lr is not None and not self.row_lr > 0:
            raise wrong("ParameterServer.row_lr", self.row_lr, "a number above 0, or None")
        for name in ("average", "early_stopping", "clip_norm"):
            if getattr(self, name) is not None:
                why = "None: it would need all rows at once, and servers hold them"
                raise wrong(f"ParameterServer.{name}", getattr(self, name), why)
        if self.embedding_decay:
            why = "0: a row that a batch does not see is not touched"
            raise wrong("ParameterServer.embedding_decay", self.embedding_decay, why)

    def build(
        self, factory: "Callable[..., nn.Module]", features: FeatureSchema, seed: int = 0
    ) -> "nn.Module":
        """The model, whose large tables take no memory.

        Args:
            factory: as :func:`drivetrain.models.bind.build` takes it.
            features: the fitted features.
            seed: of the initial weights.

        Raises:
            ValueError: a large table can't live on servers.
        """
        from drivetrain.models.bind import build
        from drivetrain.train.rows.remote_embedding import Unmade, replace_tables

        unmade = Unmade(self.at_least)
        with unmade:
            model = build(factory, features, seed)
        replace_tables(model, self.at_least, unmade)
        return model

    def fit(self, model: "nn.Module", source: Examples, run: Run) -> "nn.Module | Reduced":
        """As :meth:`Single.fit`; the leader's model gets the trained rows.

        Args:
            model: from :meth:`build`, or one whose large tables have their values.
            source: examples.
            run: a directory that all processes share, listeners, a device and the world.

        Returns:
            The model; in processes other than the leader its large tables have no trained rows.

        Raises:
            ConnectionError: a worker or a server of rows is missing; names it.
            ValueError: the rows that training saw don't fit into one graph.
        """
        from drivetrain.train.rows.remote_embedding import replace_tables

        replace_tables(model, self.at_least)
        try:
            return super().fit(model, source, run)
        finally:
            with suppress(LookupError):
                _tables(model).close()

    def _assemble(
        self,
        model: "nn.Module",
        source: Examples,
        run: Run,
        group: "Group",
        ending: "Ending",
    ) -> "tuple[Loop, Keep, Validate]":
        from drivetrain.train.rows.exchange import Foreseen
        from drivetrain.train.rows.optimizers import ROW_OPTIMIZERS
        from drivetrain.train.rows.remote_embedding import RemoteEmbedding
        from drivetrain.train.rows.remote_tables import RemoteTables

        if any(isinstance(module, RemoteEmbedding) for module in model.modules()):
            tables = RemoteTables(
                model,
                group,
                run.world,
                run.directory,
                optimizer=ROW_OPTIMIZERS[self.row_optimizer](self.betas),
                seed=self.seed,
                staleness=self.staleness,
                seconds=self.wait_seconds,
            )
            source = Foreseen(source, tables, self.accumulate)
        return super()._assemble(model, source, run, group, ending)

    def _exchange(self, model: "nn.Module", group: "Group") -> "Exchange | None":
        from drivetrain.train.rows.exchange import RowExchange

        inner = super()._exchange(model, group)
        try:
            tables = _tables(model)
        except LookupError:
            return inner
        factor = 1.0 if self.row_lr is None else self.row_lr / self.lr
        return RowExchange(tables, inner, lambda rate: rate * factor)

    def _first_callbacks(self, step: "Step", group: "Group") -> "tuple[Callback, ...]":
        from drivetrain.train.rows.exchange import RowExchange

        if isinstance(step.exchange, RowExchange):
            step.exchange.step = step
        return super()._first_callbacks(step, group)

    def _final_weights(self, step: "Step", validate: "Validate") -> None:
        from drivetrain.train.rows.exchange import RowExchange

        super()._final_weights(step, validate)
        if isinstance(step.exchange, RowExchange):
            step.exchange.finished()

    def _fitted(self, model: "nn.Module", run: Run, group: "Group") -> "nn.Module":
        from drivetrain.train.rows.gathered import gathered
        from drivetrain.train.rows.remote_embedding import RemoteEmbedding, put_module

        try:
            tables = _tables(model)
        except LookupError:
            return model
        snapshots = tables.snapshots
        paths = snapshots.final() if group.rank == 0 else []
        modules: list[Any] = gathered(snapshots, tables.shapes, paths)
        for path, module in list(model.named_modules(remove_duplicate=False)):
            if isinstance(module, RemoteEmbedding):
                put_module(model, path, modules[module.number].to(run.device))
        tables.close()
        if group.rank == 0:
            snapshots.forget()
        return model


def _tables(model: "nn.Module") -> "RemoteTables":
    """What joins a model with its servers.

    Raises:
        LookupError: it has no table on a server.
    """
    from drivetrain.train.rows.remote_embedding import RemoteEmbedding

    for module in model.modules():
        if isinstance(module, RemoteEmbedding) and module.tables is not None:
            return module.tables
    raise LookupError("no table of this model is on a server")
