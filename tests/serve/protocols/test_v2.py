"""The Open Inference Protocol V2: metadata, inference in JSON and binary, and its errors."""

import json
import struct

import numpy as np
import pytest

ROWS = [
    {"carrier": "AA", "distance": 733.5, "hour": 7},
    {"carrier": "β", "distance": None, "hour": 23},
    {"carrier": None, "distance": 0.1, "hour": None},
]
INFER = "/v2/models/tiny/infer"


def tensor(name, datatype, data, shape=None):
    return {"name": name, "datatype": datatype, "shape": shape or [len(data)], "data": data}


def inputs(rows=ROWS):
    kinds = {"carrier": "BYTES", "distance": "FP32", "hour": "INT64"}
    return [tensor(name, kind, [row[name] for row in rows]) for name, kind in kinds.items()]


def request(**changes):
    return {"inputs": inputs(), **changes}


def replaced(number, **changes):
    found = inputs()
    found[number] = {**found[number], **changes}
    return {"inputs": found}


def test_the_server_is_live_ready_and_says_what_it_is(client):
    assert client.get("/v2/health/live").json == {"live": True}
    assert client.get("/v2/health/ready").json == {"ready": True}
    about = client.get("/v2").json
    assert about["name"] == "drivetrain"
    assert about["extensions"] == ["binary_tensor_data", "model_configuration", "statistics"]


def test_a_model_says_what_it_takes_and_gives(client, tiny):
    about = client.get("/v2/models/tiny").json
    assert about == {
        "name": "tiny",
        "versions": [tiny.digest[:12]],
        "platform": "onnxruntime_onnx",
        "inputs": [
            {"name": "carrier", "datatype": "BYTES", "shape": [-1]},
            {"name": "distance", "datatype": "FP32", "shape": [-1]},
            {"name": "hour", "datatype": "INT64", "shape": [-1]},
        ],
        "outputs": [
            {"name": "late", "datatype": "FP32", "shape": [-1]},
            {"name": "slot", "datatype": "INT64", "shape": [-1]},
        ],
    }
    assert client.get("/v2/models/tiny/ready").json == {"name": "tiny", "ready": True}
    assert client.get(f"/v2/models/tiny/versions/{tiny.digest[:12]}").json == about


def test_inference_gives_what_the_bundle_predicts(client, tiny):
    reply = client.post(INFER, request(id="call 7"))
    late, slot = reply.json["outputs"]
    expected = tiny.predict(ROWS)
    assert reply.status == 200
    assert reply.json["model_name"] == "tiny"
    assert reply.json["model_version"] == tiny.digest[:12]
    assert reply.json["id"] == "call 7"
    assert reply.headers["x-request-id"] == "call%207"
    assert (late["name"], late["datatype"], late["shape"]) == ("late", "FP32", [3])
    assert (np.array(late["data"], np.float32) == expected["late"]).all()
    assert slot["data"] == expected["slot"].tolist()


def test_a_version_can_be_named(client, tiny):
    target = f"/v2/models/tiny/versions/{tiny.digest[:12]}/infer"
    assert client.post(target, request()).json["model_version"] == tiny.digest[:12]


def test_an_id_is_echoed_only_where_one_was_given(client):
    assert "id" not in client.post(INFER, request()).json


@pytest.mark.parametrize("data", [[[733.5], [None], [0.1]], [733.5, None, 0.1]])
def test_a_column_may_be_a_matrix_of_one_column_flat_or_nested(client, data):
    plain = client.post(INFER, request()).json["outputs"]
    body = replaced(1, shape=[3, 1], data=data)
    assert client.post(INFER, body).json["outputs"] == plain


def test_outputs_can_be_chosen_and_ordered(client):
    reply = client.post(INFER, request(outputs=[{"name": "slot"}, {"name": "late"}]))
    assert [output["name"] for output in reply.json["outputs"]] == ["slot", "late"]
    reply = client.post(INFER, request(outputs=[{"name": "slot"}]))
    assert [output["name"] for output in reply.json["outputs"]] == ["slot"]


def binary_request(client, outputs=None, **parameters):
    texts = [(row["carrier"] or "").encode() for row in ROWS]
    missing = -(2**63)
    blobs = [
        b"".join(struct.pack("<I", len(text)) + text for text in texts),
        struct.pack("<3f", 733.5, float("nan"), 0.1),
        struct.pack("<3q", 7, 23, missing),
    ]
    tensors = [
        {"name": name, "datatype": kind, "shape": [3],
         "parameters": {"binary_data_size": len(blob)}}
        for (name, kind), blob in zip(
            [("carrier", "BYTES"), ("distance", "FP32"), ("hour", "INT64")], blobs, strict=True
        )
    ]  # fmt: skip
    body = {"inputs": tensors, "parameters": parameters}
    if outputs:
        body["outputs"] = outputs
    head = json.dumps(body).encode()
    return client.post(
        INFER,
        head + b"".join(blobs),
        headers={"Inference-Header-Content-Length": str(len(head))},
    )


def test_binary_tensors_are_taken_and_given(client, tiny):
    reply = binary_request(client, binary_data_output=True)
    length = int(reply.headers["inference-header-content-length"])
    head, data = json.loads(reply.body[:length]), reply.body[length:]
    expected = tiny.predict(ROWS)
    assert reply.headers["content-type"] == "application/octet-stream"
    assert [out["parameters"]["binary_data_size"] for out in head["outputs"]] == [12, 24]
    assert data == expected["late"].tobytes() + expected["slot"].tobytes()


def test_binary_and_json_tensors_can_be_mixed(client):
    asked = [{"name": "late", "parameters": {"binary_data": False}}, {"name": "slot"}]
    reply = binary_request(client, outputs=asked, binary_data_output=True)
    length = int(reply.headers["inference-header-content-length"])
    late, slot = json.loads(reply.body[:length])["outputs"]
    assert len(late["data"]) == 3
    assert slot["parameters"] == {"binary_data_size": 24}


def test_binary_inputs_may_be_answered_in_json(client, tiny):
    late = binary_request(client).json["outputs"][0]
    assert (np.array(late["data"], np.float32) == tiny.predict(ROWS)["late"]).all()


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        (replaced(1, datatype="FP64"), ["input 'distance', datatype: found 'FP64'", "FP32"]),
        (replaced(1, shape=[4]), ["input 'distance', rows: found 4, allowed: 3"]),
        (replaced(1, shape=[3, 2]),
         ["input 'distance', shape: found [3, 2]", "[rows] or [rows, 1]"]),
        (replaced(1, shape=[]), ["input 'distance', shape: found []"]),
        (replaced(0, shape=[-3]), ["input 'carrier', shape: found [-3]"]),
        (replaced(1, data=[1.0, 2.0]), ["input 'distance', data: found '2 elements', allowed: 3"]),
        (replaced(1, data=[1.0, "2", 3.0]), ["input 'distance', data[1]: found '2'", "a number"]),
        (replaced(2, data=[1, 2.5, 3]), ["input 'hour', data[1]: found 2.5", "an integer"]),
        (replaced(2, data=[1, True, 3]), ["input 'hour', data[1]: found True"]),
        (replaced(2, data=[-(2**63), 2**63, 3]),
         ["input 'hour', data[1]: found 9223372036854775808", "an integer of 64 bits"]),
        (replaced(2, data=[1, None, -(2**63) - 1]),
         ["input 'hour', data[2]: found -9223372036854775809", "an integer of 64 bits"]),
        (replaced(1, data=[1e300, 10**400, 3]), ["input 'distance', data[1]: found 1000000"]),
        (replaced(0, data=["a", 1, "b"]), ["input 'carrier', data[1]: found 1", "a string"]),
        (replaced(1, name="distence"), ["unknown input 'distence' in tiny", "'distance'"]),
        ({"inputs": inputs()[:2]}, ["found no 'hour'"]),
        ({"inputs": [*inputs(), inputs()[0]]}, ["input 'carrier': found twice"]),
        ({"inputs": [{"name": "carrier"}]}, ["datatype", "$.inputs[0]"]),
        (request(outputs=[{"name": "lat"}]), ["unknown output 'lat'", "Did you mean 'late'?"]),
        (request(id="x" * 300), ["id: found", "at most 256 characters"]),
        (request(parameters={"timeout": "soon"}), ["parameter 'timeout': found 'soon'"]),
        (request(parameters={"timeout": -1}), ["parameter 'timeout': found -1"]),
        (request(parameters={"binary_data_output": 1}), ["'binary_data_output': found 1"]),
        ({"inputs": [{**inputs()[0], "data": None}]}, ["input 'carrier': found no data"]),
        (b"{", ["body:"]),
        ([], ["body: Expected `object`"]),
    ],
)  # fmt: skip
def test_a_mistake_is_400_and_names_place_found_and_allowed(client, body, parts):
    reply = client.post(INFER, body)
    assert reply.status == 400
    assert all(part in reply.json["error"] for part in parts), reply.json["error"]


@pytest.mark.parametrize(
    ("size", "blob", "part"),
    [
        (12, b"x" * 8, "binary_data_size: found 12"),
        (8, b"x" * 8, "binary data: found '8 bytes', allowed: 12"),
        (12, b"x" * 20, "20 bytes of binary data"),
        ("12", b"x" * 12, "binary_data_size: found '12'"),
    ],
)
def test_binary_data_of_another_size_is_refused(client, size, blob, part):
    tensors = inputs()
    del tensors[1]["data"]
    tensors[1]["parameters"] = {"binary_data_size": size}
    head = json.dumps({"inputs": tensors}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    reply = client.post(INFER, head + blob, headers=headers)
    assert reply.status == 400
    assert part in reply.json["error"]


@pytest.mark.parametrize(
    "blob", [b"\xff\xff\xff\x7f", b"\1\0\0\0a" * 4, b"\1\0\0\0\xff" * 3, b"\1\0\0"]
)
def test_binary_strings_that_lie_are_refused(client, blob):
    tensors = inputs()
    del tensors[0]["data"]
    tensors[0]["parameters"] = {"binary_data_size": len(blob)}
    head = json.dumps({"inputs": tensors}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    reply = client.post(INFER, head + blob, headers=headers)
    assert reply.status == 400
    assert "input 'carrier', binary data" in reply.json["error"]


def test_a_json_length_beyond_the_body_is_refused(client):
    headers = {"Inference-Header-Content-Length": "99999"}
    reply = client.post(INFER, request(), headers=headers)
    assert "header 'inference-header-content-length': found '99999'" in reply.json["error"]


def test_a_time_out_in_microseconds_is_kept(client):
    reply = client.post(INFER, request(parameters={"timeout": 1e-3}))
    assert reply.status == 504
    assert client.post(INFER, request(parameters={"timeout": 5_000_000})).status == 200


@pytest.mark.parametrize(
    ("target", "parts"),
    [
        ("/v2/models/tyny", ["unknown model 'tyny'", "Did you mean 'tiny'?"]),
        ("/v2/models/tyny/infer", ["unknown model 'tyny'", "Did you mean 'tiny'?"]),
        ("/predict/tyny", ["unknown model 'tyny'", "Did you mean 'tiny'?"]),
        ("/v2/models/tiny/versions/1/infer", ["unknown version '1' in model 'tiny'"]),
        ("/v2/models/tiny/confg", ["unknown target", "Did you mean '/v2/models/tiny/config'?"]),
        ("/v2/health/redy", ["unknown target", "Did you mean '/v2/health/ready'?"]),
    ],
)
def test_what_is_not_there_is_404_and_the_nearest_is_named(client, target, parts):
    reply = client.get(target)
    assert reply.status == 404
    assert all(part in reply.json["error"] for part in parts), reply.json["error"]


def test_who_asks_for_a_target_is_told_of_targets_and_of_no_method_of_grpc(client):
    error = client.get("/").json["error"]
    assert error.startswith("unknown target '/'. Allowed: /docs, /metrics, /openapi.json, /predict")
    assert "grpc" not in error.lower()


def test_a_wrong_method_is_405_and_the_right_ones_are_named(client):
    reply = client.get(INFER)
    assert (reply.status, reply.headers["allow"]) == (405, "POST")
    assert reply.json["error"] == "method: found GET, allowed: POST at this target."


def test_a_target_may_be_escaped_and_have_a_query(client):
    assert client.get("/v2/models/t%69ny?x=1").json["name"] == "tiny"


def test_an_output_is_asked_for_once(client):
    """Else a request of kilobytes makes an answer of gigabytes."""
    answer = client.post(INFER, request(outputs=[{"name": "late"}] * 2))
    assert answer.status == 400
    assert answer.json == {"error": "output 'late': found twice, allowed: once."}


def test_a_number_may_be_nan_as_tritons_clients_write_it(client):
    """Behind binary data too, where the JSON is a part of the body."""
    plain = client.post(INFER, request()).json["outputs"]
    body = json.dumps(replaced(1, data=[733.5, float("nan"), 0.1])).encode()
    assert b"NaN" in body
    assert client.post(INFER, body).json["outputs"] == plain
    hours = struct.pack("<3q", 7, 23, -(2**63))
    mixed = replaced(1, data=[733.5, float("nan"), 0.1])
    mixed["inputs"][2] = {
        "name": "hour",
        "datatype": "INT64",
        "shape": [3],
        "parameters": {"binary_data_size": len(hours)},
    }
    head = json.dumps(mixed).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    assert client.post(INFER, head + hours, headers=headers).json["outputs"] == plain


def test_an_infinite_number_is_what_it_is_in_binary_data(client):
    found = []
    for value in (float("inf"), 1e300, float("-inf"), -1e300):
        body = json.dumps(replaced(1, data=[value, None, 0.1])).encode()
        late, _ = client.post(INFER, body).json["outputs"]
        found.append(late["data"][0])
    assert found == [1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("name", ["sequence_id", "sequence_start", "sequence_end"])
def test_a_request_of_a_sequence_is_refused_and_not_answered_without_it(client, name):
    reply = client.post(INFER, request(parameters={name: 1}))
    assert reply.status == 400
    assert f"parameter: found '{name}'" in reply.json["error"]
