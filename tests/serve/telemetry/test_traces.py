"""Traces: whose requests are traced, what a collector is told, and that nobody waits for it."""

import gzip
import http.server
import io
import json
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace_service
from waiting import wait_until

from drivetrain.serve.telemetry.family import Counter
from drivetrain.serve.telemetry.spans import Context, Request, Timing
from drivetrain.serve.telemetry.traces import Traces, Tracing, parent

ROW = {"carrier": "AA", "distance": 733.5, "hour": 7}
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector:
    """An OTLP/HTTP collector on loopback."""

    def __init__(self):
        self.spans = []
        self.resources = []
        self.status = 200
        self.wait = threading.Event()
        self.wait.set()
        collector = self

        class Take(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                collector.wait.wait(20)
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                if collector.status == 200:
                    collector.take(trace_service.ExportTraceServiceRequest.FromString(body))
                self.send_response(collector.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Take)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}/v1/traces"

    def take(self, request):
        for group in request.resource_spans:
            self.resources.append(values(group.resource.attributes))
            for scope in group.scope_spans:
                self.spans += scope.spans

    def named(self, name):
        return [span for span in self.spans if span.name == name]

    def close(self):
        self.wait.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def values(attributes):
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


@pytest.fixture
def collector():
    one = Collector()
    yield one
    one.close()


def request(number=0, **changes):
    now = time.monotonic()
    fields = {
        "method": "GET", "target": f"/n/{number}", "model": "", "version": "", "route": "other",
        "status": 200, "size": 2, "request_id": "", "received": now, "answered": now + 0.001,
        "timing": None,
    }  # fmt: skip
    return Request(**{**fields, **changes})


SAMPLED = Context(int(TRACE, 16), int(SPAN, 16), True)


# -- the header ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "sampled"),
    [
        (f"00-{TRACE}-{SPAN}-01", True),
        (f"00-{TRACE}-{SPAN}-00", False),
        (f"00-{TRACE}-{SPAN}-03", True),
        (f"cc-{TRACE}-{SPAN}-01-what.comes.later", True),
    ],
)
def test_a_trace_context_says_whose_child_a_request_is(header, sampled):
    assert parent(header.encode()) == SAMPLED._replace(sampled=sampled)


@pytest.mark.parametrize(
    "header",
    [
        "",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-01,00-{TRACE}-{SPAN}-01",
        f"0-{TRACE}-{SPAN}-01",
    ],
)
def test_a_trace_context_that_is_none_is_ignored(header):
    assert parent(header.encode()) is None


@given(st.binary(max_size=80))
def test_no_bytes_of_a_client_break_the_reading_of_a_context(header):
    found = parent(header)
    assert found is None or found.trace_id > 0


# -- what a collector is told ----------------------------------------------------------------------


def test_a_sampled_request_is_a_server_span_with_its_queue_and_run(serve, collector, tiny):
    client = serve(tracing=Tracing(endpoint=collector.endpoint, share=0.0))
    headers = {
        "traceparent": f"00-{TRACE}-{SPAN}-01",
        "tracestate": "congo=t61rcWkgMzE",
        "X-Request-Id": "seven",
    }
    before = time.time_ns()
    assert client.post("/predict/tiny?a=b", {"rows": [ROW] * 3}, headers=headers).status == 200
    assert client.post("/predict/tiny", ROW).status == 200  # not sampled
    wait_until(lambda: len(collector.spans) == 3)
    (server,) = collector.named("POST /predict/{model}")
    (queue,), (run,) = collector.named("queue"), collector.named("run")
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
    assert server.parent_span_id.hex() == SPAN
    assert server.trace_state == "congo=t61rcWkgMzE"
    assert queue.parent_span_id == run.parent_span_id == server.span_id
    assert len({span.span_id for span in collector.spans}) == 3
    assert server.kind == server.SPAN_KIND_SERVER
    found = values(server.attributes)
    assert found["http.request.method"] == "POST"
    assert found["http.response.status_code"] == 200
    assert found["http.route"] == "/predict/{model}"
    assert (found["url.path"], found["url.query"]) == ("/predict/tiny", "a=b")
    assert found["drivetrain.model"] == "tiny"
    assert found["drivetrain.version"] == tiny.digest[:12]
    assert (found["drivetrain.rows"], found["drivetrain.batch.rows"]) == (3, 3)
    assert found["drivetrain.request_id"] == "seven"
    assert found["client.address"] == "127.0.0.1"
    assert before <= server.start_time_unix_nano <= queue.start_time_unix_nano
    assert queue.end_time_unix_nano == run.start_time_unix_nano
    assert run.end_time_unix_nano <= server.end_time_unix_nano <= time.time_ns()
    assert collector.resources[0]["service.name"] == "drivetrain"
    wait_until(lambda: client.metric("drivetrain_trace_spans_total") == 3)


def test_a_share_of_the_requests_without_a_context_begin_traces(serve, collector):
    client = serve(tracing=Tracing(endpoint=collector.endpoint, share=1.0))
    for _ in range(5):
        client.get("/v2")
    unsampled = {"traceparent": f"00-{TRACE}-{SPAN}-00"}
    client.get("/v2", headers=unsampled)
    client.get("/nowhere")
    wait_until(lambda: len(collector.spans) == 6)
    assert len(collector.named("GET /v2")) == 5
    (lost,) = collector.named("GET")  # a target that is none has no route
    assert values(lost.attributes)["http.response.status_code"] == 404
    assert len({span.trace_id for span in collector.spans}) == 6
    assert not any(span.parent_span_id for span in collector.spans)


def test_contexts_that_come_twice_or_broken_are_ignored_and_the_request_is_served(serve, collector):
    client = serve(tracing=Tracing(endpoint=collector.endpoint, share=0.0))
    line = f"traceparent: 00-{TRACE}-{SPAN}-01\r\n".encode()
    head = b"GET /v2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    for lines in (line * 2, b"traceparent: nonsense\r\n"):
        assert client.raw(head + lines + b"\r\n").startswith(b"HTTP/1.1 200 ")
    states = b"tracestate: a=1\r\ntracestate: b=2\r\n"
    assert client.raw(head + line + states + b"\r\n").startswith(b"HTTP/1.1 200 ")
    wait_until(lambda: collector.spans)
    (span,) = collector.spans
    assert span.trace_state == "a=1,b=2"


def test_a_failed_request_is_an_error_and_a_refused_one_is_not(collector):
    spans, dropped = Counter(), Counter()
    traces = Traces(Tracing(endpoint=collector.endpoint), spans, dropped)
    timing = Timing(1, 2, 1.0, 2.0, 3.0)
    for status in (400, 500):
        traces.offer(SAMPLED, b"", request(status=status, timing=timing, method="BREW"))
    traces.close()
    assert (spans.value, dropped.value) == (6, 0)
    good, bad = collector.named("HTTP")
    assert good.status.code == good.status.STATUS_CODE_UNSET
    assert bad.status.code == bad.status.STATUS_CODE_ERROR
    assert values(bad.attributes)["error.type"] == "500"
    assert values(bad.attributes)["http.request.method"] == "_OTHER"
    assert values(bad.attributes)["http.request.method_original"] == "BREW"


def test_versions_do_not_make_a_route_of_their_own(collector):
    traces = Traces(Tracing(endpoint=collector.endpoint), Counter(), Counter())
    for target in ("/v2/models/m/versions/abc/infer", "/v1/models/m:predict", "/v2/models/m"):
        traces.offer(SAMPLED, b"", request(target=target, model="m", version="abc", route="v2"))
    traces.close()
    assert [span.name for span in collector.spans] == [
        "GET /v2/models/{model}/versions/{version}/infer",
        "GET /v1/models/{model}:predict",
        "GET /v2/models/{model}",
    ]


# -- bounds ----------------------------------------------------------------------------------------


def test_a_collector_that_hangs_holds_nobody_up_and_what_is_too_much_is_counted(serve, collector):
    collector.wait.clear()
    client = serve(tracing=Tracing(endpoint=collector.endpoint, share=1.0, queue=10))
    over = client.connection()
    started = time.monotonic()
    for _ in range(60):
        assert client.get("/v2", over=over).status == 200
    time.sleep(1.2)  # the first are being sent now
    for _ in range(60):
        assert client.get("/v2", over=over).status == 200
    assert time.monotonic() - started < 8
    assert client.metric("drivetrain_traces_dropped_total") >= 90
    collector.wait.set()
    over.close()


def test_a_collector_that_refuses_loses_spans_and_nothing_else(collector):
    collector.status = 400  # which is not tried again
    spans, dropped = Counter(), Counter()
    traces = Traces(Tracing(endpoint=collector.endpoint), spans, dropped)
    for number in range(3):
        traces.offer(SAMPLED, b"", request(number))
    wait_until(lambda: dropped.value == 3)
    collector.status = 200
    traces.offer(SAMPLED, b"", request())
    traces.close()
    assert (spans.value, dropped.value) == (1, 3)


def test_the_end_does_not_wait_for_a_collector_that_is_not_there(collector):
    dropped = Counter()
    traces = Traces(Tracing(endpoint="http://127.0.0.1:9/v1/traces"), Counter(), dropped)
    traces.offer(SAMPLED, b"", request())
    started = time.monotonic()
    traces.close()
    assert time.monotonic() - started < 15


@pytest.mark.parametrize("endpoint", ["", "127.0.0.1:4318", "file:///tmp/x", "http://"])
def test_an_endpoint_that_is_no_address_is_refused(endpoint):
    with pytest.raises(ValueError, match="traces: found"):
        Tracing(endpoint=endpoint)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_beyond_all_is_refused(share):
    with pytest.raises(ValueError, match="traces_share: found"):
        Tracing(endpoint="http://x/v1/traces", share=share)


# -- the access log --------------------------------------------------------------------------------


def test_the_access_log_names_the_trace_of_a_request_that_has_one(serve):
    log = io.StringIO()
    client = serve(access_log=log)
    client.get("/v2", headers={"traceparent": f"00-{TRACE}-{SPAN}-00"})
    client.get("/v2")
    wait_until(lambda: log.getvalue().count("\n") == 2)
    first, second = map(json.loads, log.getvalue().splitlines())
    assert first["trace_id"] == TRACE
    assert "trace_id" not in second
