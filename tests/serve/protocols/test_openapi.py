"""The OpenAPI document: valid, and true of what the server takes and gives."""

import re

import jsonschema
import openapi_spec_validator
import pytest

from drivetrain.core.schema import Field
from drivetrain.serve.protocols.openapi import _value

ROW = {"carrier": "AA", "distance": 733.5, "hour": 7}


@pytest.fixture
def document(client):
    reply = client.get("/openapi.json")
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    return reply.json


def checker(document, name):
    """Says whether a value is what a schema of the document allows."""
    schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
    return jsonschema.Draft202012Validator(schema).is_valid


def test_the_document_is_valid_openapi(document):
    openapi_spec_validator.validate(document)
    assert document["openapi"] == "3.1.0"


def test_every_path_of_the_document_is_one_that_the_server_knows(client, document, tiny):
    assert f"/v2/models/tiny/versions/{tiny.digest[:12]}/infer" in document["paths"]
    for path, methods in document["paths"].items():
        for method in methods:
            reply = client.ask(method.upper(), path, b"{}" if method == "post" else None)
            empty_is_wrong = method == "post" and path != "/v2/repository/index"
            assert reply.status == (400 if empty_is_wrong else 200), path


def test_the_example_is_answered_as_the_document_says(client, document):
    body = document["paths"]["/predict/tiny"]["post"]["requestBody"]
    example = body["content"]["application/json"]["example"]
    reply = client.post("/predict/tiny", example)
    assert reply.status == 200
    assert checker(document, "tiny.Rows")(example)
    assert checker(document, "tiny.Predictions")(reply.json)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"carrier": None, "distance": None, "hour": None},
        {"carrier": 7},
        {"distance": "far"},
        {"hour": 7.5},
        {"hour": True},
        {"extra": 1},
    ],
)
def test_the_document_allows_the_rows_that_the_server_takes_and_no_others(client, document, change):
    row = {**ROW, **change}
    taken = client.post("/predict/tiny", row).status == 200
    assert checker(document, "tiny.Row")(row) == taken


def test_a_row_without_a_column_is_neither_taken_nor_allowed(client, document):
    row = {"carrier": "AA", "hour": 7}
    assert client.post("/predict/tiny", row).status == 400
    assert not checker(document, "tiny.Row")(row)


def test_v2_requests_and_answers_are_as_the_document_says(client, document):
    inputs = [
        {"name": "carrier", "datatype": "BYTES", "shape": [1], "data": ["AA"]},
        {"name": "distance", "datatype": "FP32", "shape": [1, 1], "data": [[733.5]]},
        {"name": "hour", "datatype": "INT64", "shape": [1], "data": [None]},
    ]
    allowed = checker(document, "tiny.InferRequest")
    reply = client.post("/v2/models/tiny/infer", {"id": "x", "inputs": inputs})
    assert reply.status == 200
    assert allowed({"id": "x", "inputs": inputs})
    assert checker(document, "tiny.InferAnswer")(reply.json)
    wrong = [{**inputs[0], "datatype": "FP32"}, *inputs[1:]]
    assert client.post("/v2/models/tiny/infer", {"inputs": wrong}).status == 400
    assert not allowed({"inputs": wrong})
    assert not allowed({"inputs": inputs[:2]})
    without = [{key: item for key, item in inputs[0].items() if key != "data"}, *inputs[1:]]
    for other in (without, [inputs[0], *inputs[:2]], [*inputs, inputs[0]]):
        assert client.post("/v2/models/tiny/infer", {"inputs": other}).status == 400
        assert not allowed({"inputs": other})


def test_tensorflow_serving_requests_and_answers_are_as_the_document_says(client, document):
    for body in ({"instances": [ROW]}, {"inputs": {name: [ROW[name]] for name in ROW}}):
        reply = client.post("/v1/models/tiny:predict", body)
        assert reply.status == 200
        assert checker(document, "tiny.PredictRequest")(body)
        assert checker(document, "PredictAnswer")(reply.json)
    for body in (
        {"instances": [ROW], "inputs": {}},
        {"instances": []},
        {"instances": [None]},
        {"instances": [{**ROW, "extra": 1}]},
        {"inputs": []},
        {"inputs": {"carrier": ["AA"]}},
    ):
        assert client.post("/v1/models/tiny:predict", body).status == 400
        assert not checker(document, "tiny.PredictRequest")(body)


def test_columns_of_every_kind_have_a_schema():
    assert _value(Field("a", "bytes"))["contentEncoding"] == "base64"
    assert _value(Field("a", "timestamp"))["type"] == ["string", "integer", "null"]
    assert _value(Field("a", "int64"))["format"] == "int64"
    shaped = _value(Field("a", "float32", (2, 3)))
    assert (shaped["minItems"], shaped["items"]["maxItems"]) == (2, 3)
    assert shaped["type"] == ["array", "null"]
    assert "minItems" not in _value(Field("a", "float32", (None,)))


def test_with_a_token_the_document_says_so_and_needs_it(serve):
    client = serve(token="sesame")
    assert client.get("/openapi.json").status == 401
    assert client.get("/docs").status == 401
    found = client.get("/openapi.json", headers={"Authorization": "Bearer sesame"}).json
    assert found["security"] == [{"token": []}]
    for path, methods in found["paths"].items():
        for operation in methods.values():
            open_to_all = path.startswith("/v2/health/")
            assert (operation.get("security") == []) == open_to_all
            assert ("401" in operation["responses"]) != open_to_all


def test_the_page_names_every_route_and_brings_nothing_from_elsewhere(client, document):
    reply = client.get("/docs")
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    text = reply.body.decode()
    assert all(f"<code>{path}</code>" in text for path in document["paths"])
    assert "<script" not in text
    assert not re.search(r"(?:src|href)=\"(?!openapi\.json)", text)
