"""The gRPC services through a real channel: health, streams, records, and what is absent."""

import io
import json
import threading
import time
from contextlib import contextmanager

import grpc
import numpy as np
import pytest
from http2_peer import CALL, HELLO, ending

from drivetrain.serve.protocols.calls import Service
from drivetrain.serve.protocols.grpc_v2 import HealthService
from drivetrain.serve.protocols.messages_tfs import messages as tfs_messages
from drivetrain.serve.protocols.messages_v2 import messages
from drivetrain.serve.telemetry.metrics import Metrics
from drivetrain.serve.transport.frames import DATA, END_HEADERS, HEADERS, frame
from drivetrain.serve.transport.grpc import GrpcStatus, framed
from drivetrain.serve.transport.hpack import encode

SERVICE = "/inference.GRPCInferenceService/"
HEALTH = "/grpc.health.v1.Health/"
PREDICT = "/tensorflow.serving.PredictionService/Predict"
SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3


@contextmanager
def channel(client):
    with grpc.insecure_channel(f"{client.server.host}:{client.server.port}") as found:
        yield found


def ask(client, target, message=b"", metadata=(), timeout=10):
    """The answer's bytes; a grpc.RpcError if there is none."""
    with channel(client) as found:
        return found.unary_unary(target)(_bytes(message), metadata=metadata, timeout=timeout)


def refused(client, target, message=b"", **options):
    with pytest.raises(grpc.RpcError) as caught:
        ask(client, target, message, **options)
    return caught.value.code(), caught.value.details()


def _bytes(message):
    return message if isinstance(message, bytes) else message.SerializeToString()


def row(name="tiny", hour=7, **fields):
    message = messages()["ModelInferRequest"](model_name=name, **fields)
    for column, kind, raw in (
        ("carrier", "BYTES", b"\x02\0\0\0AA"),
        ("distance", "FP32", np.float32(1).tobytes()),
        ("hour", "INT64", np.int64(hour).tobytes()),
    ):
        message.inputs.add(name=column, datatype=kind, shape=[1])
        message.raw_input_contents.append(raw)
    return message


def late_of(data):
    found = messages()["ModelInferResponse"].FromString(data)
    return np.frombuffer(found.raw_output_contents[0], np.float32).tolist()


def late(tiny, hour=7):
    return tiny.predict([{"carrier": "AA", "distance": 1.0, "hour": hour}])["late"].tolist()


def health(data):
    return messages()["HealthResponse"].FromString(data).status


def asked(service=""):
    return messages()["HealthRequest"](service=service)


@pytest.mark.parametrize(
    "service", ["", "inference.GRPCInferenceService", "tensorflow.serving.PredictionService"]
)
def test_the_health_service_knows_the_server_and_its_services(client, service):
    assert health(ask(client, f"{HEALTH}Check", asked(service))) == SERVING


def test_the_health_service_knows_no_other_service(client):
    code, text = refused(client, f"{HEALTH}Check", asked("other"))
    assert code == grpc.StatusCode.NOT_FOUND
    assert "found 'other'" in text


def test_who_watches_is_told_when_the_server_ends_and_does_not_keep_it(tiny):
    from drivetrain.serve.server import Server, running

    server = Server({"tiny": tiny.path}, port=0, grace_seconds=20.0)
    started = time.monotonic()
    with running(server), grpc.insecure_channel(f"127.0.0.1:{server.port}") as found:
        watch = found.unary_stream(f"{HEALTH}Watch")
        answers = watch(_bytes(asked()), timeout=15)
        assert health(next(answers)) == SERVING
        unknown = watch(_bytes(asked("other")), timeout=15)
        assert health(next(unknown)) == SERVICE_UNKNOWN
        unknown.cancel()
        threading.Timer(0.1, server.stop).start()
        assert health(next(answers)) == NOT_SERVING
        with pytest.raises(grpc.RpcError) as caught:
            next(answers)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert time.monotonic() - started < 15


def test_a_token_is_asked_for_but_not_of_who_asks_for_health(serve):
    client = serve(token="secret")
    code, text = refused(client, f"{SERVICE}ModelInfer", row())
    assert (code, "Bearer TOKEN" in text) == (grpc.StatusCode.UNAUTHENTICATED, True)
    bearer = [("authorization", "Bearer secret")]
    assert ask(client, f"{SERVICE}ModelInfer", row(), metadata=bearer)
    for target in (f"{SERVICE}ServerLive", f"{SERVICE}ServerReady", f"{HEALTH}Check"):
        assert ask(client, target) == b"\x08\x01"
    with channel(client) as found, pytest.raises(grpc.RpcError) as caught:
        list(found.stream_stream(f"{SERVICE}ModelStreamInfer")(iter([_bytes(row())])))
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


def streamed(client, sent, timeout=10):
    with channel(client) as found:
        call = found.stream_stream(f"{SERVICE}ModelStreamInfer")
        kind = messages()["ModelStreamInferResponse"]
        return [kind.FromString(data) for data in call(iter(sent), timeout=timeout)]


def test_a_stream_answers_each_call_in_order_and_ends_behind_the_last(client, tiny):
    sent = [_bytes(row(hour=number % 24, id=str(number))) for number in range(100)]
    got = streamed(client, sent)
    assert [answer.infer_response.id for answer in got] == [str(n) for n in range(100)]
    for number, answer in enumerate(got):
        assert late_of(answer.infer_response.SerializeToString()) == late(tiny, number % 24)


def test_an_error_in_a_stream_is_its_calls_alone_and_names_it(client, tiny):
    sent = [row(id="a"), row("tinny", id="b"), row(hour=99, id="c"), b"\xff\xff", row(id="e")]
    got = streamed(client, [_bytes(message) for message in sent])
    assert [answer.infer_response.id for answer in got] == ["a", "b", "c", "", "e"]
    errors = [answer.error_message for answer in got]
    assert (errors[0], errors[4]) == ("", "")
    assert "Did you mean 'tiny'?" in errors[1]
    assert "out of data bounds" in errors[2]
    assert "body: found" in errors[3]


def test_a_stream_that_is_cancelled_leaves_nothing_behind(serve):
    client = serve()
    gone = threading.Event()
    with channel(client) as found:

        def endless():
            while not gone.is_set():
                yield _bytes(row())

        call = found.stream_stream(f"{SERVICE}ModelStreamInfer")(endless(), timeout=10)
        for _ in range(20):
            next(call)
        call.cancel()
        gone.set()
    deadline = time.monotonic() + 5
    while client.metric('drivetrain_queue_rows{model="tiny"}') and time.monotonic() < deadline:
        time.sleep(0.01)
    assert client.metric('drivetrain_queue_rows{model="tiny"}') == 0
    assert ask(client, f"{SERVICE}ModelInfer", row())


def test_a_call_whose_deadline_is_over_is_not_computed(serve):
    client = serve()
    code, _ = refused(client, f"{SERVICE}ModelInfer", row(), timeout=-1)
    assert code == grpc.StatusCode.DEADLINE_EXCEEDED


def tensors():
    message = tfs_messages()["PredictRequest"]()
    message.model_spec.name = "tiny"
    for name, kind, field, value in (
        ("carrier", 7, "string_val", b"AA"),
        ("distance", 1, "float_val", 1.0),
        ("hour", 9, "int64_val", 7),
    ):
        tensor = message.inputs[name]
        tensor.dtype = kind
        tensor.tensor_shape.dim.add(size=1)
        getattr(tensor, field).append(value)
    return message


def test_one_row_of_tensors_is_predicted_whatever_form_its_numbers_have(client, tiny):
    typed, packed, narrow = tensors(), tensors(), tensors()
    packed.inputs["distance"].float_val[:] = []
    packed.inputs["distance"].tensor_content = np.float32(1).tobytes()
    narrow.inputs["hour"].dtype = int32 = 3
    narrow.inputs["hour"].int64_val[:] = []
    narrow.inputs["hour"].int_val[:] = [7]
    assert int32 != typed.inputs["hour"].dtype
    for message in (typed, packed, narrow):
        answer = tfs_messages()["PredictResponse"].FromString(ask(client, PREDICT, message))
        assert list(answer.outputs["late"].float_val) == late(tiny)
        assert answer.model_spec.version.value == int(tiny.digest[:12], 16)


def test_calls_are_counted_logged_and_kept_as_events_like_any_request(serve, tmp_path, tiny):
    log = io.StringIO()
    client = serve(access_log=log, feedback=tmp_path / "events")
    ask(client, f"{SERVICE}ModelInfer", row(id="mine"))
    ask(client, f"{SERVICE}ModelInfer", row(), metadata=[("x-request-id", "theirs")])
    streamed(client, [_bytes(row(id="streamed"))])
    ask(client, PREDICT, tensors(), metadata=[("x-request-id", "predicted")])
    refused(client, f"{SERVICE}ModelInfer", row("tinny"))
    version = tiny.digest[:12]
    for route, count in (("grpc_infer", 2), ("grpc_stream", 1), ("tfs_grpc", 1)):
        labels = f'model="tiny",version="{version}",route="{route}"'
        assert client.metric(f'drivetrain_requests_total{{{labels},code="200"}}') == count
    labels = 'model="",version="",route="grpc_infer",code="404"'
    assert client.metric(f"drivetrain_requests_total{{{labels}}}") == 1
    client.server.stop()
    deadline = time.monotonic() + 10
    while len(log.getvalue().splitlines()) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    told = {line["request_id"]: line["route"] for line in lines if line["request_id"]}
    assert told == {
        "mine": "grpc_infer",
        "theirs": "grpc_infer",
        "streamed": "grpc_stream",
        "predicted": "tfs_grpc",
    }
    while len(events(tmp_path)) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert events(tmp_path) == set(told)


def events(path):
    import pyarrow.parquet as pq

    found = set()
    for file in (path / "events").rglob("*.parquet"):
        found.update(pq.read_table(file)["request_id"].to_pylist())
    return found


def test_without_protobuf_http_goes_on_and_grpc_says_what_is_absent(serve, monkeypatch):
    from drivetrain.serve.protocols import messages as compiled

    def absent(module, extra):
        raise ImportError(f"{module} is not installed: pip install 'drivetrain[{extra}]'")

    monkeypatch.setattr(compiled, "need", absent)
    messages.cache_clear()
    tfs_messages.cache_clear()
    client = serve()
    try:
        for target in (f"{SERVICE}ServerLive", PREDICT, f"{HEALTH}Check"):
            code, text = refused(client, target, b"\x0a\x06\x0a\x04tiny")
            assert code == grpc.StatusCode.UNIMPLEMENTED
            assert "pip install 'drivetrain[grpc]'" in text
        code, text = refused(client, f"{SERVICE}ModelInfer", b"\x0a\x04tiny\x2a\x03\x0a\x01a")
        assert code == grpc.StatusCode.UNIMPLEMENTED
        body = {"carrier": "AA", "distance": 1.0, "hour": 7}
        assert client.post("/predict/tiny", body).status == 200
    finally:
        monkeypatch.undo()
        messages.cache_clear()
        tfs_messages.cache_clear()


def test_a_method_that_is_not_there_is_unimplemented_and_the_nearest_is_named(client):
    code, text = refused(client, f"{SERVICE}ModelStreamInfr")
    assert code == grpc.StatusCode.UNIMPLEMENTED
    assert f"Did you mean '{SERVICE}ModelStreamInfer'?" in text
    assert "/v2/" not in text


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("/tensorflow.serving.PredictionService/Classify", "allowed: Predict"),
        ("/tensorflow.serving.PredictionService/Regress", "allowed: Predict"),
        ("/tensorflow.serving.PredictionService/MultiInference", "allowed: Predict"),
        ("/tensorflow.serving.ModelService/HandleReloadConfigRequest", "what the aliases mean"),
        (f"{SERVICE}TraceSetting", "TraceSetting: found a setting of Triton's own"),
        (f"{SERVICE}LogSettings", "LogSettings: found a setting of Triton's own"),
    ],
)
def test_what_is_not_offered_says_what_is(client, target, text):
    code, found = refused(client, target)
    assert code == grpc.StatusCode.UNIMPLEMENTED
    assert text in found


def test_one_clients_order_of_fields_does_not_change_where_others_go(serve):
    """protobuf lets fields come in any order, and the address is remembered by its bytes."""
    client = serve()
    whole = row().SerializeToString()
    name, rest = whole[: 2 + whole[1]], whole[2 + whole[1] :]
    pinned = name + rest + b"\x12\x0cffffffffffff"  # the version behind all else
    assert refused(client, f"{SERVICE}ModelInfer", pinned)[0] == grpc.StatusCode.NOT_FOUND
    assert ask(client, f"{SERVICE}ModelInfer", whole)


class Able:
    """What a health service asks of an application."""

    ready = able = True


def test_a_watch_that_ends_for_a_mistake_is_forgotten(peer):
    watching = HealthService(Able(), Service(engine=None, metrics=Metrics(), request_ids=None))
    client = peer()
    client.http.streams = {b"/a": watching.streams[f"{HEALTH}Watch"]}
    opened = frame(HEADERS, END_HEADERS, 1, encode(CALL))
    client.send(HELLO, opened, frame(DATA, 0, 1, framed(b"")))
    assert len(watching._watches) == 1
    found = client.send(frame(DATA, 0, 1, framed(b"\xff")))
    assert ending(client, found)[0] == GrpcStatus.INVALID_ARGUMENT
    assert not watching._watches
