"""Made graphs: a tabular one with strings and nulls, and a small convolutional one."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from drivetrain.core.batch import Batch
from drivetrain.core.graph import Graph

FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING


def ends(*items: tuple[str, int, tuple[int, ...]]) -> list[ValueInfoProto]:
    return [helper.make_tensor_value_info(n, kind, ["rows", *shape]) for n, kind, shape in items]


def graph_of(
    nodes: list[NodeProto],
    inputs: list[ValueInfoProto],
    outputs: list[ValueInfoProto],
    weights: dict[str, np.ndarray],
) -> Graph:
    tensors = [numpy_helper.from_array(np.asarray(v), n) for n, v in weights.items()]
    graph = helper.make_graph(nodes, "made", inputs, outputs, tensors)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("ai.onnx.ml", 4)]
    return Graph.from_proto(helper.make_model(graph, opset_imports=opsets))


def made_features() -> Graph:
    """Columns ``amount`` (null is NaN), ``kind`` (null is "") and ``unread`` to one block."""
    make = helper.make_node
    nodes = [
        make("IsNaN", ["amount"], ["absent"]),
        make("Where", ["absent", "zero", "amount"], ["filled"]),
        make("Unsqueeze", ["filled", "one"], ["column"]),
        make(
            "LabelEncoder",
            ["kind"],
            ["code"],
            domain="ai.onnx.ml",
            keys_strings=["a", "b", "c"],
            values_int64s=[1, 2, 3],
            default_int64=0,
        ),
        make("Gather", ["table", "code"], ["embedded"]),
        make("Concat", ["column", "embedded"], ["dense"], axis=1),
    ]
    table = np.random.default_rng(1).standard_normal((4, 15)).astype(np.float32)
    inputs = ends(("amount", FLOAT, ()), ("kind", STRING, ()), ("unread", INT64, ()))
    weights = {"zero": np.float32(0), "one": np.array([1]), "table": table}
    return graph_of(nodes, inputs, ends(("dense", FLOAT, (16,))), weights)


def made_perceptron() -> Graph:
    """A block of 16 to a probability, by way of 64 and 32 hidden units."""
    make, rng = helper.make_node, np.random.default_rng(2)
    weights: dict[str, np.ndarray] = {"one": np.array([1])}
    nodes, before, sizes = [], "dense", (16, 64, 32, 1)
    for i, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        weights[f"w{i}"] = (rng.standard_normal((fan_in, fan_out)) / fan_in**0.5).astype(np.float32)
        weights[f"b{i}"] = (rng.standard_normal(fan_out) / 10).astype(np.float32)
        nodes.append(make("MatMul", [before, f"w{i}"], [f"m{i}"], name=f"layer{i}/product"))
        nodes.append(make("Add", [f"m{i}", f"b{i}"], [f"a{i}"]))
        nodes.append(make("Relu", [f"a{i}"], [f"r{i}"]))
        before = f"r{i}"
    nodes[-1] = make("Squeeze", ["a2", "one"], ["logit"])
    nodes.append(make("Sigmoid", ["logit"], ["probability"]))
    inputs = ends(("dense", FLOAT, (16,)))
    return graph_of(nodes, inputs, ends(("probability", FLOAT, ())), weights)


@pytest.fixture(scope="session")
def tabular() -> Graph:
    """Raw columns, strings and nulls among them, to a probability."""
    return made_features().join(made_perceptron())


@pytest.fixture(scope="session")
def rows() -> Callable[..., Batch]:
    """Makes raw rows of the tabular graph, a tenth of each column missing."""

    def made(count: int, seed: int = 0) -> Batch:
        rng = np.random.default_rng(seed)
        amount = np.where(rng.random(count) < 0.1, np.nan, rng.standard_normal(count))
        kind = np.array(["a", "b", "c", "", "never seen"], dtype=object)
        return Batch(
            {
                "amount": amount.astype(np.float32),
                "kind": kind[rng.integers(0, 5, count)],
                "unread": np.arange(count),
                "target": rng.integers(0, 2, count),
            }
        )

    return made


@pytest.fixture(scope="session")
def convolutional() -> Graph:
    """Images of 3 × 8 × 8 to 4 logits: three convolutions, batch normalisation, a mean."""
    make, rng = helper.make_node, np.random.default_rng(3)
    weights: dict[str, np.ndarray] = {"axes": np.array([2, 3])}
    nodes, before, channels = [], "image", (3, 16, 16, 4)
    for i, (few, many) in enumerate(pairwise(channels)):
        kernel = rng.standard_normal((many, few, 3, 3)) / (few * 9) ** 0.5
        weights[f"w{i}"] = kernel.astype(np.float32)
        for name, value in (("scale", 1.0), ("bias", 0.1), ("mean", 0.0), ("var", 1.0)):
            weights[f"{name}{i}"] = np.full(many, value, np.float32)
        normal = [f"c{i}", *(f"{name}{i}" for name in ("scale", "bias", "mean", "var"))]
        nodes.append(make("Conv", [before, f"w{i}"], [f"c{i}"], pads=[1, 1, 1, 1]))
        nodes.append(make("BatchNormalization", normal, [f"n{i}"]))
        nodes.append(make("Relu", [f"n{i}"], [f"r{i}"]))
        before = f"r{i}"
    nodes.append(make("ReduceMean", [before, "axes"], ["logits"], keepdims=0))
    inputs = ends(("image", FLOAT, (3, 8, 8)))
    return graph_of(nodes, inputs, ends(("logits", FLOAT, (4,))), weights)


@pytest.fixture(scope="session")
def images() -> Callable[..., Batch]:
    """Makes images of noise."""

    def made(count: int, seed: int = 0) -> Batch:
        noise = np.random.default_rng(seed).standard_normal((count, 3, 8, 8))
        return Batch({"image": noise.astype(np.float32)})

    return made
