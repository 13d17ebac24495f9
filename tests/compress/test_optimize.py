"""What optimisation promises: the same function, the same ends, a graph that loads anywhere."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from drivetrain.compress.optimize import Optimize
from drivetrain.core.batch import Batch
from drivetrain.core.graph import Graph

Rows = Callable[..., Batch]


def test_predictions_and_ends_stay(tabular: Graph, rows: Rows):
    batch = rows(300)
    for level in ("basic", "extended"):
        graph = Optimize(level)(tabular, list)
        assert (graph.inputs, graph.outputs) == (tabular.inputs, tabular.outputs)
        answers = [g.run(batch)["probability"] for g in (tabular, graph)]
        assert np.allclose(*answers, rtol=1e-6, atol=1e-7)


def test_an_input_that_nothing_reads_is_kept(tabular: Graph):
    assert "unread" in Optimize()(tabular, list).inputs


def test_nodes_become_fewer(convolutional: Graph, images: Rows):
    graph = Optimize()(convolutional, list)
    assert len(graph.proto.graph.node) < 0.5 * len(convolutional.proto.graph.node)
    batch = images(8)
    answers = [g.run(batch)["logits"] for g in (convolutional, graph)]
    assert np.allclose(*answers, rtol=1e-4, atol=1e-5)


def test_basic_uses_standard_operators_only(convolutional: Graph):
    graph = Optimize("basic")(convolutional, list)
    assert {node.domain for node in graph.proto.graph.node} <= {"", "ai.onnx.ml"}
    onnx.checker.check_model(graph.proto, full_check=True)


def test_extended_has_no_operator_for_one_processor_only(convolutional: Graph):
    graph = Optimize("extended")(convolutional, list)
    assert {n.domain for n in graph.proto.graph.node} == {"", "com.microsoft"}
    assert {e.domain for e in graph.proto.opset_import} == {"", "com.microsoft"}


def test_it_is_repeatable_and_has_a_fixed_point(tabular: Graph):
    once = Optimize()(tabular, list)
    assert once.digest == Optimize()(tabular, list).digest
    twice = Optimize()(once, list)
    assert len(twice.proto.graph.node) == len(once.proto.graph.node)


def test_no_row_is_read(tabular: Graph):
    def calibration():
        raise AssertionError("optimisation calibrates nothing")

    assert Optimize()(tabular, calibration).outputs == tabular.outputs


def test_an_unknown_level_suggests_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'extended'"):
        Optimize("extendet")
    with pytest.raises(ValueError, match="Allowed: basic, extended"):
        Optimize("all")
