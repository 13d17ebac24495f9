"""A row that the graph refuses is its client's mistake and no other's, however it is run."""

import json

import pytest
from onnx import TensorProto, helper

from drivetrain.core.bundle import Bundle, Manifest
from drivetrain.core.graph import IR_VERSION, OPSET, Graph
from drivetrain.core.schema import Field, Schema


@pytest.fixture(params=["over memory that stays", "plainly"])
def looked_up(request, tmp_path):
    """A bundle that looks numbers up in a table of 24, in a form that can be bound or not."""
    fields = [Field("hour", "int64")]
    rows = [helper.make_tensor_value_info("hour", TensorProto.INT64, ["rows"])]
    if request.param == "plainly":  # text lies in no memory that could stay
        fields.append(Field("note", "string"))
        rows.append(helper.make_tensor_value_info("note", TensorProto.STRING, ["rows"]))
    graph = helper.make_graph(
        [
            helper.make_node("Max", ["hour", "first"], ["known"]),  # one that is missing is first
            helper.make_node("Gather", ["table", "known"], ["found"]),
        ],
        "looked up",
        rows,
        [helper.make_tensor_value_info("found", TensorProto.FLOAT, ["rows"])],
        [
            helper.make_tensor("first", TensorProto.INT64, [], [0]),
            helper.make_tensor("table", TensorProto.FLOAT, [24], [n / 24 for n in range(24)]),
        ],
    )
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, ir_version=IR_VERSION, opset_imports=opsets)
    manifest = Manifest(
        name="table", inputs=Schema(tuple(fields)), outputs=Schema((Field("found", "float32"),))
    )
    return Bundle.write(tmp_path / "table", Graph.from_proto(model), manifest, {})


def test_a_row_that_fails_in_the_run_is_400_alone_and_in_a_batch(serve, looked_up):
    client = serve({"table": looked_up.path})
    head = b"POST /predict/table HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n"
    rest = {} if len(looked_up.manifest.inputs.fields) == 1 else {"note": "n"}
    bodies = [json.dumps({"hour": hour, **rest}).encode() for hour in (1, 99, 3)]
    alone = client.post("/predict/table", bodies[1])
    assert alone.status == 400
    assert "the graph refuses these values" in alone.json["error"]
    together = b"".join(head % len(body) + b"\r\n" + body for body in bodies)
    last = head % len(bodies[0]) + b"Connection: close\r\n\r\n" + bodies[0]
    statuses = [int(part[:3]) for part in client.raw(together + last).split(b"HTTP/1.1 ")[1:]]
    assert statuses == [200, 400, 200, 200]
