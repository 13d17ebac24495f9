"""A server says the same with and without the compiled part."""

import http.client
import json
import subprocess
import sys

import numpy as np
import pytest
from compiled_part import INPUTS, OUTPUTS, compiled
from onnx import TensorProto, helper

from drivetrain.core.bundle import Bundle, Manifest, digest_of
from drivetrain.core.graph import IR_VERSION, OPSET, Graph
from drivetrain.serve import native
from drivetrain.serve.execution import bound as bounds
from drivetrain.serve.execution import columns as columns_module
from drivetrain.serve.execution.models import Artefact, Model
from drivetrain.serve.execution.packed import Form
from drivetrain.serve.protocols import rows as rows_module
from drivetrain.serve.protocols import values
from drivetrain.serve.server import Server, running
from drivetrain.serve.transport import http1_answer, repeated


def graph():
    """``sum = x + größe``, ``pair = [x, sum]`` and ``code``, which fails for ``n`` beyond 3."""
    tensor = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Cast", ["größe"], ["size"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["x", "size"], ["sum"]),
        helper.make_node("Unsqueeze", ["x", "one"], ["x1"]),
        helper.make_node("Unsqueeze", ["sum", "one"], ["sum1"]),
        helper.make_node("Concat", ["x1", "sum1"], ["pair"], axis=1),
        helper.make_node("Less", ["n", "zero"], ["below"]),
        helper.make_node("Where", ["below", "zero", "n"], ["place"]),
        helper.make_node("Gather", ["codes", "place"], ["coded"]),
        helper.make_node("Max", ["at", "zero"], ["moment"]),
        helper.make_node("Add", ["coded", "moment"], ["code"]),
    ]
    made = helper.make_graph(
        nodes,
        "numbers",
        [
            tensor("x", TensorProto.FLOAT, ["rows"]),
            tensor("n", TensorProto.INT64, ["rows"]),
            tensor("größe", TensorProto.DOUBLE, ["rows"]),
            tensor("at", TensorProto.INT64, ["rows"]),
        ],
        [
            tensor("sum", TensorProto.FLOAT, ["rows"]),
            tensor("pair", TensorProto.FLOAT, ["rows", 2]),
            tensor("code", TensorProto.INT64, ["rows"]),
        ],
        [
            helper.make_tensor("one", TensorProto.INT64, [1], [1]),
            helper.make_tensor("zero", TensorProto.INT64, [], [0]),
            helper.make_tensor("codes", TensorProto.INT64, [4], [10, 20, 30, 40]),
        ],
    )
    opsets = [helper.make_opsetid("", OPSET)]
    return Graph.from_proto(helper.make_model(made, ir_version=IR_VERSION, opset_imports=opsets))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    manifest = Manifest(name="numbers", inputs=INPUTS, outputs=OUTPUTS)
    return Bundle.write(tmp_path_factory.mktemp("numbers") / "bundle", graph(), manifest, {})


def in_python(monkeypatch):
    """From now on what is loaded goes without the compiled part."""
    monkeypatch.setattr(columns_module, "compiled", None)
    monkeypatch.setattr(repeated, "compiled", None)
    monkeypatch.setattr(http1_answer, "wire", http1_answer.wire_in_python)
    monkeypatch.setattr(values, "float32_text", values.float32_in_python)
    monkeypatch.setattr(rows_module, "floats_between", values.between_in_python)
    monkeypatch.setitem(values._TEXT, "f", values.float32_in_python)
    monkeypatch.setattr(values, "compiled", None)


ROW = {"x": 0.1, "n": 1, "größe": 2.5, "at": 7}

ASKED = [
    ROW,
    {**ROW, "x": None, "n": None, "größe": None, "at": None},
    {**ROW, "x": 1e300},
    {**ROW, "at": "1970-01-01T00:00:01"},
    {**ROW, "n": 9},
    {**ROW, "n": 1.5},
    {**ROW, "n": "1"},
    {**ROW, "z": 1},
    {"x": 1.0},
    {"rows": [ROW, {**ROW, "n": 3}]},
    {"rows": [ROW, {**ROW, "n": True}]},
    {"rows": []},
    {"rows": [ROW] * 300},
    {"rows": [ROW] * 9000},
    [ROW],
]

V2 = {
    "inputs": [
        {"name": field.name, "datatype": field.v2, "shape": [2], "data": [value, value]}
        for field, value in zip(INPUTS, (0.5, 2, 1.5, 3), strict=True)
    ]
}


def as_json(data):
    """Without escapes, which the compiled part leaves to Python."""
    return json.dumps(data, ensure_ascii=False).encode()


def answers(bundle):
    """What a server says to each request, one by one and then many at once."""
    found = []
    with running(Server({"numbers": bundle.path}, port=0)) as url:
        host, port = url.removeprefix("http://").split(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=30)

        def ask(target, body, **headers):
            connection.request("POST", target, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()

        found += [ask("/predict/numbers", as_json(body)) for body in ASKED]
        for body in (ROW, {**ROW, "größe": None}):
            instances = as_json({"instances": [body, ROW]})
            found.append(ask("/v1/models/numbers:predict", instances))
        found.append(ask("/v2/models/numbers/infer", as_json(V2)))
        binary = {"binary_data_output": True}
        for order in (INPUTS.fields, sorted(INPUTS.fields, key=lambda f: "qdf".index(code(f)))):
            arrays = [np.array([1, 2], field.numpy) for field in order]
            inputs = [
                {
                    "name": field.name,
                    "datatype": field.v2,
                    "shape": [2],
                    "parameters": {"binary_data_size": array.nbytes},
                }
                for field, array in zip(order, arrays, strict=True)
            ]
            head = json.dumps({"inputs": inputs, "parameters": binary}).encode()
            body = b"".join((head, *(array.tobytes() for array in arrays)))
            name = "Inference-Header-Content-Length"
            for _ in range(2):  # the second time its layout is known
                said = ask("/v2/models/numbers/infer", body, **{name: str(len(head))})
                found.append(said)
        connection.close()
    return found


def code(field):
    return Form((field,)).codes


@compiled
def test_a_server_says_the_same_with_and_without_the_compiled_part(bundle, monkeypatch):
    ours = answers(bundle)
    in_python(monkeypatch)
    theirs = answers(bundle)
    assert ours == theirs
    statuses = [status for status, _ in ours]
    assert statuses[:4] == [200] * 4
    assert statuses[4:9] == [400] * 5
    assert statuses[9:15] == [200, 200, 400, 200, 400, 400]  # a bool is an integer
    assert statuses[15:] == [200] * 7


def test_a_bound_run_gives_the_bits_of_a_plain_one(bundle):
    model = Model.load("numbers", Artefact(digest_of(bundle.path), bundle.path))
    random = np.random.default_rng(0)
    assert model.bound is not None
    for rows in (1, 2, 7, bounds.MOST_ROWS, 3):
        arrays = [
            random.normal(size=rows).astype(np.float32),
            random.integers(0, 4, rows),
            random.normal(size=rows),
            random.integers(0, 10**15, rows),
        ]
        model.columns.fill([arrays], model.bound.memory, rows)
        bound, (_, plain) = model.bound.run(rows), model.run([arrays])
        assert [a.tobytes() for a in bound] == [a.tobytes() for a in plain]
        assert [a.shape for a in bound] == [a.shape for a in plain]


def test_the_environment_leaves_the_compiled_part_out():
    text = "from drivetrain.serve import native; print(native.path, native.compiled)"
    done = subprocess.run(
        [sys.executable, "-c", text],
        env={native.SWITCH: "0", "PATH": "/usr/bin", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["python", "None"]
