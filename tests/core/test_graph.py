"""Graphs as values: read, run, join, bring to one opset."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from drivetrain.core.batch import Batch
from drivetrain.core.graph import IR_VERSION, OPSET, Graph, Session
from drivetrain.core.schema import Field, Schema

FLOAT = TensorProto.FLOAT


def model(
    nodes: list[onnx.NodeProto],
    inputs: list[str],
    outputs: list[str],
    constants: dict[str, float] | None = None,
    opset: int = OPSET,
    kind: int = FLOAT,
) -> onnx.ModelProto:
    """A model over scalar columns."""
    graph = helper.make_graph(
        nodes,
        "made",
        [helper.make_tensor_value_info(name, kind, ["rows"]) for name in inputs],
        [helper.make_tensor_value_info(name, kind, ["rows"]) for name in outputs],
        [helper.make_tensor(n, kind, [], [value]) for n, value in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def step(operator: str, source: str, constant: float, output: str, inner: str = "k") -> Graph:
    """One operator with a constant; inner names are alike on purpose."""
    nodes = [
        helper.make_node(operator, [source, "constant"], [inner], name="node"),
        helper.make_node("Identity", [inner], [output], name="last"),
    ]
    return Graph.from_proto(model(nodes, [source], [output], {"constant": constant}))


def column(**values: float) -> Batch:
    return Batch({name: np.array([value], np.float32) for name, value in values.items()})


ADD = step("Add", "x", 1.0, "y")
MULTIPLY = step("Mul", "y", 3.0, "z")


def test_ends_are_schemas_without_the_rows():
    assert ADD.inputs == Schema((Field("x", "float32"),))
    assert ADD.outputs == Schema((Field("y", "float32"),))
    session = ADD.session(1)
    assert (session.input_schema, session.outputs) == (ADD.inputs, ADD.outputs)
    assert session.inputs == (("x", ("rows",)),)


def test_a_graph_runs_over_no_rows_and_over_some():
    assert ADD.run(Batch({"x": np.zeros(0, np.float32)}))["y"].shape == (0,)
    assert ADD.run(column(x=2.0))["y"].tolist() == [3.0]


def test_the_same_model_has_the_same_digest_wherever_it_was_made():
    proto = ADD.proto
    proto.graph.node[0].doc_string = "/home/me/model.py:12"
    entry = proto.graph.node[0].metadata_props.add()
    entry.key, entry.value = "pkg.torch.onnx.stack_trace", "/home/me/model.py"
    proto.graph.value_info.append(helper.make_tensor_value_info("k", FLOAT, ["rows"]))
    assert Graph.from_proto(proto).digest == ADD.digest
    assert ADD.digest != MULTIPLY.digest


def test_the_callers_model_is_not_changed():
    proto = model([helper.make_node("Relu", ["x"], ["y"])], ["x"], ["y"], opset=17)
    before = proto.SerializeToString()
    Graph.from_proto(proto)
    assert proto.SerializeToString() == before


@pytest.mark.parametrize("opset", [11, 13, 17, 20])
def test_an_older_opset_is_brought_to_ours(opset: int):
    nodes = [helper.make_node("Unsqueeze", ["x", "axes"], ["wide"])]
    if opset < 13:
        nodes = [helper.make_node("Unsqueeze", ["x"], ["wide"], axes=[1])]
    nodes.append(helper.make_node("ReduceMax", ["wide"], ["y"], axes=[1], keepdims=0))
    if opset >= 18:
        nodes[-1] = helper.make_node("ReduceMax", ["wide", "axes"], ["y"], keepdims=0)
    proto = model(nodes, ["x"], ["y"], opset=opset)
    proto.graph.initializer.append(helper.make_tensor("axes", TensorProto.INT64, [1], [1]))
    graph = Graph.from_proto(proto)
    assert [(e.domain, e.version) for e in graph.proto.opset_import] == [("", OPSET)]
    assert graph.proto.ir_version == IR_VERSION
    assert graph.run(column(x=2.0))["y"].tolist() == [2.0]


def test_a_newer_opset_is_refused():
    proto = model([helper.make_node("Relu", ["x"], ["y"])], ["x"], ["y"], opset=OPSET + 1)
    with pytest.raises(ValueError, match=f"found {OPSET + 1}, allowed: {OPSET} or less"):
        Graph.from_proto(proto)


def test_an_invalid_model_is_refused():
    proto = model([helper.make_node("Relu", ["absent"], ["y"])], ["x"], ["y"])
    with pytest.raises(ValueError, match="not valid ONNX"):
        Graph.from_proto(proto)


def test_local_functions_become_nodes():
    opsets = [helper.make_opsetid("", OPSET)]
    double = helper.make_function(
        "mine", "Double", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], opsets
    )
    proto = model([helper.make_node("Double", ["x"], ["y"], domain="mine")], ["x"], ["y"])
    proto.functions.append(double)
    proto.opset_import.append(helper.make_opsetid("mine", 1))
    graph = Graph.from_proto(proto)
    assert not graph.proto.functions
    assert graph.join(MULTIPLY).run(column(x=2.0))["z"].tolist() == [12.0]


def test_an_output_that_is_no_tensor_is_refused_in_words():
    node = helper.make_node("SequenceConstruct", ["x", "x"], ["s"])
    proto = model([node], ["x"], [])
    tensor = helper.make_tensor_type_proto(FLOAT, ["rows"])
    sequence = helper.make_sequence_type_proto(tensor)
    proto.graph.output.append(helper.make_value_info("s", sequence))
    graph = Graph.from_proto(proto)
    with pytest.raises(ValueError, match=r"tensor 's': found .*allowed: dense tensors"):
        _ = graph.outputs
    with pytest.raises(ValueError, match=r"tensor 's': found 'seq\(tensor"):
        graph.session(1)


def test_a_graph_survives_its_file(tmp_path):
    ADD.save(tmp_path / "model.onnx")
    assert Graph.load(tmp_path / "model.onnx") == ADD
    session = Session(str(tmp_path / "model.onnx"), threads=1)
    assert session.run(column(x=1.0))["y"].tolist() == [2.0]


# -- joins -----------------------------------------------------------------------------------------


def test_outputs_feed_inputs_of_the_same_name():
    joined = ADD.join(MULTIPLY)
    assert (joined.inputs.names, joined.outputs.names) == (("x",), ("z",))
    assert joined.run(column(x=2.0))["z"].tolist() == [9.0]


def test_successive_joins_keep_inner_names_apart():
    first, second = step("Sub", "z", 1.0, "u"), step("Mul", "u", 2.0, "v")
    left = ADD.join(MULTIPLY).join(first).join(second)
    right = ADD.join(MULTIPLY.join(first.join(second)))
    middle = ADD.join(MULTIPLY).join(first.join(second))
    for graph in (left, right, middle):
        assert graph.run(column(x=2.0))["v"].tolist() == [16.0]
    names = [name for node in left.proto.graph.node for name in node.output]
    assert len(set(names)) == len(names)


def test_kept_outputs_stay():
    joined = ADD.join(MULTIPLY, keep=["y"])
    assert joined.outputs.names == ("z", "y")
    assert joined.run(column(x=2.0), ["y"])["y"].tolist() == [3.0]
    with pytest.raises(ValueError, match="unknown output 'yy' in keep"):
        ADD.join(MULTIPLY, keep=["yy"])


def test_an_inner_tensor_is_not_taken_for_an_end_of_the_other_graph():
    inner = step("Add", "x", 1.0, "y", inner="raw")  # "raw" is a tensor inside
    nodes = [helper.make_node("Add", ["y", "raw"], ["k"])]  # and an input here
    joined = inner.join(Graph.from_proto(model(nodes, ["y", "raw"], ["k"])))
    assert joined.inputs.names == ("x", "raw")
    assert joined.run(column(x=1.0, raw=10.0))["k"].tolist() == [12.0]


def test_an_output_may_be_called_as_one_that_is_dropped():
    nodes = [helper.make_node("Neg", ["x"], ["y"]), helper.make_node("Abs", ["y"], ["z"])]
    two = Graph.from_proto(model(nodes, ["x"], ["y", "z"]))
    joined = two.join(step("Mul", "y", 10.0, "z"))
    assert joined.run(column(x=2.0))["z"].tolist() == [-20.0]


def test_a_tensor_that_would_be_there_twice_is_refused():
    with pytest.raises(ValueError, match="found twice: x"):
        ADD.join(step("Mul", "y", 2.0, "x"))
    nodes = [helper.make_node("Neg", ["x"], ["y"]), helper.make_node("Abs", ["y"], ["z"])]
    two = Graph.from_proto(model(nodes, ["x"], ["y", "z"]))
    with pytest.raises(ValueError, match="found twice: z"):
        two.join(step("Mul", "y", 10.0, "z"), keep=["z"])


def test_a_raw_input_of_both_is_one_input():
    after = Graph.from_proto(model([helper.make_node("Sub", ["y", "x"], ["z"])], ["y", "x"], ["z"]))
    joined = ADD.join(after)
    assert joined.inputs.names == ("x",)
    assert joined.run(column(x=5.0))["z"].tolist() == [1.0]


def test_graphs_that_share_nothing_or_differ_in_type_do_not_join():
    with pytest.raises(ValueError, match=r"found outputs \['z'\] and inputs \['x'\]"):
        MULTIPLY.join(ADD)
    nodes = [helper.make_node("Identity", ["y"], ["z"])]
    whole = Graph.from_proto(model(nodes, ["y"], ["z"], kind=TensorProto.INT64))
    with pytest.raises(ValueError, match="tensor 'y': found float32, allowed: int64"):
        ADD.join(whole)


# -- runs ------------------------------------------------------------------------------------------


def test_a_column_that_is_absent_or_of_another_type_is_named():
    with pytest.raises(ValueError, match="unknown column 'x'"):
        ADD.run(column(xx=1.0))
    with pytest.raises(ValueError, match="column 'x': found 'float64', allowed: float32"):
        ADD.run(Batch({"x": np.zeros(2)}))
    with pytest.raises(ValueError, match=r"column 'x': found \(1,\), allowed: rows of shape \(\)"):
        ADD.run(Batch({"x": np.zeros((2, 1), np.float32)}))


def test_more_columns_than_the_graph_takes_do_no_harm():
    assert ADD.run(column(x=1.0, late=1.0))["y"].tolist() == [2.0]
