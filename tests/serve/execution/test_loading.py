"""Where a served bundle runs: asked for, picked, told; refused rather than run elsewhere."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from drivetrain.core import placement
from drivetrain.core.bundle import Bundle, Manifest
from drivetrain.core.graph import IR_VERSION, OPSET, Graph
from drivetrain.core.placement import Choice, Trial
from drivetrain.core.schema import Field, Schema
from drivetrain.core.site import Site
from drivetrain.serve.execution.loading import Loader
from drivetrain.serve.execution.weights import Weights
from drivetrain.serve.server import Server, running


@pytest.fixture(scope="module")
def numbers(tmp_path_factory) -> Bundle:
    """``score = tanh(x · w)`` of a vector of four."""
    info = helper.make_tensor_value_info
    weight = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["sum"]),
            helper.make_node("Tanh", ["sum"], ["score"]),
        ],
        "numbers",
        [info("x", TensorProto.FLOAT, ["rows", 4])],
        [info("score", TensorProto.FLOAT, ["rows", 3])],
        [numpy_helper.from_array(weight, "w")],
    )
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, ir_version=IR_VERSION, opset_imports=opsets)
    manifest = Manifest(
        name="numbers",
        inputs=Schema((Field("x", "float32", (4,)),)),
        outputs=Schema((Field("score", "float32", (3,)),)),
    )
    path = tmp_path_factory.mktemp("numbers") / "bundle"
    return Bundle.write(path, Graph.from_proto(model), manifest, {})


def picks(name: str, asked: list[str]):
    def choose(bundle: Bundle, parity: float) -> Choice:
        asked.append(bundle.digest)
        return Choice(name, (Trial(name, {1: 1e-6, 64: 1e-5}, 0.0),))

    return choose


def test_the_plain_cpu_is_the_default_and_measures_nothing(numbers, monkeypatch):
    asked = []
    monkeypatch.setattr(placement, "choose", picks("cpu", asked))
    assert Loader().session(numbers).placement == "cpu"
    assert asked == []


def test_an_asked_for_placement_is_used_and_told(numbers, serve):
    client = serve({"numbers": numbers.path}, placement="openvino")
    reply = client.post("/predict/numbers", {"rows": [{"x": [1, 2, 3, 4]}]})
    assert reply.status == 200
    expected = numbers.predict([{"x": [1, 2, 3, 4]}])["score"][0]
    found = reply.json["predictions"][0]["score"]
    assert np.allclose(found, expected, atol=1e-5)
    assert client.get("/v2/models/numbers").json["platform"] == "openvino_onnx"
    config = client.get("/v2/models/numbers/config").json
    assert (config["platform"], config["backend"]) == ("openvino_onnx", "openvino")
    assert config["parameters"]["placement"] == {"string_value": "openvino"}
    version = numbers.digest[:12]
    labels = f'model="numbers",version="{version}",placement="openvino"'
    assert client.metric(f"drivetrain_placement_info{{{labels}}}") == 1


def test_an_asked_for_placement_that_is_not_here_keeps_the_server_from_starting(numbers):
    if "cuda" in placement.available():
        pytest.skip("this machine has CUDA")
    server = Server({"numbers": numbers.path}, port=0, placement="cuda")
    with pytest.raises(ValueError, match="found 'cuda', allowed here: auto, cpu"), running(server):
        pass


def test_a_placement_that_there_is_not_is_refused_before_anything_is_loaded(numbers):
    with pytest.raises(ValueError, match="unknown placement 'cpuu'"):
        Server({"numbers": numbers.path}, placement="cpuu")
    with pytest.raises(ValueError, match="parity: found -1"):
        Loader(parity=-1.0)


def test_what_auto_picks_is_used_and_said(numbers, monkeypatch, caplog):
    monkeypatch.setattr(placement, "choose", picks("cpu", []))
    with caplog.at_level(logging.INFO, "drivetrain.serve"):
        assert Loader(place="auto").session(numbers).placement == "cpu"
    said = f"placement of version {numbers.digest[:12]}: cpu picked of: cpu 1 rows 1 µs"
    assert said in caplog.text


@pytest.mark.skipif(sys.platform != "linux", reason="workers share what was decided on Linux")
def test_workers_go_by_what_the_first_of_them_measured(numbers, monkeypatch, tmp_path):
    weights, asked = Weights(tmp_path), []
    monkeypatch.setattr(placement, "choose", picks("cpu", asked))
    loaders = [Loader(weights, "auto") for _ in range(3)]
    assert [loader.session(numbers).placement for loader in loaders] == ["cpu"] * 3
    assert asked == [numbers.digest]
    weights.close()


SERVE = """
import logging, sys
from pathlib import Path
from drivetrain.serve.server import Server
logging.basicConfig(level=logging.INFO)
server = Server({"numbers": Path(sys.argv[1])}, port=0, workers=2, placement="auto")
sys.exit(server.run(lambda: server.stop()))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="workers share a port on Linux")
def test_two_workers_measure_once(numbers, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SERVE, str(numbers.path)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(f"placement of version {numbers.digest[:12]}: ") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="workers share what was decided on Linux")
def test_a_decision_that_failed_is_made_again(tmp_path):
    weights = Weights(tmp_path)

    def fails() -> str:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        weights.once("one", fails)
    assert weights.once("one", lambda: "yes") == "yes"
    assert weights.once("one", fails) == "yes"
    weights.close()


def test_a_site_says_where_graphs_run(tmp_path):
    path = Path(tmp_path, "site.toml")
    path.write_text('[serve]\nplacement = "openvino"\nparity = 0.01\n')
    site = Site.load(path)
    assert (site.serve.placement, site.serve.parity) == ("openvino", 0.01)
    assert Site().serve.placement == "cpu"
