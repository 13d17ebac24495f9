"""The pieces of bench/serving.py that need no peer: model, requests, what load says, the end."""

import http.client
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from bench import model_a, ours, serving, soak, v2_address
from bench.clients import Clients
from bench.figure import figure, show
from bench.load import Request, of_h2load, of_wrk
from bench.ours import ALIAS
from bench.peer import ENVIRONMENTS, PEERS, PYTHON_PEERS, echo, grpc_aio
from bench.processes import started
from drivetrain.core.bundle import Bundle
from drivetrain.serve.server import Server, running

ROW = model_a.rows(1)[0]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return model_a.write(tmp_path_factory.mktemp("model_a") / "bundle")


@pytest.fixture(scope="module")
def port(bundle: Bundle) -> Iterator[int]:
    server = Server({ALIAS: bundle.path}, port=0, grace_seconds=5.0)
    with running(server):
        yield server.port


def ask(port: int, request: Request) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("POST", request.target, request.body, request.all_headers)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body


def test_model_a_has_39_columns_and_the_layers_that_it_says(bundle):
    weights = {t.name: tuple(t.dims) for t in bundle.graph.proto.graph.initializer}
    assert len(bundle.manifest.inputs) == 26 + 13
    assert weights["tables"] == (26 * 10_000, 16)
    found = [shape for shape in weights.values() if len(shape) == 2 and shape != weights["tables"]]
    assert sorted(found) == sorted([(13, 16), (432, 512), (512, 256), (256, 1)])


def test_the_same_seed_makes_the_same_graph_and_another_another():
    assert model_a.graph(3).digest == model_a.graph(3).digest != model_a.graph(4).digest


def test_a_row_alone_and_among_others_gets_the_same_prediction(bundle):
    rows = model_a.rows(8)
    together = bundle.predict(rows)[model_a.OUTPUT]
    alone = [bundle.predict([row])[model_a.OUTPUT][0] for row in rows]
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    assert together.std() > 0.001


def test_a_missing_category_is_the_first_and_a_missing_number_is_zero(bundle):
    given = {**ROW, "C3": None, "I5": None}
    plain = {**ROW, "C3": 0, "I5": 0.0}
    assert bundle.predict([given])[model_a.OUTPUT] == bundle.predict([plain])[model_a.OUTPUT]


def test_every_form_of_a_request_gets_the_prediction_of_the_bundle(bundle, port):
    expected = bundle.predict([ROW])[model_a.OUTPUT][0]
    status, body = ask(port, ours.one_row())
    assert status == 200
    assert json.loads(body)["predictions"][0][model_a.OUTPUT] == pytest.approx(expected, rel=1e-5)
    status, body = ask(port, ours.v2_row())
    assert status == 200
    assert json.loads(body)["outputs"][0]["data"] == pytest.approx([expected], rel=1e-5)
    status, body = ask(port, ours.binary(64))
    assert status == 200
    found = np.frombuffer(body[-64 * 4 :], np.float32)
    want = bundle.predict(model_a.rows(64))[model_a.OUTPUT]
    np.testing.assert_allclose(found, want, rtol=1e-5)


def test_a_repeated_binary_request_gets_the_predictions_of_its_own_rows(bundle, port):
    for seed in range(3):
        rows = model_a.rows(5, seed)
        body, head = model_a.v2_binary(rows)
        request = replace(
            ours.binary(5), body=body, headers={"Inference-Header-Content-Length": str(head)}
        )
        status, answer = ask(port, request)
        assert status == 200
        found = np.frombuffer(answer[-5 * 4 :], np.float32)
        np.testing.assert_allclose(found, bundle.predict(rows)[model_a.OUTPUT], rtol=1e-5)


def test_a_poisoned_row_is_refused_as_the_clients_fault(port):
    assert ask(port, ours.poisoned())[0] == 400


def test_a_grpc_message_says_in_protobuf_what_the_row_says(bundle):
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="v2.proto", package="v2", syntax="proto3")
    tensor = file.message_type.add(name="Tensor")
    tensor.field.add(name="name", number=1, type=9, label=1)
    tensor.field.add(name="datatype", number=2, type=9, label=1)
    tensor.field.add(name="shape", number=3, type=3, label=3)
    request = file.message_type.add(name="Request")
    request.field.add(name="model_name", number=1, type=9, label=1)
    request.field.add(name="inputs", number=5, type=11, label=3, type_name=".v2.Tensor")
    request.field.add(name="raw", number=7, type=12, label=3)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    kind = message_factory.GetMessageClass(pool.FindMessageTypeByName("v2.Request"))
    framed = model_a.grpc_message([ROW], ALIAS)
    assert framed[:5] == b"\0" + (len(framed) - 5).to_bytes(4, "big")
    message = kind.FromString(framed[5:])
    assert message.model_name == ALIAS
    assert {tuple(tensor.shape) for tensor in message.inputs} == {(1,)}
    kinds = {"INT64": np.int64, "FP32": np.float32}
    found = {
        tensor.name: np.frombuffer(raw, kinds[tensor.datatype])[0]
        for tensor, raw in zip(message.inputs, message.raw, strict=True)
    }
    assert found == pytest.approx(ROW)


def test_a_request_made_of_a_servers_metadata_is_one_that_it_answers(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", f"/v2/models/{ALIAS}")
    body = v2_address.row_of(json.loads(connection.getresponse().read()))
    connection.close()
    assert ask(port, Request(target=f"/v2/models/{ALIAS}/infer", body=body))[0] == 200


def test_metadata_with_strings_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'city': found BYTES"):
        v2_address.row_of({"inputs": [{"name": "city", "datatype": "BYTES", "shape": [-1]}]})


def test_what_wrk_says_is_read_and_failures_are_no_answers():
    load = of_wrk("Running\nLOAD 1000 2000000 1 2 3 10 4 250 900\n", cpu=0.5)
    assert (load.answered, load.failed, load.rps) == (990, 20, 495.0)
    assert (load.p50, load.p99, load.cpu) == (250e-6, 900e-6, 0.25)
    with pytest.raises(RuntimeError, match="unable to connect"):
        of_wrk("unable to connect to 127.0.0.1:1 Connection refused")


def test_what_h2load_says_is_read_and_failures_are_no_answers():
    text = (
        "finished in 2.00s, 500.00 req/s, 1.00MB/s\n"
        "requests: 1003 total, 1003 started, 1000 done, 900 succeeded, 103 failed, "
        "3 errored, 0 timeout\n"
        "status codes: 900 2xx, 0 3xx, 0 4xx, 100 5xx\n"
        "traffic: 1.00MB (1048576) total, 10.00KB (10240) headers (space savings 90%), "
        "8.79KB (9000) data\n"
    )
    load = of_h2load(text, 2.0)
    assert (load.answered, load.failed, load.rps, load.bytes_each) == (900, 103, 450.0, 10.0)
    with pytest.raises(RuntimeError, match="h2load said"):
        of_h2load("", 2.0)


def test_clients_tell_answers_from_refused_connections(port):
    with Clients(port, ours.one_row(), 2) as clients:
        while clients.seen.good < 5:
            pass
    assert clients.seen.lost == clients.seen.bad == clients.seen.refused == 0


def test_a_figure_is_one_line_of_json(capsys):
    show(figure("drain_lost", [0.0, 1.0], "none: a bound", 0.0, 1.0), as_json=True)
    line = json.loads(capsys.readouterr().out)
    assert list(line) == ["figure", "value", "low", "high", "peer", "goal"]
    assert (line["value"], line["low"], line["high"]) == (1.0, 0.0, 1.0)


def test_every_figure_has_one_measurement_and_an_unknown_one_is_refused(monkeypatch, capsys):
    assert len(serving.FIGURES) == len(set(serving.FIGURES))
    monkeypatch.setattr(sys, "argv", ["serving.py", "--only", "drain_lost,drain_found"])
    with pytest.raises(SystemExit):
        serving.main()
    assert "found drain_found, allowed: " in capsys.readouterr().err


def test_every_peer_has_its_script_and_its_pins():
    for peer in (*PYTHON_PEERS, grpc_aio(2), echo(1)):
        assert (PEERS / peer.script).is_file()
        if peer.environment:
            pins = (PEERS / f"{peer.environment}.txt").read_text().splitlines()
            assert any(line.startswith(f"{peer.package}==") for line in pins)
            assert "onnxruntime==1.31.0" in pins
            assert peer.python.is_relative_to(ENVIRONMENTS)


def test_a_server_and_all_that_it_started_end_with_the_block(tmp_path):
    code = "import subprocess, sys; subprocess.run(['sleep', '60'])"
    with started([sys.executable, "-c", code], tmp_path / "log", 0) as server:
        server.wait(lambda: len(server.tree()) == 2, 10.0)
        pids = [process.pid for process in server.tree()]
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_a_server_that_ends_at_once_is_told_with_what_it_printed(tmp_path):
    code = "raise SystemExit('no such model')"
    with (
        started([sys.executable, "-c", code], tmp_path / "log", 0) as server,
        pytest.raises(RuntimeError, match="ended with 1; it printed: no such model"),
    ):
        server.wait(lambda: False, 10.0)


def test_a_load_that_fails_ends_the_soak(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise FileNotFoundError("h2load")

    seen = SimpleNamespace(good=1, bad=1, lost=0, answered={})
    server = SimpleNamespace(port=1, url="", resident_mb=lambda: 1.0, cpu_seconds=lambda: 0.0)
    monkeypatch.setattr(soak, "serving", lambda at: nullcontext(server))
    monkeypatch.setattr(soak, "Clients", lambda *_, **__: nullcontext(SimpleNamespace(seen=seen)))
    monkeypatch.setattr(soak, "h2load", fails)
    monkeypatch.setattr(soak.ours, "get", lambda *_: b"")
    found: list[BaseException] = []

    def work() -> None:
        try:
            list(soak.soak(SimpleNamespace(promote=lambda name: None), 1.0))
        except FileNotFoundError as error:
            found.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(60)
    assert found, "it waits for its watch"
