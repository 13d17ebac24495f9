"""Several processes on one port: start, sums, replacement, load while one is killed, the end."""

import errno
import http.client
import json
import math
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from onnx import TensorProto, helper
from several import Several, gone, point
from waiting import wait_until

from drivetrain.core.bundle import Bundle, Manifest
from drivetrain.core.graph import IR_VERSION, OPSET, Graph
from drivetrain.core.schema import Field, Schema
from drivetrain.serve.server import Server
from drivetrain.serve.telemetry.metrics import Metrics
from drivetrain.serve.transport.listen import bind, bind_shared
from drivetrain.serve.workers.board import Board
from drivetrain.serve.workers.counts import Counts
from drivetrain.serve.workers.supervisor import LOOK, Supervisor, _described

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers share a port on Linux")


def test_workers_answer_side_by_side_and_the_supervisor_loads_no_model(several):
    server = several()
    assert server.loaded == "False"
    assert len(server.workers) == 2
    assert [server.ask()[0] for _ in range(8)] == [200] * 8
    server.child.send_signal(signal.SIGTERM)
    assert server.child.wait(10) == 0


def test_any_worker_tells_what_all_have_counted_and_never_less_than_before(several):
    server = several()
    counts = []
    for _ in range(12):
        for _ in range(3):
            server.ask()
        counts.append(server.metric(r"drivetrain_requests_total\{.*rows"))
    assert counts == sorted(counts)
    wait_until(lambda: server.metric(r"drivetrain_requests_total\{.*rows") == 36)
    assert server.metric("drivetrain_request_seconds_count.*rows") == 36
    assert server.metric('drivetrain_request_seconds_bucket.*rows.*le="10"') == 36
    assert server.metric("drivetrain_model_info") == 1
    assert server.metric("drivetrain_ready") == 1
    own = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in server.workers]
    found = server.metric("process_resident_memory_bytes") / os.sysconf("SC_PAGE_SIZE")
    assert found == pytest.approx(sum(own), rel=0.2)


def test_a_killed_worker_is_replaced_within_a_second_and_what_it_counted_stays(several):
    server = several()
    for _ in range(20):
        server.ask()
    time.sleep(0.6)  # a worker tells the others four times a second
    victim = server.workers[0]
    os.kill(victim, signal.SIGKILL)
    killed = time.monotonic()
    wait_until(lambda: victim not in server.workers and len(server.workers) == 2)
    assert time.monotonic() - killed < 1.0
    wait_until(lambda: server.metric("drivetrain_ready") == 1)
    assert server.metric(r"drivetrain_requests_total\{.*rows") == 20
    assert [server.ask()[0] for _ in range(8)] == [200] * 8
    server.child.send_signal(signal.SIGTERM)
    assert server.child.wait(10) == 0
    assert "ended by signal 9; it is replaced" in server.child.stderr.read()


def test_connections_that_wait_for_a_killed_worker_are_answered_by_the_next(several):
    server = several()
    for pid in server.workers:
        os.kill(pid, signal.SIGSTOP)
    waiting = [socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(12)]
    for connection in waiting:
        connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
    for pid in server.workers:
        os.kill(pid, signal.SIGKILL)
    for connection in waiting:
        assert connection.recv(1024).startswith(b"HTTP/1.1 200 ")
        connection.close()


def test_no_worker_outlives_a_supervisor_that_is_killed(several):
    server = several()
    workers = server.workers
    server.child.kill()
    wait_until(lambda: all(map(gone, workers)))


def test_a_worker_that_dies_again_and_again_is_replaced_after_longer_and_longer(several):
    server = several()
    survivor = server.workers[1]
    for _ in range(3):
        wait_until(lambda: len(server.workers) == 2)
        victim = next(pid for pid in server.workers if pid != survivor)
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: victim not in server.workers)  # noqa: B023
        assert [server.ask()[0] for _ in range(6)] == [200] * 6
    server.child.send_signal(signal.SIGTERM)
    assert server.child.wait(10) == 0
    pauses = re.findall(r"it is replaced(?: in (\S+) s)?\n", server.child.stderr.read())
    assert pauses == ["", "0.5", "1"]


def test_a_worker_whose_loop_does_not_turn_is_passed_by_then_killed_and_replaced(several):
    server = several(hang_seconds=5.0)
    time.sleep(1.5)  # it has been seen to turn
    victim, other = server.workers
    os.kill(victim, signal.SIGSTOP)
    time.sleep(3.2)
    started = time.monotonic()
    assert [server.ask()[0] for _ in range(12)] == [200] * 12
    assert time.monotonic() - started < 1.4  # nobody waited for the one that is still
    assert victim in server.workers
    wait_until(lambda: victim not in server.workers and len(server.workers) == 2)
    assert other in server.workers
    wait_until(lambda: server.metric("drivetrain_ready") == 1)
    server.child.send_signal(signal.SIGTERM)
    assert server.child.wait(10) == 0
    assert re.search(r"hangs: its loop has not turned for \d+ s", server.child.stderr.read())


def endless(path):
    """A bundle whose graph counts to ``turns`` in a loop of ONNX: a client may ask for years."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["on"]),
            helper.make_node("Add", ["sum", "one"], ["more"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum", TensorProto.INT64, []),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("more", TensorProto.INT64, []),
        ],
    )
    nodes = [
        helper.make_node("ReduceMax", ["turns"], ["most"], keepdims=0),
        helper.make_node("Loop", ["most", "", "zero"], ["counted"], body=body),
        helper.make_node("Mul", ["turns", "zero"], ["zeros"]),
        helper.make_node("Add", ["zeros", "counted"], ["all"]),
    ]
    rows = [helper.make_tensor_value_info(n, TensorProto.INT64, ["rows"]) for n in ("turns", "all")]
    constants = [
        helper.make_tensor(name, TensorProto.INT64, [], [value])
        for name, value in (("zero", 0), ("one", 1))
    ]
    graph = helper.make_graph(nodes, "endless", rows[:1], rows[1:], constants)
    model = helper.make_model(
        graph, ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", OPSET)]
    )
    turns, counted = (Schema((Field(name, "int64"),)) for name in ("turns", "all"))
    manifest = Manifest(name="endless", inputs=turns, outputs=counted)
    return Bundle.write(path, Graph.from_proto(model), manifest, {})


def test_a_graph_that_never_returns_costs_its_worker_and_a_successor_serves(tmp_path):
    alias = tmp_path / "alias"
    point(alias, endless(tmp_path / "endless"))
    server = Several(alias, {"hang_seconds": 2.0})

    def ask(turns, timeout):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=timeout)
        try:
            connection.request("POST", "/predict/tiny", json.dumps({"turns": turns}))
            return json.loads(connection.getresponse().read())["predictions"]
        finally:
            connection.close()

    try:
        assert ask(7, timeout=10) == [{"all": 7}]
        before = server.workers
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            ask(1 << 50, timeout=20)
        wait_until(lambda: len(server.workers) == 2 and server.workers != before)
        assert [ask(n, timeout=10) for n in range(8)] == [[{"all": n}] for n in range(8)]
        server.child.send_signal(signal.SIGTERM)
        assert server.child.wait(10) == 0
        assert "hangs: " in server.child.stderr.read()
    finally:
        server.child.kill()
        server.child.communicate()


def test_a_worker_is_replaced_by_the_version_that_the_others_serve(several, write_bundle, tmp_path):
    server = several(reload_seconds=0.1)
    bad = write_bundle(tmp_path / "bad", weight=2.0)
    (bad.path / "model.onnx").unlink()
    point(server.alias, bad)
    wait_until(lambda: server.metric("drivetrain_reload_failures_total") == 2)
    victim = server.workers[0]
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: victim not in server.workers and len(server.workers) == 2)
    wait_until(lambda: server.metric("drivetrain_ready") == 1)
    assert server.metric("drivetrain_model_info") == 1


def test_every_worker_follows_the_alias_when_one_has(several, write_bundle, tmp_path):
    server = several(reload_seconds=0.3)
    new = write_bundle(tmp_path / "new", weight=2.0)
    point(server.alias, new)

    def versions():
        return {json.loads(server.ask()[1])["version"] for _ in range(8)}

    wait_until(lambda: versions() == {new.digest[:12]})


def test_a_bundle_that_cannot_be_served_is_the_supervisors_error(several, tiny, tmp_path):
    alias = tmp_path / "other"
    alias.write_text(json.dumps(["0" * 64, str(tiny.path)]))
    server = Several(alias, {})
    assert server.child.wait(15) == 1
    _, error = server.child.communicate()
    assert "ValueError" in error
    assert "found digest" in error


def test_what_a_worker_tells_of_an_error_is_written_at_once_in_any_script():
    kind, text = _described(FileNotFoundError("找不到文件" * 1000))
    assert (kind, text[:5]) == ("OSError", "找不到文件")
    line = json.dumps({"seat": 63, "failed": (kind, text)})
    assert len(line) < select.PIPE_BUF


def test_a_port_that_is_taken_is_the_supervisors_error(tiny):
    one, two = bind_shared("127.0.0.1", 0, 2)
    with one, two:
        port = one.getsockname()[1]
        with pytest.raises(OSError, match=f"127.0.0.1:{port}"):
            bind_shared("127.0.0.1", port, 2)
        with pytest.raises(OSError, match=f"127.0.0.1:{port}"):
            Server({"tiny": tiny.path}, port=port, workers=2).run()
    with bind("127.0.0.1", 0) as alone:
        alone.listen()
        with pytest.raises(OSError, match="in use"):
            bind_shared("127.0.0.1", alone.getsockname()[1], 2)


@pytest.mark.parametrize("workers", [-1, -8])
def test_a_count_of_workers_that_cannot_be_is_refused(tiny, workers):
    with pytest.raises(ValueError, match="workers: found"):
        Server({"tiny": tiny.path}, workers=workers)


def test_a_bound_on_hanging_below_what_can_be_seen_is_refused(tiny):
    with pytest.raises(ValueError, match=r"hang_seconds: found 0\.5, allowed: 2 or more"):
        Server({"tiny": tiny.path}, hang_seconds=0.5)


def test_several_workers_start_on_the_main_thread_only(tiny):
    server = Server({"tiny": tiny.path}, port=0, workers=2)
    with ThreadPoolExecutor(1) as pool, pytest.raises(ValueError, match="not the main one"):
        pool.submit(server.run).result()


@pytest.fixture
def supervisor():
    """One that has begun, without its processes."""
    listeners = bind_shared("127.0.0.1", 0, 2)
    made = Supervisor(lambda seat: 0, listeners, 1.0)
    made._begun = True
    yield made
    made._wires.cut()
    for listener in listeners:
        listener.close()


def test_what_one_worker_has_found_is_no_sighup_to_the_others(supervisor, monkeypatch):
    """SIGHUP tries again what was refused: a stopped canary would come back with any news."""
    sent = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    for worker, pid in zip(supervisor._workers, (11, 12), strict=True):
        worker.pid = pid
    supervisor._hear({"seat": 0, "serves": ("tiny", "0" * 64, "/bundle")})
    supervisor._hear({"seat": 1, "serves": ("tiny", "0" * 64, "/bundle")})
    assert sent == [(12, LOOK)]
    assert LOOK != signal.SIGHUP


def test_a_worker_that_is_never_ready_is_killed_and_what_it_loads_is_named(
    supervisor, monkeypatch, caplog
):
    sent = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    supervisor._start_seconds = 5.0
    old, new = supervisor._workers
    for worker, age, pid in ((old, 6.0, 11), (new, 1.0, 12)):
        worker.pid, worker.born = pid, time.monotonic() - age
    supervisor._hear({"seat": 0, "loads": "tiny"})
    supervisor._looked = -math.inf
    supervisor._look()
    assert sent == [(11, signal.SIGKILL)]
    assert "worker 0 (process 11) hangs: it loads tiny and is not ready after 6 s" in caplog.text


def test_a_start_that_hangs_in_loading_is_the_supervisors_error():
    found = subprocess.run(
        [sys.executable, "-c", STUCK], capture_output=True, text=True, timeout=60, check=False
    )
    assert found.returncode == 3
    assert "hangs: it loads tiny and is not ready after" in found.stdout


STUCK = """
import sys, time
from drivetrain.serve.server import Server
try:
    Server({"tiny": lambda: time.sleep(600)}, port=0, workers=2, load_seconds=1.0).run()
except TimeoutError as error:
    print(error)
    sys.exit(3)
"""


def test_a_machine_that_forks_nothing_for_a_while_costs_no_worker_that_serves(
    supervisor, monkeypatch, caplog
):
    """A limit of processes or of memory: to raise here would end the workers that are left."""
    served, dead = supervisor._workers
    served.pid = 11
    forks = []

    def fork():
        forks.append(time.monotonic())
        if len(forks) == 1:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return 12

    monkeypatch.setattr(os, "fork", fork)
    supervisor._fill()
    assert (served.pid, dead.pid) == (11, 0)
    assert "worker 1 cannot be forked: [Errno 11] Resource temporarily" in caplog.text
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    supervisor._fill()  # not at once
    assert len(forks) == 1
    wait_until(lambda: supervisor._fill() is None and dead.pid == 12)
    supervisor._begun, dead.pid, forks[:] = False, 0, []
    with pytest.raises(OSError, match="temporarily unavailable"):  # a start says why it fails
        supervisor._fill()
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_metrics_that_are_too_many_to_share_are_told_of_once(caplog):
    metrics = Metrics()
    counts = Counts(SimpleNamespace(number=1, board=Board(2)), metrics)
    for number in range(30_000):
        metrics.requests.of("tiny", f"{number:064}", "rows", "200").value += 1
    counts.publish()
    counts.publish()
    assert caplog.text.count("worker 1 cannot share its metrics: text of seat 1: found ") == 1
