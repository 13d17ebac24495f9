"""The builder: inputs on first use, equal nodes once, outputs by name."""

import numpy as np
import pytest

from drivetrain.core.batch import Batch
from drivetrain.core.graph import IR_VERSION, OPSET
from drivetrain.core.schema import Field, Schema
from drivetrain.features.builder import Builder

SCHEMA = Schema((Field("x", "float32"), Field("s", "string"), Field("b", "bytes")))
DENSE = Field("y", "float32")


def test_only_columns_that_are_used_are_inputs() -> None:
    graph = Builder(SCHEMA)
    built = graph.build([(DENSE, graph.op("Neg", graph.column("x")))])
    assert built.inputs == Schema((Field("x", "float32"),))
    assert built.outputs == Schema((DENSE,))
    assert built.run(Batch({"x": np.array([1.5], dtype=np.float32)}))["y"].tolist() == [-1.5]


def test_the_model_has_the_one_opset_and_ir_version() -> None:
    graph = Builder(SCHEMA)
    model = graph.build([(DENSE, graph.op("Neg", graph.column("x")))]).proto
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    assert model.ir_version == IR_VERSION


def test_equal_nodes_and_equal_constants_are_one() -> None:
    graph = Builder(SCHEMA)
    one = graph.constant(1.0, "float32")
    assert graph.constant(1.0, "float32") == one
    assert graph.constant(1.0, "float64") != one
    assert graph.constant([1.0], "float32") != one
    assert graph.op("Add", graph.column("x"), one) == graph.op("Add", graph.column("x"), one)
    assert graph.op("Cast", one, to=1) != graph.op("Cast", one, to=11)


def test_a_tensor_may_leave_under_two_names_and_a_column_under_another() -> None:
    graph = Builder(SCHEMA)
    negative = graph.op("Neg", graph.column("x"))
    second, same = Field("z", "float32"), Field("same", "float32")
    built = graph.build([(DENSE, negative), (second, negative), (same, graph.column("x"))])
    found = built.run(Batch({"x": np.array([2.0], dtype=np.float32)}))
    assert [found[name].tolist() for name in ("y", "z", "same")] == [[-2.0], [-2.0], [2.0]]


def test_bytes_are_as_wide_as_who_reads_most_of_them_needs() -> None:
    graph = Builder(SCHEMA)
    outputs = [(Field(f"first_{n}", "uint8", (None,)), graph.bytes("s", n)) for n in (2, 4)]
    built = graph.build(outputs)
    session = built.session(1)
    assert session.inputs == (("s.utf8", ("rows", "s_bytes_max_4")),)
    found = session.run(Batch({"s": np.array(["abcdef", "x"], dtype=object)}))
    assert found["first_2"].tolist() == [[97, 98], [120, 0]]
    assert found["first_4"].tolist() == [[97, 98, 99, 100], [120, 0, 0, 0]]


def test_a_column_of_bytes_enters_as_a_matrix_only() -> None:
    with pytest.raises(ValueError, match="'b' holds bytes"):
        Builder(SCHEMA).column("b")
