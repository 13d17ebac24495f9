"""The server as real clients see it: tritonclient and TensorFlow Serving's, each from its own venv.

Their packages clash with ours (tritonclient wants an older protobuf, the other brings TensorFlow),
so each has an environment of what ``tests/clients`` pins, and a script there that its Python runs
against a server and that prints what it got.
"""

import json
import math
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "tests" / "clients"
ROWS = [
    {"carrier": "AA", "distance": 733.5, "hour": 7},
    {"carrier": "β", "distance": None, "hour": 23},
    {"carrier": None, "distance": 0.1, "hour": None},
]
KINDS = ("http", "grpc", "http.aio", "grpc.aio")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def spoken(environment):
    """``spoken(name, *arguments)``: what a client's script prints."""

    def speak(name, *arguments):
        python = environment(name, "--no-deps", SCRIPTS / f"{name}.txt")
        done = subprocess.run(
            [python, SCRIPTS / f"{name}.py", *arguments],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return speak


@pytest.fixture(scope="module")
def server(tiny):
    from drivetrain.serve.server import Server, running

    server = Server({"tiny": tiny.path}, port=0, management_port=0, grace_seconds=5.0)
    with running(server):
        yield server


@pytest.fixture(scope="module", params=KINDS)
def triton(request, server, spoken):
    """What one kind of tritonclient got: the kind, and the answers by step."""
    addresses = (f"{server.host}:{port}" for port in (server.port, server.management_port))
    return request.param, spoken("triton", *addresses, request.param)


@pytest.fixture(scope="module")
def tensorflow(server, spoken):
    return spoken("tfserving", f"{server.host}:{server.port}")


@pytest.fixture(scope="module")
def predicted(tiny):
    return predictions(tiny, ROWS)


def predictions(bundle, rows):
    found = bundle.predict(rows)
    return {name: found[name].tolist() for name in ("late", "slot")}


def is_http(kind):
    return kind.startswith("http")


def statuses(kind, found):
    """The errors of a step, as statuses of HTTP."""
    names = {"NOT_FOUND": 404, "INVALID_ARGUMENT": 400, "PERMISSION_DENIED": 403}
    names |= {"UNIMPLEMENTED": 501}
    shown = {name: error["status"] for name, error in found.items() if error is not None}
    if is_http(kind):
        return {name: int(status) for name, status in shown.items()}
    return {name: names[status.removeprefix("StatusCode.")] for name, status in shown.items()}


def test_triton_finds_the_server_live_and_ready_and_only_its_models(triton):
    _, found = triton
    assert found["health"] == [True, True, True, False]


def test_triton_reads_metadata_and_configuration(triton, tiny):
    kind, found = triton
    about = found["metadata"]
    assert about["server"]["name"] == "drivetrain"
    assert about["server"]["extensions"] == [
        "binary_tensor_data",
        "model_configuration",
        "statistics",
    ]
    assert about["model"]["versions"] == [tiny.digest[:12]]
    assert [(t["name"], t["datatype"]) for t in about["model"]["inputs"]] == [
        ("carrier", "BYTES"),
        ("distance", "FP32"),
        ("hour", "INT64"),
    ]
    config = about["config"] if is_http(kind) else about["config"]["config"]
    assert (config["platform"], config["backend"]) == ("onnxruntime_onnx", "onnxruntime")
    assert [t["data_type"] for t in config["output"]] == ["TYPE_FP32", "TYPE_INT64"]
    assert config["parameters"]["digest"]["string_value"] == tiny.digest


def test_triton_gets_what_the_bundle_predicts(triton, predicted):
    _, found = triton
    got = found["inference"]
    assert got["all"] == got["again"] == got["version"] == got["columns"] == predicted
    assert got["one"] == {name: values[:1] for name, values in predicted.items()}
    assert got["many"] == {name: values[:2] * 50 for name, values in predicted.items()}
    assert got["chosen"] == {"slot": predicted["slot"], "late": None}
    assert got["id"] == "call-7"


def test_triton_gets_what_the_bundle_predicts_in_json_and_mixed(triton, predicted):
    kind, found = triton
    if is_http(kind):
        one = {name: values[:1] for name, values in predicted.items()}
        given = {name: values[:2] for name, values in predicted.items()}
        assert found["json_tensors"] == {"json": one, "mixed": one, "binary": one, "nan": given}


def test_triton_may_compress_what_it_sends(triton, predicted):
    kind, found = triton
    if is_http(kind):
        ways = ("request gzip", "request deflate", "response gzip", "response deflate")
        assert found["compressed"] == dict.fromkeys(ways, predicted)
    else:
        assert found["compressed"] == {"gzip": predicted, "deflate": predicted}


def test_triton_is_told_what_is_wrong(triton):
    kind, found = triton
    mistakes = found["mistakes"]
    expected = {
        "model": 404,
        "version": 404,
        "datatype": 400,
        "absent": 400,
        "output": 400,
        "classes": 400,
        "poison": 400,
        "metadata": 404,
        "timeout": 400,
        "sequence": 400,
    }
    if not is_http(kind):
        expected |= {"settings": 501}
    assert statuses(kind, mistakes) == expected
    assert "Did you mean 'tiny'?" in mistakes["model"]["message"]
    assert "datatype: found 'FP64', allowed: FP32" in mistakes["datatype"]["message"]
    assert "found no 'hour'" in mistakes["absent"]["message"]
    assert "Did you mean 'late'?" in mistakes["output"]["message"]


def test_triton_may_say_how_long_it_waits(triton, predicted):
    kind, found = triton
    assert found["timeouts"]["enough"] == predicted
    assert found["timeouts"]["generous"] == (None if is_http(kind) else predicted)


def test_triton_reads_statistics(triton, tiny):
    _, found = triton
    (one,) = found["statistics"]["one"]
    assert (one["name"], one["version"]) == ("tiny", tiny.digest[:12])
    assert int(one["inference_stats"]["success"]["count"]) >= 7
    assert int(one["inference_stats"]["compute_infer"]["ns"]) > 0
    assert int(one["inference_count"]) > int(one["execution_count"])
    assert found["statistics"]["every"] == ["tiny"]


def test_triton_loads_and_unloads_on_the_management_port_only(triton, predicted):
    kind, found = triton
    got = found["repository"]
    listed, unloaded = (
        got[name] if is_http(kind) else got[name]["models"] for name in ("index", "unloaded")
    )
    assert [(m["name"], m["state"]) for m in listed] == [("tiny", "READY")]
    assert [(m["name"], m["state"]) for m in unloaded] == [("tiny", "UNAVAILABLE")]
    assert (got["ready"], got["loaded"], got["infers"]) == (False, True, predicted)
    errors = {name: got[name] for name in ("elsewhere", "refused", "unknown", "config")}
    assert statuses(kind, errors) == {
        "elsewhere": 403,
        "refused": 404,
        "unknown": 404,
        "config": 400,
    }
    assert "is not loaded" in got["refused"]["message"]


def test_triton_shares_memory_on_the_management_port_only(triton, predicted):
    kind, found = triton
    got = found["shared_memory"]
    assert (got["late"], got["slot"]) == (predicted["late"], predicted["slot"])
    (region,) = got["status"] if is_http(kind) else got["status"]["regions"].values()
    assert region["key"] == "/" + region["name"]
    assert int(region["byte_size"]) == 256
    assert got["cuda"] in ([], {})
    assert got["after"] in ([], {})
    errors = {name: got[name] for name in ("elsewhere", "small")}
    assert statuses(kind, errors) == {"elsewhere": 403, "small": 400}


def test_triton_streams_calls_and_an_error_ends_only_its_own(triton, predicted):
    kind, found = triton
    if not is_http(kind):
        late = predicted["late"]
        first, second, third, *rest = found["streaming"]
        assert [first, second, *rest] == [[str(n), late, True] for n in (0, 1, 3, 4)]
        assert "unknown model 'tinny'" in third


def test_triton_may_have_many_calls_under_way(triton, predicted):
    kind, found = triton
    assert found["at_once"] == [predicted["late"]] * (16 if kind == "http" else 64)


def test_tensorflow_serving_gets_what_the_bundle_predicts(tensorflow, predicted, tiny):
    number = int(tiny.digest[:12], 16)
    assert tensorflow["predict"] == predicted
    assert tensorflow["float_val"] == predicted["late"]
    assert tensorflow["spec"] == ["tiny", number, "serving_default"]
    assert tensorflow["by_version"] == tensorflow["by_label"] == predicted
    assert tensorflow["filtered"] == {"slot": predicted["slot"]}


def test_tensorflow_serving_may_send_every_form_of_a_tensor(tensorflow, tiny):
    row = {"carrier": "AA", "distance": 0.5, "hour": 7}
    expected = predictions(tiny, [row] * 3)
    assert tensorflow["forms"] == dict.fromkeys(
        ("plain", "columns", "repeated", "typed", "wide"), expected
    )


def test_tensorflow_serving_is_told_what_is_wrong(tensorflow):
    mistakes = tensorflow["mistakes"]
    not_found = {"model", "version", "label", "status"}
    assert {name: error["status"] for name, error in mistakes.items()} == {
        name: "NOT_FOUND"
        if name in not_found
        else "UNIMPLEMENTED"
        if name == "classify"
        else "INVALID_ARGUMENT"
        for name in mistakes
    }
    for name, text in (
        ("model", "Did you mean 'tiny'?"),
        ("signature", "signature_name: found 'train', allowed: serving_default"),
        ("dtype", "input 'distance', dtype: found 'DT_DOUBLE', allowed: DT_FLOAT"),
        ("values", "input 'distance': found '0 values', allowed: 3"),
        ("rows", "input 'hour', rows: found 2, allowed: 3"),
        ("scalar", "input 'hour', shape: found []"),
        ("unknown", "Did you mean 'hour'?"),
    ):
        assert text in mistakes[name]["message"]


def test_tensorflow_serving_reads_signature_and_status(tensorflow, tiny):
    number = int(tiny.digest[:12], 16)
    assert tensorflow["metadata"] == {
        "version": number,
        "method": "tensorflow/serving/predict",
        "inputs": {
            "carrier": ["string", [-1]],
            "distance": ["float32", [-1]],
            "hour": ["int64", [-1]],
        },
        "outputs": {"late": ["float32", [-1]], "slot": ["int64", [-1]]},
    }
    available = 30
    assert tensorflow["status"] == [number, available, 0]
    assert math.log2(number) < 48
