"""What a converter of another framework made, as a graph of ours with the predictions behind."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from drivetrain.core.errors import wrong
from drivetrain.core.graph import Graph
from drivetrain.core.need import need
from drivetrain.core.schema import FeatureSchema, Field, Schema
from drivetrain.train.export import ROWS, check, drawn, export
from drivetrain.train.foreign.model import ForeignModule
from drivetrain.train.foreign.outputs import inner, leaves, rebuilt
from drivetrain.train.predictions import named

if TYPE_CHECKING:
    import onnx

CONVERTERS = (
    "where images are pooled, no converter gets the jax back end of Keras right: use "
    "backend='tensorflow' or 'torch', or Flax"
)
"""What is known to fail, for whoever runs into it."""

Predictions = Callable[[Any], Mapping[str, Tensor]]


def taken(number: int) -> str:
    """What a converter is told to call the input for a tensor of ``features.tensors``."""
    return f"tensor_{number}"


def between(model: "onnx.ModelProto", inputs: Schema, outputs: Sequence[str]) -> Graph:
    """A converted model between tensors of our names and types.

    Args:
        model: its inputs are called :func:`taken` by the tensor's number; one may be absent.
        inputs: ``features.tensors``.
        outputs: names for its outputs, in order.
    """
    onnx = need("onnx", "train")
    helper = onnx.helper
    prefix = "converted/"  # converters call tensors what a target or a feature may be called too
    model = onnx.compose.add_prefix(model, prefix)
    graph = model.graph
    found = {value.name: value for value in graph.input}
    before: list[Any] = []
    values: list[Any] = []
    for number, field in enumerate(inputs):
        value = found.pop(f"{prefix}{taken(number)}", None)
        if value is None:
            continue
        kind = value.type.tensor_type.elem_type
        before.append(helper.make_node("Cast", [field.name], [value.name], to=kind))
        values.append(helper.make_tensor_value_info(field.name, field.onnx, [ROWS, *field.shape]))
    after: list[Any] = []
    ends: list[Any] = []
    for name, value in zip(outputs, graph.output, strict=True):
        after.append(helper.make_node("Identity", [value.name], [name]))
        tensor = value.type.tensor_type
        shape = [d.dim_value or None for d in tensor.shape.dim[1:]]
        ends.append(helper.make_tensor_value_info(name, tensor.elem_type, [ROWS, *shape]))
    whole = helper.make_graph(
        [*before, *graph.node, *after],
        "converted",
        [*values, *found.values()],
        ends,
        graph.initializer,
    )
    made = helper.make_model(whole, opset_imports=model.opset_import)
    made.functions.extend(model.functions)
    return Graph.from_proto(made)


def served(
    model: ForeignModule,
    features: FeatureSchema,
    predictions: Predictions | None,
    framework: str,
    tolerance: float = 1e-4,
) -> Graph:
    """From ``features.tensors`` to predictions, held against what the framework itself answers.

    Args:
        model: as it was trained.
        features: the fitted features.
        predictions: named tensors from the model's outputs; None serves them by their names.
        framework: its name in errors.
        tolerance: the largest difference allowed, absolute up to 1 and relative above.

    Raises:
        ValueError: the model can't be converted, or the graph answers something else.
    """
    inputs, generator = features.tensors, np.random.default_rng(0)
    outputs = model(*drawn(inputs, features, 3, generator))
    for name, tensor in leaves(outputs).items():
        if tensor.dim() == 0 or tensor.shape[0] != 3:
            raise wrong(f"output {name!r}", tuple(tensor.shape), "rows as the first dimension")
    fields = tuple(
        Field(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape[1:]))  # pyright: ignore[reportArgumentType]
        for name, tensor in zip(inner(outputs), leaves(outputs).values(), strict=True)
    )
    ends = export(_Behind(outputs), Schema(fields), predictions)

    def own(*tensors: Tensor) -> Mapping[str, Tensor]:
        return (predictions or named)(model(*tensors))

    try:
        graph = model.foreign.graph(features).join(ends)
        check(graph, own, inputs, features, generator, tolerance=tolerance, framework=framework)
    except (ValueError, ImportError):
        raise
    except Exception as error:  # ONNX Runtime has classes of its own
        raise ValueError(
            f"what the converter made of the model does not run: {error}; {CONVERTERS}"
        ) from error
    return graph


class _Behind(nn.Module):
    """The outputs as the model gives them, from tensors one by one."""

    def __init__(self, like: Any) -> None:
        super().__init__()
        self.like = like

    def forward(self, *tensors: Tensor) -> Any:
        # A graph whose output is its own input would have one tensor of two names.
        return rebuilt(self.like, [tensor.clone() for tensor in tensors])
