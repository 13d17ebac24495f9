"""Makes a factory's module from the fitted features and feeds it by the names in its forward."""

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from drivetrain.core.errors import unknown, wrong
from drivetrain.core.schema import FeatureSchema
from drivetrain.core.system import BLOCKS

if TYPE_CHECKING:
    from drivetrain.core.seams import ModelFactory


def build(factory: "ModelFactory", features: FeatureSchema, seed: int = 0) -> "Bound":
    """The factory's module, its weights drawn from ``seed``; torch's own generator is untouched.

    Args:
        factory: called with ``features``, or with nothing if it takes nothing.
        features: the fitted features.
        seed: of the initial weights.

    Raises:
        ValueError: the factory made no module, its ``forward`` needs what no feature gives, or
            a feature enters no parameter of it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        module = factory(features) if _takes_features(factory) else factory()
    if not isinstance(module, nn.Module):
        raise wrong("model factory", module, "a callable that returns a torch.nn.Module")
    return Bound(module, features)


def _takes_features(factory: Callable[..., Any]) -> bool:
    """Whether to pass the schema: a required parameter, or one that is called ``features``."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # a compiled callable has no signature to read
        return True
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return bool(positional) and (
        positional[0].default is positional[0].empty or positional[0].name == "features"
    )


class Bound(nn.Module):
    """A module that takes the tensors of ``features.tensors`` in order, whatever it names them.

    A parameter of the module's ``forward`` may be a block (``dense``, ``index``), a bag, a
    tensor, or a dense or index feature: ``[rows, width]`` of its block, an index feature of
    width 1 as int64 ``[rows]``. ``**rest`` receives every tensor that no parameter names.

    Args:
        module: the user's module.
        features: the fitted features.

    Raises:
        ValueError: a required parameter is no feature, or a feature enters no parameter.
    """

    def __init__(self, module: nn.Module, features: FeatureSchema) -> None:
        super().__init__()
        self.module = module
        self.features = features
        self._plan = plan(module.forward, features, f"{type(module).__name__}.forward")

    def forward(self, *tensors: Tensor) -> Any:
        """What the module answers to one tensor for each of ``features.tensors``."""
        return self.module(**arguments(self._plan, tensors))


Plan = list[tuple[str, int, slice | None, int | None]]
"""Parameter, position of its tensor, columns of it (None: all), or the one column that it is."""


def plan(call: Callable[..., Any], features: FeatureSchema, where: str) -> Plan:
    """How the tensors of ``features.tensors`` become the arguments of ``call``, by their names.

    Args:
        call: of any framework.
        features: the fitted features.
        where: the name of ``call`` in errors.

    Raises:
        ValueError: a required parameter is no feature, or a feature enters no parameter.
    """
    tensors = features.tensors.names
    allowed = [*tensors, *(f.name for f in features.features if f.name not in tensors)]
    plan: Plan = []
    rest = False
    for name, parameter in inspect.signature(call).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            rest = True
        elif parameter.kind is parameter.VAR_POSITIONAL:
            continue
        elif name in allowed and parameter.kind is not parameter.POSITIONAL_ONLY:
            plan.append(argument(name, features))
        elif parameter.default is parameter.empty:
            raise unknown("feature", name, [*BLOCKS, *allowed], where)
    if rest:
        named = {name for name, _, _, _ in plan}
        plan += [(name, i, None, None) for i, name in enumerate(tensors) if name not in named]
    check_all_enter(plan, features, where)
    return plan


def arguments(plan: Plan, tensors: Sequence[Any]) -> dict[str, Any]:
    """The tensors of ``features.tensors``, or columns of them, by the names of parameters."""
    named: dict[str, Any] = {}
    for name, position, columns, lone in plan:
        tensor = tensors[position]
        if lone is not None:
            tensor = tensor[:, lone]
        elif columns is not None:
            tensor = tensor[:, columns]
        named[name] = tensor
    return named


def argument(name: str, features: FeatureSchema) -> tuple[str, int, slice | None, int | None]:
    """The entry of a plan for the tensor or the feature called ``name``."""
    tensors = features.tensors.names
    if name in tensors:
        return name, tensors.index(name), None, None
    feature = features.field(name)
    columns = features.slice(name)
    lone = columns.start if feature.kind == "index" and feature.width == 1 else None
    return name, tensors.index(feature.kind), columns, lone


def check_all_enter(plan: Plan, features: FeatureSchema, where: str) -> None:
    """Refuse a plan that leaves a feature out.

    Raises:
        ValueError: names the feature.
    """
    whole = {name for name, _, columns, lone in plan if columns is None and lone is None}
    entered = {name for name, _, _, _ in plan}
    for feature in features.features:
        if feature.name not in entered and feature.kind not in whole:
            raise ValueError(
                f"feature {feature.name!r} enters no parameter of {where}: found parameters "
                f"{', '.join(sorted(entered)) or 'none'}, allowed: name one {feature.name!r}, "
                f"take **rest, or leave the feature out."
            )
