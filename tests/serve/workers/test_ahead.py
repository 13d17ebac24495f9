"""What is made before a server is there: found by its workers, in nobody's way, soon gone."""

import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from several import gone
from waiting import wait_until

from drivetrain.core.bundle import Bundle, Manifest
from drivetrain.core.graph import IR_VERSION, OPSET, Graph
from drivetrain.core.schema import Field, Schema

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers share weights on Linux")

ROWS, WIDTH = 40_000, 32
"""Of a table of 5 MB: more than the least that workers share."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    table = np.random.default_rng(0).normal(size=(ROWS, WIDTH)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Max", ["code", "first"], ["known"]),  # a missing one is the least
            helper.make_node("Gather", ["table", "known"], ["out"]),
        ],
        "looked_up",
        [helper.make_tensor_value_info("code", TensorProto.INT64, ["rows"])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["rows", WIDTH])],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.array(0), "first")],
    )
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, ir_version=IR_VERSION, opset_imports=opsets)
    outputs = Schema((Field("out", "float32", (WIDTH,)),))
    manifest = Manifest(name="big", inputs=Schema((Field("code", "int64"),)), outputs=outputs)
    path = tmp_path_factory.mktemp("big") / "bundle"
    return Bundle.write(path, Graph.from_proto(model), manifest, {})


@pytest.fixture
def start(tmp_path):
    """Starts Python with these arguments; a killed one takes what it began with it."""
    started = []

    def begin(*arguments):
        child = subprocess.Popen(
            [sys.executable, "-W", "error", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)},
        )
        started.append(child)
        return child

    yield begin
    for child in started:
        child.kill()
        child.communicate(timeout=20)


def children(pid):
    return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


MAKES = """
import sys
from pathlib import Path
from drivetrain.core.bundle import Bundle, GRAPH
from drivetrain.serve.execution.loading import Loader
from drivetrain.serve.execution.weights import Weights
from drivetrain.serve.workers.ahead import Ahead
bundle, weights = Bundle.open(sys.argv[1]), Weights()
ahead = Ahead(weights, lambda: Loader(weights).prepare(bundle))
print("onnxruntime" in sys.modules, flush=True)
sys.stdin.read(1)
def never():
    raise AssertionError("it was made already")
session = weights.session(bundle.manifest.files[GRAPH]["sha256"], never)
ahead.end()
weights.close()
print(session.outputs.names)
"""


def test_what_is_made_ahead_workers_find(bundle, start, tmp_path):
    child = start("-c", MAKES, bundle.path)
    assert child.stdout.readline() == "False\n"  # another process loads it
    wait_until(lambda: list(tmp_path.glob("drivetrain-weights-*/*/in-use")))
    assert child.communicate("x", timeout=30) == ("('out',)\n", "")


HANGS = """
import fcntl, os, sys, time
from drivetrain.serve.execution.weights import Weights
from drivetrain.serve.workers.ahead import Ahead
weights = Weights()
def hang():
    lock = os.open(weights.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    print("holds", flush=True)
    time.sleep(600)
ahead = Ahead(weights, hang)
sys.stdin.read(1)
ahead.end()
ahead.end()
with weights._alone():
    print("free", flush=True)
weights.close()
"""


def test_the_end_of_one_that_hangs_leaves_no_lock_and_no_process(start):
    child = start("-c", HANGS)
    assert child.stdout.readline() == "holds\n"
    (maker,) = children(child.pid)
    assert child.communicate("x", timeout=30) == ("free\n", "")
    assert gone(maker)


def test_it_does_not_outlive_whoever_began_it(start):
    child = start("-c", HANGS)
    assert child.stdout.readline() == "holds\n"
    (maker,) = children(child.pid)
    child.kill()
    wait_until(lambda: gone(maker))


FAILS = """
import signal, sys
if sys.argv[1:] == ["ignored"]:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
from drivetrain.serve.execution.weights import Weights
from drivetrain.serve.workers.ahead import Ahead
def fail():
    raise ValueError("no such bundle")
weights = Weights()
ahead = Ahead(weights, fail)
print(ahead._pid, flush=True)
sys.stdin.read(1)
ahead.end()
weights.close()
print("goes on")
"""


@pytest.mark.parametrize("children_are", ["heeded", "ignored"])
def test_what_it_finds_wrong_is_left_to_the_workers_to_tell(start, children_are):
    child = start("-c", FAILS, children_are)
    maker = int(child.stdout.readline())
    wait_until(lambda: gone(maker))
    assert child.communicate("x", timeout=30) == ("goes on\n", "")


@pytest.mark.slow
def test_a_served_bundle_has_its_workers_and_nobody_else_beside_it(bundle, start, tmp_path):
    options = ["--port", "0", "--set", "serve.workers=2"]
    child = start("-m", "drivetrain.cli", "serve", bundle.path, *options)
    url = child.stdout.readline().split()[-1]
    assert len(children(child.pid)) == 2
    (weights,) = tmp_path.glob("drivetrain-weights-*")
    assert len(list(weights.glob("*/weights.bin"))) == 1
    with urllib.request.urlopen(f"{url}/v2/models/big/ready", timeout=30) as answer:
        assert answer.status == 200
    child.send_signal(signal.SIGTERM)
    assert child.wait(30) == 0
    assert not list(tmp_path.glob("drivetrain-weights-*"))


@pytest.mark.slow
def test_a_start_that_fails_leaves_nothing(bundle, start, tmp_path):
    arguments = ["serve", bundle.path, bundle.path, "--port", "0", "--set", "serve.workers=2"]
    child = start("-m", "drivetrain.cli", *arguments)
    assert "served name: found 'big', allowed: each name once" in child.communicate(timeout=60)[1]
    assert child.returncode == 2
    assert not list(tmp_path.glob("drivetrain-weights-*"))
