"""What a strategy answered, as graphs: raw columns to predictions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from drivetrain.core.graph import Graph
from drivetrain.core.metric import Metric
from drivetrain.core.schema import Schema
from drivetrain.core.seams import Reduced, Strategy
from drivetrain.train.export import export
from drivetrain.train.rounded import tolerance

if TYPE_CHECKING:
    from torch import nn

MODEL = "model"
"""The name of a model's graph among those that a training keeps."""
BEFORE = "before-"
"""In front of the name of what made it smaller: the graph of the model as it was."""


@dataclass(frozen=True)
class Trained:
    """What training gave.

    Attributes:
        graph: raw columns to predictions.
        figures: of the training, for the manifest: what the strategy emitted for no step, and
            that repeats.
        before: what the graph was before its strategy made it smaller, if it did.
        made_by: the name of what made it smaller.
    """

    graph: Graph
    figures: Sequence[Metric]
    before: Graph | None = None
    made_by: str = ""

    @classmethod
    def of(
        cls, features: Graph, graphs: Mapping[str, Graph], figures: Sequence[Metric]
    ) -> "Trained":
        """The graphs that :func:`exported` gave, behind that of the features."""
        graph = features.join(graphs[MODEL])
        before = next((name for name in graphs if name.startswith(BEFORE)), None)
        if before is None:
            return cls(graph, figures)
        made_by = before.removeprefix(BEFORE)
        return cls(graph, figures, features.join(graphs[before]), made_by)


def exported(
    strategy: Strategy, fitted: "nn.Module | Graph | Reduced", inputs: Schema
) -> dict[str, Graph]:
    """What ``fit`` answered, by name; ``model`` comes last, for where it lies all the others do.

    Args:
        strategy: names the predictions.
        fitted: its answer.
        inputs: the tensors that the features give.
    """
    if isinstance(fitted, Graph):  # a strategy may fit what is no torch module
        return {MODEL: fitted}
    models = (
        {f"{BEFORE}{fitted.name}": fitted.before, MODEL: fitted.model}
        if isinstance(fitted, Reduced)
        else {MODEL: fitted}
    )
    predictions = getattr(strategy, "predictions", None)
    return {
        name: export(model, inputs, predictions, tolerance=tolerance(model))
        for name, model in models.items()
    }
