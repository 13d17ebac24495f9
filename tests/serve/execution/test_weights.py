"""Weights in memory once: the same bits, one maker, nothing left behind, less memory."""

import fcntl
import os
import signal
import stat
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from drivetrain.core.bundle import Bundle, Manifest
from drivetrain.core.graph import IR_VERSION, OPSET, Graph, Session
from drivetrain.core.schema import Field, Schema
from drivetrain.serve.execution.loading import Loader
from drivetrain.serve.execution.weights import Weights

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers share weights on Linux")


def dense_graph(rows: int = 64, width: int = 32, seed: int = 0) -> Graph:
    """An embedding of ``code`` with ``rows`` rows and a matrix product of it."""
    random = np.random.default_rng(seed)
    return _graph(
        [
            helper.make_node("Max", ["code", "first"], ["known"]),  # a missing one is the least
            helper.make_node("Gather", ["table", "known"], ["embedded"]),
            helper.make_node("Gemm", ["embedded", "weight"], ["sum"]),
            helper.make_node("Tanh", ["sum"], ["out"]),
        ],
        helper.make_tensor_value_info("code", TensorProto.INT64, ["rows"]),
        {
            "first": np.array(0),
            "table": random.normal(size=(rows, width)),
            "weight": random.normal(size=(width, 96)),
        },
        96,
    )


def image_graph() -> Graph:
    """Two convolutions, whose weights ONNX Runtime lays out anew for the processor at hand."""
    random = np.random.default_rng(1)
    nodes = [
        helper.make_node("Conv", ["image", "first"], ["wide"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["wide"], ["positive"]),
        helper.make_node("Conv", ["positive", "second"], ["narrow"]),
        helper.make_node("GlobalAveragePool", ["narrow"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["out"]),
    ]
    weights = {
        "first": random.normal(size=(32, 3, 3, 3)),
        "second": random.normal(size=(16, 32, 3, 3)),
    }
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["rows", 3, 8, 8])
    return _graph(nodes, image, weights, 16)


def _graph(nodes, given, weights, width):
    constants = [
        numpy_helper.from_array(a.astype(np.float32) if a.dtype == np.float64 else a, name)
        for name, a in weights.items()
    ]
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["rows", width])
    made = helper.make_graph(nodes, "made", [given], [out], constants)
    opsets = [helper.make_opsetid("", OPSET)]
    return Graph.from_proto(helper.make_model(made, ir_version=IR_VERSION, opset_imports=opsets))


def feeds(graph: Graph, rows: int):
    random = np.random.default_rng(rows)
    if "code" in graph.inputs:
        return {"code": random.integers(0, 64, rows)}
    return {"image": random.normal(size=(rows, 3, 8, 8)).astype(np.float32)}


@pytest.fixture
def weights(tmp_path):
    made = Weights(tmp_path, least=0)
    yield made
    made.close()


def load(weights: Weights, graph: Graph, asked: Counter | None = None) -> Session:
    def data() -> bytes:
        if asked is not None:
            asked[graph.digest] += 1
        return graph.model

    return weights.session(graph.digest, data)


@pytest.mark.parametrize("graph", [dense_graph(), image_graph()], ids=["dense", "image"])
def test_shared_weights_give_the_bits_of_a_plain_load(weights, graph):
    plain, shared = Session(graph.model, threads=1), load(weights, graph)
    for rows in (1, 3, 64):
        given = feeds(graph, rows)
        assert shared.raw(given, ["out"])[0].tobytes() == plain.raw(given, ["out"])[0].tobytes()
    assert shared.inputs == plain.inputs
    assert shared.outputs == plain.outputs


def test_a_graph_is_made_once_and_mapped_from_a_file_of_this_user_alone(weights):
    asked = Counter()
    sessions = [load(weights, dense_graph(), asked) for _ in range(3)]
    assert list(asked.values()) == [1]
    assert "weights.bin" in Path("/proc/self/maps").read_text()
    for path in (weights.path, *weights.path.rglob("*")):
        assert path.stat().st_uid == os.geteuid()
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
    assert len(sessions) == 3


def test_versions_that_nobody_uses_are_deleted_and_those_in_use_stay(weights):
    def kept():
        return len(list(weights.path.glob("*/weights.bin")))

    first = load(weights, dense_graph(seed=1))
    second = load(weights, dense_graph(seed=2))
    assert kept() == 2
    del first
    third = load(weights, dense_graph(seed=3))
    assert kept() == 2
    del second, third
    load(weights, dense_graph(seed=4))
    assert kept() == 1


def test_what_a_killed_maker_left_is_made_again(weights):
    load(weights, dense_graph())
    (made,) = weights.path.glob("*/weights.bin")
    entry = made.parent
    entry.rename(entry.with_suffix(".making"))
    (weights.path / "of-another-version.making").mkdir()
    assert load(weights, dense_graph()).raw(feeds(dense_graph(), 2), ["out"])[0].shape == (2, 96)
    assert [path.name for path in weights.path.iterdir() if path.is_dir()] == [entry.name]


def test_close_deletes_the_directory_and_loaded_graphs_go_on(tmp_path):
    weights = Weights(tmp_path, least=0)
    session = load(weights, dense_graph())
    weights.close()
    assert list(tmp_path.iterdir()) == []
    assert session.raw(feeds(dense_graph(), 2), ["out"])[0].shape == (2, 96)


def test_what_a_killed_server_left_goes_when_the_next_begins_and_a_live_ones_stays(tmp_path):
    script = (
        "import sys, time; from pathlib import Path; "
        "from drivetrain.serve.execution.weights import Weights; "
        "print(Weights(Path(sys.argv[1])).path, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    dead, alive = (Path(child.stdout.readline().strip()) for child in children)
    children[0].kill()
    children[0].wait()
    long_ago = time.time() - 3600
    for path in (dead, alive):
        os.utime(path, (long_ago, long_ago))
    weights = Weights(tmp_path)
    assert not dead.exists()
    assert alive.exists()
    weights.close()
    children[1].kill()
    for child in children:
        child.communicate()


def test_what_another_user_or_a_link_put_there_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "kept").touch()
    parent = tmp_path / "parent"
    parent.mkdir()
    (parent / "drivetrain-weights-link").symlink_to(victim)
    Weights(parent).close()
    assert (victim / "kept").exists()


def bundle_of(path: Path, graph: Graph) -> Bundle:
    inputs = Schema((Field("code", "int64"),))
    outputs = Schema((Field("out", "float32", (96,)),))
    return Bundle.write(path, graph, Manifest(name="dense", inputs=inputs, outputs=outputs), {})


def test_without_room_or_directory_a_worker_keeps_its_weights_to_itself(tmp_path, caplog):
    bundle = bundle_of(tmp_path / "bundle", dense_graph())
    weights = Weights(tmp_path, least=0)
    weights.close()
    session = Loader(weights).session(bundle)
    assert session.raw(feeds(dense_graph(), 2), ["out"])[0].shape == (2, 96)
    assert "keeps its weights to itself" in caplog.text


def test_small_graphs_and_lone_processes_need_no_file(tmp_path):
    bundle = bundle_of(tmp_path / "bundle", dense_graph())
    weights = Weights(tmp_path, least=1 << 20)
    for loader in (Loader(weights), Loader()):
        assert loader.session(bundle).outputs.names == ("out",)
    assert not list(weights.path.glob("*/weights.bin"))
    weights.close()


def test_only_one_process_makes_while_the_others_wait(weights):
    lock = os.open(weights.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    script = (
        "import sys; from drivetrain.core.graph import Graph; from pathlib import Path; "
        "from drivetrain.serve.execution.weights import Weights; "
        "weights = Weights.__new__(Weights); "
        "weights.path = Path(sys.argv[1]); graph = Graph.load(Path(sys.argv[2])); "
        "print('begins', flush=True); "
        "weights.session(graph.digest, lambda: print('makes') or graph.model); print('done')"
    )
    graph = weights.path.parent / "dense.onnx"
    dense_graph().save(graph)
    command = [sys.executable, "-c", script, str(weights.path), str(graph)]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [child.stdout.readline() for child in children] == ["begins\n"] * 2
    assert [child.poll() for child in children] == [None, None]
    os.close(lock)
    said = "".join(child.communicate(timeout=30)[0] for child in children)
    assert sorted(said.split()) == ["done", "done", "makes"]


SERVE = """
import sys
from pathlib import Path
from drivetrain.serve.server import Server
server = Server({"dense": Path(sys.argv[1])}, port=0, workers=int(sys.argv[2]), grace_seconds=2)
sys.exit(server.run(lambda: print("started", flush=True)))
"""


def own_bytes(pid: int) -> int:
    """Memory of a process that is no file's and so is nobody else's but by a fork."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) * 1024


@pytest.fixture
def start(tmp_path):
    """Starts servers that end with the test; gives a process and those that serve in it."""
    started = []

    def begin(bundle: Bundle, workers: int):
        child = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(bundle.path), str(workers)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)},
        )
        started.append(child)
        assert child.stdout.readline() == "started\n", child.communicate()
        pids = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
        return child, [int(pid) for pid in pids] or [child.pid]

    yield begin
    for child in started:
        child.kill()
        child.communicate()


@pytest.mark.slow
def test_more_workers_need_the_memory_of_the_weights_no_second_time(start, tmp_path):
    size = 80 << 20
    bundle = bundle_of(tmp_path / "bundle", dense_graph(rows=size // 4 // 32))
    own = {}
    for workers in (1, 2, 4):
        child, pids = start(bundle, workers)
        own[workers] = [own_bytes(pid) for pid in pids]
        child.send_signal(signal.SIGTERM)
        assert child.wait(20) == 0
    assert own[1][0] > size
    for workers in (2, 4):
        assert len(own[workers]) == workers
        assert max(own[workers]) < own[1][0] - 0.8 * size
    assert not list(tmp_path.glob("drivetrain-weights-*"))


def test_workers_whose_supervisor_is_killed_take_the_directory_with_them(start, tmp_path):
    bundle = bundle_of(tmp_path / "bundle", dense_graph())
    child, _ = start(bundle, 2)
    assert len(list(tmp_path.glob("drivetrain-weights-*"))) == 1
    child.kill()
    child.communicate(timeout=20)  # until the last worker has let go of its output
    assert not list(tmp_path.glob("drivetrain-weights-*"))
