"""The declaration: what a system is, and never where it runs."""

import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from drivetrain.core.describe import describe, digest
from drivetrain.core.errors import unknown, wrong
from drivetrain.core.schema import Schema, check_served
from drivetrain.core.seams import Feature, ModelFactory, Pass, Probe, Source, Strategy

BLOCKS = ("dense", "index")
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class System:
    """One machine-learning system, from events to probes.

    Attributes:
        name: lower-case letters, digits and dashes; the bundle's and the default alias' name.
        events: where rows come from, with their cleaning, joins and split.
        features: raw columns to model inputs.
        model: a factory of ``nn.Module``, called with the fitted ``FeatureSchema`` (or with
            nothing); a declaration holds no live object. None where the strategy is the model.
        targets: the columns that the loss sees and the server never does.
        train: the strategy.
        compress: passes over the exported graph, in order.
        probes: what is measured on the test split; their bounds gate promotion.
    """

    name: str
    events: Source
    features: tuple[Feature, ...]
    model: ModelFactory | None = None
    targets: tuple[str, ...]
    train: Strategy
    compress: tuple[Pass, ...] = ()
    probes: tuple[Probe, ...] = ()

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise wrong("System.name", self.name, "a-z, 0-9 and dashes, no dash first, 64 at most")
        for attribute in ("features", "targets", "compress", "probes"):
            value = getattr(self, attribute)
            if not isinstance(value, tuple):
                raise wrong(f"System.{attribute}", value, "a tuple, such as (x,) for a single one")
        if not self.features:
            raise wrong("System.features", (), "at least one feature")
        for target in self.targets:
            if target in BLOCKS:
                raise ValueError(
                    f"target {target!r}: that is the name of a block of features; give the column "
                    f"another one with .rename(…={target!r})."
                )
        names = [feature.name for feature in self.features]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"feature {name!r} is declared twice: give one another name=.")
            if name in (*BLOCKS, *self.targets):
                taken = ", ".join((*BLOCKS, *self.targets))
                raise ValueError(f"feature {name!r}: that name is taken; taken are {taken}.")
        readers = [(f"feature {feature.name!r}", feature.columns) for feature in self.features]
        strategy = type(self.train).__name__
        for reader, columns in (*readers, (strategy, self._columns_of_strategy)):
            for column in columns:
                if column in self.targets:
                    raise ValueError(
                        f"{reader} reads {column!r}, which is a target: the server would not "
                        "have it."
                    )
        for part in (self.train, getattr(self.train, "loss", None)):
            target = getattr(part, "target", None)
            if isinstance(target, str) and target not in self.targets:
                raise unknown("target", target, self.targets, type(part).__name__)
        for target in getattr(self.train, "reads", ()):
            if target not in self.targets:
                raise unknown("target", target, self.targets, strategy)
        if (self.model is None) != bool(getattr(self.train, "own_model", False)):
            allowed = f"none, for {strategy} is the model" if self.model else "a factory"
            raise wrong("System.model", self.model, allowed)
        if self.model is not None:
            check_forward(self.model, names)

    @property
    def columns(self) -> tuple[str, ...]:
        """The raw columns that the server takes, each once, in order of first use."""
        read = [c for feature in self.features for c in feature.columns]
        return tuple(dict.fromkeys([*read, *self._columns_of_strategy]))

    @property
    def _columns_of_strategy(self) -> tuple[str, ...]:
        return tuple(getattr(self.train, "columns", ()))

    @property
    def digest(self) -> str:
        """SHA-256 of the declaration, the source of its functions and modules included."""
        return digest(self.describe())

    def describe(self) -> dict[str, Any]:
        """The declaration as plain data."""
        return describe(self)

    def check(self, schema: Schema) -> None:
        """Hold the declaration against the columns that the events have.

        Raises:
            ValueError: a feature or a target names a column that is not there; the error
                suggests the nearest. Or no request could bring a column under its name.
        """
        for feature in self.features:
            where = f"feature {type(feature).__name__}({feature.name!r})"
            for column in feature.columns:
                schema.field(column, where)
        for column in self._columns_of_strategy:
            schema.field(column, type(self.train).__name__)
        for target in self.targets:
            schema.field(target, "targets")
        check_served(self.columns)


def check_forward(model: ModelFactory, features: Iterable[str]) -> None:
    """Check that a module's ``forward`` names features, or the blocks of them.

    Only a class with a ``forward``, or a ``functools.partial`` of one, can be checked; what
    another factory makes is checked when it is made.

    Raises:
        ValueError: a required parameter of ``forward`` is no feature and no block, or no
            parameter takes a feature.
    """
    while isinstance(model, partial):
        model = model.func
    forward = getattr(model, "forward", None)
    if forward is None:
        return
    names = tuple(features)
    allowed = [*BLOCKS, *names]
    where = f"{getattr(model, '__name__', type(model).__name__)}.forward"
    parameters = inspect.signature(forward).parameters
    for name, parameter in parameters.items():
        open_ended = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if name == "self" or open_ended or parameter.default is not parameter.empty:
            continue
        if name not in allowed:
            raise unknown("feature", name, allowed, where)
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    unused = [name for name in names if name not in parameters]
    if unused and not takes_all and not set(BLOCKS) & set(parameters):
        taken = ", ".join(name for name in parameters if name != "self")
        raise ValueError(
            f"{where}: no parameter takes the feature {', '.join(map(repr, unused))}; it takes "
            f"{taken}, allowed: a parameter for each feature, a block ({' or '.join(BLOCKS)}) or "
            "**rest."
        )
