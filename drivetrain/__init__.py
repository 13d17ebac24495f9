"""Drivetrain: one declared system, from events to served, explained and monitored predictions.

Every public name is listed here and imported when it is first used, so that
``import drivetrain as dt`` costs nothing and a declaration never waits for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drivetrain.compress.optimize import Optimize
    from drivetrain.compress.quantize import Quantize
    from drivetrain.core.batch import Batch
    from drivetrain.core.bundle import Bundle
    from drivetrain.core.graph import Graph
    from drivetrain.core.site import Site
    from drivetrain.core.system import System
    from drivetrain.pipeline import run
    from drivetrain.registry.registry import Registry
    from drivetrain.train.estimator import Estimator

_HOME = {
    "Batch": "core.batch",
    "Bundle": "core.bundle",
    "Graph": "core.graph",
    "Site": "core.site",
    "System": "core.system",
    "Registry": "registry.registry",
    "Quantize": "compress.quantize",
    "Optimize": "compress.optimize",
    "Estimator": "train.estimator",
    "run": "pipeline",
}

__all__ = sorted(_HOME)  # noqa: PLE0605 (a list of the keys above)


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'drivetrain' has no attribute {name!r}")
    return getattr(import_module(f"drivetrain.{home}"), name)


def __dir__() -> list[str]:
    return sorted(_HOME)
