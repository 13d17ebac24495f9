"""The process: start, aliases that move under load, signals, the end, and who may come in."""

import http.client
import io
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from waiting import wait_until

from drivetrain.serve.execution.models import Artefact, Traffic, pinned
from drivetrain.serve.server import Server

ROW = {"carrier": "AA", "distance": 733.5, "hour": 7}


class Alias:
    """What a registry's alias is to the server: what it means moves."""

    def __init__(self, bundle):
        self.bundle = bundle
        self.asked = 0

    def __call__(self):
        self.asked += 1
        return Traffic(stable=Artefact(self.bundle.digest, self.bundle.path))


def test_an_alias_that_moves_under_load_fails_no_request_and_mixes_no_versions(
    serve, write_bundle, tmp_path
):
    bundles = [write_bundle(tmp_path / str(n), weight=0.25 + n) for n in range(4)]
    expected = {b.digest[:12]: b.predict([ROW])["late"][0] for b in bundles}
    alias = Alias(bundles[0])
    client = serve({"tiny": alias}, reload_seconds=0.05)
    stop = threading.Event()

    def ask(_):
        connection, seen, failures = client.connection(), set(), []
        while not stop.is_set():
            reply = client.post("/predict/tiny", ROW, over=connection)
            version = reply.json.get("version")
            late = np.float32(reply.json["predictions"][0]["late"]) if reply.status == 200 else None
            if reply.status != 200 or late != expected[version]:
                failures.append((reply.status, version, late))
            seen.add(version)
        connection.close()
        return seen, failures

    with ThreadPoolExecutor(4) as pool:
        results = [pool.submit(ask, n) for n in range(4)]
        for bundle in bundles[1:]:
            time.sleep(0.05)
            alias.bundle = bundle
            version = bundle.digest[:12]
            wait_until(lambda v=version: client.get("/v2/models/tiny").json["versions"] == [v])
        time.sleep(0.05)
        stop.set()
        found = [result.result() for result in results]
    assert [failures for _, failures in found] == [[]] * 4
    assert set().union(*(seen for seen, _ in found)) == set(expected)
    info = [line for line in client.get("/metrics").body.decode().splitlines()
            if line.startswith("drivetrain_model_info")]  # fmt: skip
    assert len(info) == 1
    assert bundles[-1].digest in info[0]


def test_a_damaged_version_is_refused_once_and_the_old_one_serves_on(
    serve, tiny, write_bundle, tmp_path, caplog
):
    bad = write_bundle(tmp_path / "bad", weight=2.0)
    graph = bad.path / "model.onnx"
    graph.chmod(0o644)
    graph.write_bytes(graph.read_bytes()[:-1] + b"\0")
    alias = Alias(tiny)
    client = serve({"tiny": alias}, reload_seconds=0.02)
    alias.bundle = bad
    wait_until(lambda: alias.asked > 10)
    with caplog.at_level(logging.ERROR, "drivetrain.serve"):
        assert client.metric('drivetrain_reload_failures_total{model="tiny"}') == 1
    assert client.post("/predict/tiny", ROW).json["version"] == tiny.digest[:12]
    assert "found digest" in caplog.text


def test_an_alias_that_cannot_be_asked_leaves_the_version_as_it_is(serve, tiny):
    broken = threading.Event()

    def ask():
        if broken.is_set():
            raise OSError("the store is away")
        return Traffic(stable=Artefact(tiny.digest, tiny.path))

    client = serve({"tiny": ask}, reload_seconds=0.02)
    broken.set()
    failures = 'drivetrain_reload_failures_total{model="tiny"}'
    wait_until(lambda: failures in client.get("/metrics").body.decode())
    assert client.post("/predict/tiny", ROW).status == 200


def test_several_aliases_are_served_beside_each_other(serve, tiny, write_bundle, tmp_path):
    other = write_bundle(tmp_path / "other", weight=-3.0)
    client = serve({"tiny": tiny.path, "other": other.path})
    for name, bundle in (("tiny", tiny), ("other", other)):
        late = client.post(f"/predict/{name}", ROW).json["predictions"][0]["late"]
        assert np.float32(late) == bundle.predict([ROW])["late"][0]


def test_a_damaged_bundle_is_no_start(serve, tiny, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny.path, copy)
    (copy / "extra").write_text("")
    with pytest.raises(ValueError, match="extra"):
        serve({"tiny": copy})


def test_an_alias_that_means_another_digest_is_no_start(serve, tiny):
    with pytest.raises(ValueError, match="found digest"):
        serve({"tiny": lambda: Traffic(stable=Artefact("0" * 64, tiny.path))})


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a b", "x" * 129, "é"])
def test_a_name_that_could_leave_its_place_is_refused(tiny, name):
    with pytest.raises(ValueError, match="model name: found"):
        Server({name: tiny.path})


def test_nothing_to_serve_is_refused():
    with pytest.raises(ValueError, match="models: found none"):
        Server({})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "example.org"])
def test_off_loopback_a_token_is_required(tiny, host):
    with pytest.raises(ValueError, match="a loopback address, or any with a token"):
        Server({"tiny": tiny.path}, host=host)
    assert Server({"tiny": tiny.path}, host=host, token="secret").host == host


def test_with_a_token_only_its_bearer_comes_in_but_health_is_open(serve):
    client = serve(token="sesame")
    wrong = ("Bearer wrong", "sesame", "Bearer", "Bearer ", "Basic sesame", "Bearersesame")
    for headers in ({}, *({"Authorization": value} for value in wrong)):
        reply = client.post("/predict/tiny", ROW, headers=headers)
        assert (reply.status, reply.headers["www-authenticate"]) == (401, "Bearer")
        assert client.get("/metrics", headers=headers).status == 401
        assert client.get("/no/such/place", headers=headers).status == 401
    for scheme in ("Bearer ", "bearer ", "BEARER  "):  # RFC 9110 §11.1
        good = {"Authorization": f"{scheme}sesame"}
        assert client.post("/predict/tiny", ROW, headers=good).status == 200
    assert client.get("/v2/health/ready").status == 200


def test_a_port_that_is_taken_is_an_error_that_names_it(serve, tiny):
    client = serve()
    with pytest.raises(OSError, match=f"127.0.0.1:{client.server.port}"):
        serve({"tiny": tiny.path}, port=client.server.port)


def test_a_request_that_is_half_sent_when_the_server_ends_is_answered(serve):
    client = serve()
    body = json.dumps(ROW).encode()
    head = b"POST /predict/tiny HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    idle = client.connection()
    assert client.get("/v2", over=idle).status == 200
    with client.socket() as peer:
        peer.sendall(head + body[:5])
        time.sleep(0.1)
        client.server.stop()
        time.sleep(0.2)
        peer.sendall(body[5:])
        data = b"".join(iter(lambda: peer.recv(4096), b""))
    assert data.startswith(b"HTTP/1.1 200 ")
    assert b"Connection: close" in data
    assert idle.sock.recv(1) == b""
    idle.close()


def test_readiness_goes_down_while_requests_are_still_taken(serve):
    client = serve(drain_seconds=0.5)
    assert client.get("/v2/health/ready").status == 200
    client.server.stop()
    wait_until(lambda: client.get("/v2/health/ready").status == 503)
    assert client.get("/v2/health/live").status == 200
    assert client.post("/predict/tiny", ROW).status == 200
    assert client.metric("drivetrain_ready") == 0


def test_the_access_log_has_one_line_for_each_answer(serve):
    log = io.StringIO()
    client = serve(access_log=log)
    client.post("/predict/tiny", ROW, headers={"X-Request-Id": "seven"})
    client.get("/nowhere")
    client.raw(b"nonsense\r\n\r\n")
    wait_until(lambda: log.getvalue().count("\n") == 3)
    first, second, third = map(json.loads, log.getvalue().splitlines())
    for line in (first, second, third):
        assert re.fullmatch(r"127\.0\.0\.1:\d+", line["client"])
        assert abs(line["at"] - time.time()) < 60
    assert (third["status"], third["route"], third["method"]) == (400, "http", "")
    assert first["status"] == 200
    assert first["request_id"] == "seven"
    assert (first["model"], first["route"]) == ("tiny", "rows")
    assert (second["target"], second["status"], second["route"]) == ("/nowhere", 404, "other")


# -- a process of its own --------------------------------------------------------------------------

SERVE = """
import sys
from pathlib import Path
from drivetrain.serve.execution.models import Artefact, Traffic
from drivetrain.serve.server import Server
digest = sys.argv[2]
asked = 0
def ask():
    global asked
    asked += 1
    found = Artefact(digest if asked == 1 else "0" * 64, Path(sys.argv[1]))
    return Traffic(stable=found)
server = Server({"tiny": ask}, port=0, grace_seconds=10, reload_seconds=3600)
def started():
    heavy = {"torch", "onnx", "pyarrow", "duckdb", "pandas"} & set(sys.modules)
    print(server.port, ",".join(heavy) or "light", flush=True)
sys.exit(server.run(started))
"""


def metrics_of(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as reply:
        return reply.read()


@pytest.fixture
def process(tiny):
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", SERVE, tiny.path, tiny.digest],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as child:
        line = child.stdout.readline().split()
        try:
            yield child, int(line[0]), line[1]
        finally:
            child.kill()


def test_a_serving_process_imports_nothing_heavy_and_ends_well_on_sigterm(process):
    child, port, modules = process
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request("POST", "/predict/tiny", json.dumps(ROW))
    assert connection.getresponse().status == 200
    connection.close()
    child.send_signal(signal.SIGTERM)
    assert child.wait(10) == 0
    assert modules == "light"


@pytest.mark.slow
def test_sigterm_under_load_loses_no_accepted_request(process):
    child, port, _ = process
    ended = threading.Event()

    def ask(_):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.connect()
        sent = answered = 0
        while True:
            sent += 1
            connection.request("POST", "/predict/tiny", json.dumps(ROW))
            reply = connection.getresponse()
            answered += reply.status == 200 and len(reply.read()) > 0
            if reply.getheader("Connection") == "close":
                connection.close()
                return sent, answered, ended.is_set()

    with ThreadPoolExecutor(8) as pool:
        results = [pool.submit(ask, n) for n in range(8)]
        time.sleep(0.5)
        ended.set()
        child.send_signal(signal.SIGTERM)
        found = [result.result(20) for result in results]
    assert child.wait(10) == 0
    assert all(sent == answered and after for sent, answered, after in found)
    assert sum(sent for sent, _, _ in found) > 50


def test_sighup_asks_the_aliases_at_once_and_tries_what_was_refused_again(process):
    child, port, _ = process
    # The process asks once an hour by itself; the alias now means what it cannot open.
    failures = b'drivetrain_reload_failures_total{model="tiny"} '
    for n in (1, 2):
        child.send_signal(signal.SIGHUP)
        wait_until(lambda n=n: failures + b"%d" % n in metrics_of(port))
    child.send_signal(signal.SIGINT)
    assert child.wait(10) == 0


def test_pinned_names_the_bundle_that_lies_there(tiny):
    assert pinned(Path(tiny.path))().stable == Artefact(tiny.digest, tiny.path)


# -- several versions ------------------------------------------------------------------------------


def test_a_canary_answers_its_share_and_each_version_can_be_asked_by_itself(
    serve, write_bundle, tmp_path
):
    old, new = (write_bundle(tmp_path / str(n), weight=0.25 + n) for n in range(2))
    stable, canary = (Artefact(bundle.digest, bundle.path) for bundle in (old, new))
    client = serve({"tiny": lambda: Traffic(stable=stable, canary=canary, share=0.25)})
    answered = [client.post("/predict/tiny", ROW).json["version"] for _ in range(200)]
    assert answered.count(new.digest[:12]) == pytest.approx(50, abs=2)
    named = {client.post("/predict/tiny", ROW, headers={"X-Request-Id": "a"}).json["version"]
             for _ in range(5)}  # fmt: skip
    assert len(named) == 1
    versions = client.get("/v2/models/tiny").json["versions"]
    assert versions == [old.digest[:12], new.digest[:12]]
    for version in versions:
        assert client.get(f"/v2/models/tiny/versions/{version}/ready").status == 200


def test_a_canary_that_cannot_be_served_leaves_the_alias_as_it_was(serve, write_bundle, tmp_path):
    bundle = write_bundle(tmp_path / "good")
    stable = Artefact(bundle.digest, bundle.path)
    traffic = [Traffic(stable=stable)]
    client = serve({"tiny": lambda: traffic[-1]}, reload_seconds=0.05)
    traffic.append(Traffic(stable=stable, canary=Artefact("0" * 64, bundle.path), share=1.0))
    wait_until(lambda: b"drivetrain_reload_failures_total{model" in client.get("/metrics").body)
    assert client.post("/predict/tiny", ROW).json["version"] == bundle.digest[:12]
