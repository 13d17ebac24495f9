"""What the report of a pass measures."""

from collections.abc import Callable

import numpy as np
import pytest
from onnx import TensorProto, helper

from drivetrain.compress.report import compare
from drivetrain.core.batch import Batch
from drivetrain.core.graph import Graph

Rows = Callable[..., Batch]


def plus(amount: float, output: str = "y") -> Graph:
    """The column ``x`` and an amount; and the whole part of the sum."""
    make, info = helper.make_node, helper.make_tensor_value_info
    nodes = [
        make("Add", ["x", "amount"], [output]),
        make("Cast", [output], ["whole"], to=TensorProto.INT64),
    ]
    outputs = [
        info(output, TensorProto.FLOAT, ["rows"]),
        info("whole", TensorProto.INT64, ["rows"]),
    ]
    constant = helper.make_tensor("amount", TensorProto.FLOAT, [], [amount])
    inputs = [info("x", TensorProto.FLOAT, ["rows"])]
    graph = helper.make_graph(nodes, "plus", inputs, outputs, [constant])
    opsets = [helper.make_opsetid("", 20)]
    return Graph.from_proto(helper.make_model(graph, opset_imports=opsets))


def column(*values: float) -> Batch:
    return Batch({"x": np.array(values, np.float32)})


def test_differences_are_over_all_batches():
    before, after = plus(0.0), plus(0.25)
    batches = [column(), column(0.0, 0.8), column(0.5, 2.0)]
    found = {m.name: m for m in compare(before, after, batches, "int8")}
    assert found["int8/max_abs_difference"].value == pytest.approx(0.25)
    assert found["int8/mean_abs_difference"].value == pytest.approx(0.25)
    assert found["int8/changed_share"].value == 0.25
    assert found["int8/before_bytes"].value == len(before.model)
    assert found["int8/after_bytes"].value == len(after.model)


def test_only_times_are_not_repeatable():
    found = compare(plus(0.0), plus(0.0), [column(1.0)])
    times = {m.name for m in found if not m.repeatable}
    assert times == {
        f"compress/{when}_batch{size}_ms" for when in ("before", "after") for size in (1, 64)
    }
    assert all(m.value > 0 for m in found if not m.repeatable)


def test_nan_in_both_is_no_difference_and_in_one_is_infinite():
    nan, inf = float("nan"), float("inf")
    same = {m.name: m.value for m in compare(plus(0.0), plus(0.0), [column(nan, inf)])}
    assert same["compress/max_abs_difference"] == 0.0
    gone = {m.name: m.value for m in compare(plus(0.0), plus(nan), [column(1.0)])}
    assert gone["compress/max_abs_difference"] == inf


def test_no_rows_and_other_outputs_are_errors():
    with pytest.raises(ValueError, match="0 rows"):
        compare(plus(0.0), plus(0.0), [column()])
    with pytest.raises(ValueError, match="found outputs"):
        compare(plus(0.0), plus(0.0, output="z"), [column(1.0)])
