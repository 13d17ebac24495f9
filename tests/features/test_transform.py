"""The transform gives what the graph gives, however its columns are held."""

from typing import Any

import numpy as np
import onnx
import pytest
from feature_tables import SCHEMA, made
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drivetrain.core.batch import Batch, Categorical
from drivetrain.core.graph import Graph, Session
from drivetrain.core.measured import measure
from drivetrain.features.categorical import Index
from drivetrain.features.compile import compile
from drivetrain.features.hashing import Cross, Hash
from drivetrain.features.numeric import Missing, Scale
from drivetrain.features.text import Text
from drivetrain.features.transform import Transform

FEATURES = (
    Text("title", bins=50, length=6),
    Index("city"),
    Scale("amount"),
    Hash("city", bins=9),
    Missing("title"),
    Cross(Index("city"), Hash("token", bins=3)),
    Hash("token", bins=20, max_bytes=3),
    Missing("token"),
)
TRAIN = made(60)
FITTED = {s: measure(s, TRAIN) for f in FEATURES for s in f.statistics()}
GRAPH, FIELDS = compile(FEATURES, SCHEMA, FITTED)
TRANSFORM = Transform(GRAPH, FIELDS, threads=1)
WHOLE = GRAPH.session(1)

STRINGS = st.lists(st.sampled_from(["", "alpha", "Beta zeta", "東京"]) | st.text(), min_size=1)
BYTES = st.lists(st.sampled_from([b"", b"\0", b"t3"]) | st.binary(), min_size=1)


def same(left: Batch, right: Batch) -> bool:
    assert list(left.columns) == list(FIELDS.tensors.names)
    return all(left[n].tobytes() == right[n].tobytes() for n in FIELDS.tensors.names)


@settings(
    derandomize=True,
    deadline=None,
    max_examples=80,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(data=st.data(), rows=st.integers(0, 12))
def test_distinct_texts_computed_once_give_the_same_bits(data: st.DataObject, rows: int) -> None:
    columns: dict[str, Any] = dict(made(rows, seed=rows).columns)
    for name, values in {"city": STRINGS, "title": STRINGS, "token": BYTES}.items():
        distinct = data.draw(values)
        codes = data.draw(st.lists(st.integers(0, len(distinct) - 1), min_size=rows, max_size=rows))
        table = np.empty(len(distinct), dtype=object)
        table[:] = distinct
        columns[name] = Categorical(np.array(codes, dtype=np.int32), table)
    batch = Batch(columns)
    assert same(TRANSFORM.run(batch), WHOLE.run(batch))


def repeated(rows: int) -> Batch:
    """Three distinct texts in every text column."""
    batch = made(rows)
    codes = (np.arange(rows) % 3).astype(np.int32)
    return batch.with_columns(
        {name: Categorical(codes, batch[name][:3]) for name in ("city", "title", "token")}
    )


def test_only_distinct_texts_reach_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = repeated(300)
    expected = WHOLE.run(batch)
    transform = Transform(GRAPH, FIELDS, threads=1)
    seen: list[tuple[set[str], int]] = []
    run = Session.run

    def watched(self: Session, batch: Batch, outputs: Any = None) -> Batch:
        taken = {name for name, _ in self.inputs}
        seen.append((taken, len(batch)))
        return run(self, batch, outputs)

    monkeypatch.setattr(Session, "run", watched)
    assert same(transform.run(batch), expected)
    texts = ("city", "city.utf8", "title", "title.utf8", "token.utf8")
    assert [rows for taken, rows in seen if taken & set(texts)] == [3, 3, 3]
    assert [rows for taken, rows in seen if not taken & set(texts)] == [300]


def test_texts_that_hardly_repeat_run_through_the_graph_as_it_is() -> None:
    batch = made(5)
    codes = np.arange(5, dtype=np.int32)
    held = batch.with_columns({"city": Categorical(codes, batch["city"])})
    transform = Transform(GRAPH, FIELDS, threads=1)
    assert same(transform.run(held), WHOLE.run(batch))
    assert "_cut" not in vars(transform)


def test_a_column_that_hardly_repeats_beside_ones_that_do() -> None:
    batch = repeated(30)
    mixed = batch.with_columns({"token": made(30)["token"]})
    assert same(TRANSFORM.run(mixed), WHOLE.run(mixed))


def test_a_graph_of_texts_alone_leaves_no_rest() -> None:
    graph, fields = compile([Text("title", bins=9, length=4)], SCHEMA, {})
    batch = repeated(30)
    found = Transform(graph, fields, threads=1).run(batch)
    assert found["title_text"].tobytes() == graph.run(batch)["title_text"].tobytes()


def test_a_text_that_a_whole_batch_decides_is_left_to_the_whole_batch() -> None:
    helper, string = onnx.helper, onnx.TensorProto.STRING
    nodes = [
        helper.make_node("Equal", ["city", "empty"], ["absent"]),
        helper.make_node("Cast", ["absent"], ["number"], to=onnx.TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["number", "zero"], ["total"], keepdims=1),
        helper.make_node("Mul", ["amount", "total"], ["product"]),
        helper.make_node("Reshape", ["product", "column"], ["dense"]),
    ]
    inputs = [
        helper.make_tensor_value_info("city", string, ["rows"]),
        helper.make_tensor_value_info("amount", onnx.TensorProto.FLOAT, ["rows"]),
    ]
    outputs = [helper.make_tensor_value_info("dense", onnx.TensorProto.FLOAT, ["rows", 1])]
    constants = [
        onnx.numpy_helper.from_array(np.array("", dtype=object), "empty"),
        onnx.numpy_helper.from_array(np.array([0]), "zero"),
        onnx.numpy_helper.from_array(np.array([-1, 1]), "column"),
    ]
    imports = [helper.make_opsetid("", 20)]
    model = helper.make_graph(nodes, "whole", inputs, outputs, constants)
    graph = Graph.from_proto(helper.make_model(model, opset_imports=imports))
    _, fields = compile([Scale("amount")], SCHEMA, FITTED)
    city = np.array(["", "a"], dtype=object)
    batch = Batch(
        {
            "city": Categorical(np.array([0, 0, 0, 1, 1], dtype=np.int32), city),
            "amount": np.ones(5, dtype=np.float32),
        }
    )
    found = Transform(graph, fields, threads=1).run(batch)
    assert found["dense"].ravel().tolist() == [3.0] * 5


def test_an_absent_column_is_named() -> None:
    columns = {name: made(3).columns[name] for name in SCHEMA.names if name != "city"}
    with pytest.raises(ValueError, match="unknown column 'city'"):
        TRANSFORM.run(Batch(columns))
