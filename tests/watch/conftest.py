"""A small bundle whose predictions are known: the sigmoid of a column, made by hand in ONNX."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from drivetrain.core.batch import Batch
from drivetrain.core.bundle import Bundle, Manifest
from drivetrain.core.graph import IR_VERSION, OPSET, Graph
from drivetrain.core.measured import Fitted, measure
from drivetrain.core.schema import Field, Schema
from drivetrain.core.statistic import Quantiles, TopK

INPUTS = Schema((Field("x", "float32"), Field("carrier", "string")))


def sigmoid_graph() -> Graph:
    """``late = sigmoid(x)``; ``carrier`` is taken and changes nothing."""
    node = helper.make_node
    nodes = [
        node("Sigmoid", ["x"], ["p"], name="sigmoid"),
        node("IsNaN", ["x"], ["never"], name="isnan"),
        node("Where", ["never", "carrier", "carrier"], ["same"], name="where"),
        node("Shape", ["same"], ["rows"], name="shape"),
        node("Reshape", ["p", "rows"], ["late"], name="reshape"),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows"]),
        helper.make_tensor_value_info("carrier", TensorProto.STRING, ["rows"]),
    ]
    outputs = [helper.make_tensor_value_info("late", TensorProto.FLOAT, ["rows"])]
    graph = helper.make_graph(nodes, "sigmoid", inputs, outputs)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    onnx.checker.check_model(model)
    return Graph.from_proto(model)


def made_rows(rows: int, seed: int = 0, shift: float = 0.0) -> Batch:
    """Made rows: ``late`` is drawn with the probability that the graph answers."""
    rng = np.random.default_rng(seed)
    x = rng.normal(shift, 1.0, rows).astype(np.float32)
    late = (rng.random(rows) < 1 / (1 + np.exp(-x))).astype(np.int64)
    carrier = rng.choice(np.array(["AA", "DL", "UA"], dtype=object), rows, p=[0.5, 0.3, 0.2])
    return Batch({"x": x, "carrier": carrier, "late": late})


def split(batch: Batch, size: int) -> list[Batch]:
    """A batch cut into smaller ones."""
    return [batch.slice(start, start + size) for start in range(0, len(batch), size)]


def write_bundle(path: Path, **changes: Any) -> Bundle:
    """A bundle of the graph, with the statistics of 5,000 made rows."""
    rows = made_rows(5_000)
    fitted: Fitted = {s: measure(s, rows) for s in (Quantiles("x"), TopK("carrier"))}
    values: dict[str, Any] = {
        "name": "sigmoid",
        "inputs": INPUTS,
        "outputs": Schema((Field("late", "float32"),)),
        "targets": Schema((Field("late", "int64"),)),
        "fitted": fitted,
    } | changes
    fitted = values.pop("fitted")
    return Bundle.write(path, sigmoid_graph(), Manifest(**values), fitted)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle, written once."""
    return write_bundle(tmp_path_factory.mktemp("watch") / "bundle")


@pytest.fixture(scope="session")
def rows() -> Any:
    """``rows(count, seed, shift)`` makes rows."""
    return made_rows


@pytest.fixture(scope="session")
def cut() -> Any:
    """``cut(batch, size)`` makes batches."""
    return split


@pytest.fixture
def new_bundle(tmp_path: Path) -> Any:
    """``new_bundle(**changes)`` writes a bundle whose manifest is changed."""
    return lambda **changes: write_bundle(
        tmp_path / f"bundle{len(list(tmp_path.iterdir()))}", **changes
    )
