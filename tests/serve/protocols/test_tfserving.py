"""TensorFlow Serving's REST: rows and columns, names where there are several, exact errors."""

import base64
import json

import numpy as np
import pytest

ROWS = [
    {"carrier": "AA", "distance": 733.5, "hour": 7},
    {"carrier": "β", "distance": None, "hour": 13},
]
PREDICT = "/v1/models/tiny:predict"


def columns(rows):
    return {name: [row[name] for row in rows] for name in rows[0]}


def test_instances_are_answered_by_named_predictions(client, tiny):
    reply = client.post(PREDICT, {"signature_name": "serving_default", "instances": ROWS})
    assert reply.status == 200
    expected = tiny.predict(ROWS)
    found = reply.json["predictions"]
    assert [np.float32(row["late"]) for row in found] == expected["late"].tolist()
    assert [row["slot"] for row in found] == expected["slot"].tolist()


@pytest.mark.parametrize("key_first", [True, False])
def test_the_order_of_keys_changes_nothing(client, key_first):
    pairs = [("signature_name", "serving_default"), ("instances", ROWS)]
    body = dict(pairs if key_first else pairs[::-1])
    same = client.post(PREDICT, {"instances": ROWS})
    assert client.post(PREDICT, body).body == same.body


def test_inputs_by_column_are_answered_by_column(client, tiny):
    reply = client.post(PREDICT, {"inputs": columns(ROWS)})
    assert reply.status == 200
    expected = tiny.predict(ROWS)
    found = reply.json["outputs"]
    assert np.array_equal(np.array(found["late"], np.float32), expected["late"])
    assert found["slot"] == expected["slot"].tolist()


def test_a_version_can_be_named_and_another_is_not_found(client, tiny):
    version = tiny.digest[:12]
    base = "/v1/models/tiny/versions/"
    assert client.post(f"{base}{version}:predict", {"instances": ROWS}).status == 200
    reply = client.post(f"{base}1:predict", {"instances": ROWS})
    assert reply.status == 404
    assert "unknown version '1'" in reply.json["error"]
    assert client.get("/v1/models/tinny").status == 404


def test_the_status_names_the_version_that_is_served(client, tiny):
    (found,) = client.get("/v1/models/tiny").json["model_version_status"]
    assert (found["version"], found["state"]) == (tiny.digest[:12], "AVAILABLE")
    assert found["status"]["error_code"] == "OK"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "found no JSON"),
        ([], "either instances or inputs"),
        ({}, "either instances or inputs"),
        ({"instances": ROWS, "inputs": columns(ROWS)}, "either instances or inputs"),
        ({"instances": ROWS, "signature": "x"}, "Did you mean 'signature_name'?"),
        ({"instances": ROWS, "signature_name": "other"}, "signature_name: found 'other'"),
        ({"instances": {}}, "instances: found"),
        ({"instances": []}, "rows: found 0"),
        ({"instances": [7]}, "instances[0]: found 7"),
        ({"instances": [{**ROWS[0], "hour": "x"}]}, "row 0, column 'hour'"),
        ({"instances": [{**ROWS[0], "carrier": {"b64": "%"}}]}, "row 0, b64: found '%'"),
        ({"inputs": [1, 2]}, "inputs: found"),
        ({"inputs": {"carrier": "AA"}}, "column 'carrier': found 'AA'"),
        ({"inputs": {**columns(ROWS), "hour": [7]}}, "as many values in each column"),
        ({"inputs": {"carrier": ["AA"]}}, "found no column 'distance', 'hour'"),
    ],
)
def test_what_is_wrong_is_named(client, body, message):
    reply = client.post(PREDICT, body)
    assert reply.status == 400
    assert message in reply.json["error"]


def test_the_metrics_tell_its_requests_apart(serve, tiny):
    client = serve()
    client.post(PREDICT, {"instances": ROWS})
    labels = f'model="tiny",version="{tiny.digest[:12]}",route="tfs_predict"'
    assert client.metric(f"drivetrain_request_seconds_count{{{labels}}}") == 1


@pytest.fixture(scope="module")
def blob(tmp_path_factory):
    """The length of a text of bytes: one column, one output."""
    from onnx import TensorProto, helper

    from drivetrain.core.bundle import Bundle, Manifest
    from drivetrain.core.graph import IR_VERSION, OPSET, Graph
    from drivetrain.core.schema import Field, Schema

    values = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Cast", ["word.utf8"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["numbers", "axes"], ["sum"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "sum",
        [values("word.utf8", TensorProto.UINT8, ["rows", "longest"])],
        [values("sum", TensorProto.FLOAT, ["rows"])],
        [helper.make_tensor("axes", TensorProto.INT64, [1], [1])],
    )
    opset = [helper.make_opsetid("", OPSET)]
    model = Graph.from_proto(helper.make_model(graph, ir_version=IR_VERSION, opset_imports=opset))
    manifest = Manifest(
        name="sum",
        inputs=Schema((Field("word", "bytes"),)),
        outputs=Schema((Field("sum", "float32"),)),
    )
    return Bundle.write(tmp_path_factory.mktemp("sum") / "bundle", model, manifest, {})


def test_one_column_and_one_output_stand_without_their_names(serve, blob):
    client = serve({"sum": blob.path})
    words = ["ab", {"b64": base64.b64encode(b"\xff\x01").decode()}, None]
    expected = [97 + 98, 256, 0]
    for body, key in (
        ({"instances": words}, "predictions"),
        ({"instances": [{"word": word} for word in words]}, "predictions"),
        ({"inputs": words}, "outputs"),
        ({"inputs": {"word": words}}, "outputs"),
    ):
        reply = client.post("/v1/models/sum:predict", body)
        assert (reply.status, reply.json) == (200, {key: expected})


def test_a_number_may_be_nan_as_its_documentation_has_it(client):
    plain = client.post(PREDICT, {"instances": ROWS})
    rows = [ROWS[0], {**ROWS[1], "distance": float("nan")}]
    for body in ({"instances": rows}, {"inputs": columns(rows)}):
        text = json.dumps(body).encode()
        assert b"NaN" in text
        assert client.post(PREDICT, text).status == 200
    assert client.post(PREDICT, json.dumps({"instances": rows}).encode()).body == plain.body
