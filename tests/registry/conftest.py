"""Small made bundles for the tests of the store."""

from collections.abc import Callable
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from drivetrain.core.bundle import Manifest
from drivetrain.core.graph import Graph
from drivetrain.core.measured import Fitted
from drivetrain.core.sketch import MomentsValue
from drivetrain.core.statistic import Moments

Parts = tuple[Graph, Manifest, Fitted]


def made_parts(factor: float = 2.0, **manifest: Any) -> Parts:
    """The parts of a bundle that multiplies the column ``x`` by ``factor``."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "factor"], ["score"])],
        "made",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows"])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["rows"])],
        [helper.make_tensor("factor", TensorProto.FLOAT, [], [factor])],
    )
    model = helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    made = Graph.from_proto(model)
    described = Manifest(name="made", inputs=made.inputs, outputs=made.outputs, **manifest)
    return made, described, {Moments("x"): MomentsValue(3, 0, 2.0, 2.0, 1.0, 3.0)}


@pytest.fixture
def parts() -> Callable[..., Parts]:
    """Makes the parts of a bundle; another factor, another digest."""
    return made_parts
