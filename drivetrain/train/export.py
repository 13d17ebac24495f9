"""A trained model as an ONNX graph that answers what torch answers."""

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from drivetrain.core.batch import Batch
from drivetrain.core.errors import wrong
from drivetrain.core.graph import OPSET, Graph
from drivetrain.core.need import need
from drivetrain.core.schema import FeatureSchema, Schema
from drivetrain.train.predictions import named

ROWS = "rows"
SIZES = (1, 2, 7, 64)
"""Batch sizes at which the graph is held against the model."""


def export(
    model: nn.Module,
    inputs: Schema | FeatureSchema,
    predictions: Callable[[Any], Mapping[str, Tensor]] | None = None,
    *,
    tolerance: float = 1e-4,
) -> Graph:
    """The model and its predictions as one graph with any number of rows, checked against torch.

    Args:
        model: takes one tensor for each input, in order; it is left as it is.
        inputs: ``features.tensors``, or the features themselves, whose cardinalities then bound
            the integers that the graph is tried with. A bound model brings its features along.
        predictions: named tensors, rows first, from the model's outputs; None serves the
            outputs under their own names.
        tolerance: the largest difference allowed, absolute up to 1 and relative above.

    Raises:
        ValueError: the model can't be exported, an output doesn't have the rows first, or the
            graph answers something else than the model.
    """
    features = inputs if isinstance(inputs, FeatureSchema) else getattr(model, "features", None)
    schema = inputs.tensors if isinstance(inputs, FeatureSchema) else inputs
    served = _Served(copy.deepcopy(model).cpu().eval(), predictions)
    generator = np.random.default_rng(0)
    sample = drawn(schema, features, 3, generator)
    with torch.no_grad():
        answers = served.named(*sample)
    for name, answer in answers.items():
        if answer.dim() == 0 or answer.shape[0] != 3:
            raise wrong(f"prediction {name!r}", tuple(answer.shape), "rows as the first dimension")
    graph = Graph.from_proto(_onnx(served, sample, schema, list(answers)))
    check(graph, served.named, schema, features, generator, tolerance=tolerance)
    return graph


class _Served(nn.Module):
    """A model with its predictions behind it."""

    def __init__(
        self, model: nn.Module, predictions: Callable[[Any], Mapping[str, Tensor]] | None
    ) -> None:
        super().__init__()
        self.model = model
        self.predictions = predictions or named

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.named(*tensors).values())

    def named(self, *tensors: Tensor) -> Mapping[str, Tensor]:
        return self.predictions(self.model(*tensors))


def _onnx(served: _Served, sample: list[Tensor], inputs: Schema, outputs: list[str]) -> Any:
    need("onnxscript", "train")
    rows = torch.export.Dim(ROWS, min=1)
    try:
        with _quiet():
            program = torch.onnx.export(
                served,
                tuple(sample),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=(tuple({0: rows} for _ in sample),),
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        cause = error.__cause__ or error
        raise ValueError(f"the model can't be exported to ONNX: {cause}") from error
    assert program is not None
    _name(program.model.graph, inputs.names, outputs)
    model = program.model_proto
    for value in (*model.graph.input, *model.graph.output):
        dimension = value.type.tensor_type.shape.dim[0]
        dimension.Clear()
        dimension.dim_param = ROWS
    return model


def _name(graph: Any, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Name a graph's inputs and outputs, and whatever inside had such a name something else.

    The exporter's own renaming leaves two values of one name when an operator's result, such as
    ``index`` or ``add``, is called like an input.
    """
    inner = [value for node in graph.all_nodes() for value in node.outputs]
    inner += list(graph.initializers.values())
    taken = {*inputs, *outputs, *(value.name for value in inner)}
    for value in inner:
        if value.name in inputs or value.name in outputs:
            value.name = next(n for i in count() if (n := f"{value.name}_{i}") not in taken)
            taken.add(value.name)
    for value, name in zip(graph.inputs, inputs, strict=True):
        value.name = name
    for value, name in zip(graph.outputs, outputs, strict=True):
        value.name = name


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's own chatter from the user: what matters is checked or raised."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def drawn(
    inputs: Schema, features: FeatureSchema | None, rows: int, generator: np.random.Generator
) -> list[Tensor]:
    """Random inputs: numbers around zero, integers below their cardinality."""
    tensors: list[Tensor] = []
    for field in inputs:
        shape = (rows, *(n or 1 for n in field.shape))
        if field.dtype.startswith("float"):
            array = generator.normal(size=shape)
        else:
            array = generator.integers(0, _below(field.name, shape, features), size=shape)
        tensors.append(torch.from_numpy(array.astype(field.numpy)))
    return tensors


def _below(name: str, shape: tuple[int, ...], features: FeatureSchema | None) -> Any:
    """The bound of an integer input; without features only 0 and 1 are sure to be allowed."""
    if features is None:
        return 2
    if name == "index":
        return np.asarray(features.cardinalities)
    return max(features.field(name).cardinality, 1)


def check(
    graph: Graph,
    named: Callable[..., Mapping[str, Tensor]],
    inputs: Schema,
    features: FeatureSchema | None,
    generator: np.random.Generator,
    *,
    tolerance: float,
    framework: str = "torch",
) -> None:
    """Hold a graph against the model that it was made of, on drawn rows, 1 to 64 at once.

    Args:
        graph: from ``inputs`` to predictions.
        named: what the framework answers to one tensor for each input.
        inputs: ``features.tensors``.
        features: whose cardinalities bound the integers; None draws 0 and 1.
        generator: draws the rows.
        tolerance: the largest difference allowed, absolute up to 1 and relative above.
        framework: its name in errors.

    Raises:
        ValueError: the graph answers something else.
    """
    session = graph.session(threads=1)
    for rows in SIZES:
        tensors = drawn(inputs, features, rows, generator)
        columns = dict(zip(inputs.names, (t.numpy() for t in tensors), strict=True))
        found = session.run(Batch({name: columns[name] for name, _ in session.inputs}))
        with torch.no_grad():
            expected = named(*tensors)
        for name, tensor in expected.items():
            left, right = found[name].astype(np.float64), tensor.numpy().astype(np.float64)
            if left.shape != right.shape:
                raise ValueError(
                    f"prediction {name!r} of {rows} rows: found shape {left.shape} in the graph, "
                    f"allowed: {right.shape} as in {framework}."
                )
            difference = np.abs(left - right) / np.maximum(np.abs(right), 1)
            worst = float(np.nan_to_num(difference, nan=np.inf).max(initial=0.0))
            if worst > tolerance:
                raise ValueError(
                    f"prediction {name!r} of {rows} rows: found a difference of {worst:.3g} "
                    f"between the graph and {framework}, allowed: {tolerance:g}."
                )
