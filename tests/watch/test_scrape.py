"""What is read off two scrapes, against counts by hand and against Prometheus' own rules."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from drivetrain.watch.endpoint import Endpoint
from drivetrain.watch.exposition import parse
from drivetrain.watch.scrape import Between, Scrape, fetch, service


def scrape(at: float, text: str) -> Scrape:
    return Scrape(at, tuple(parse(text)))


def histogram(name: str, buckets: dict[str, float], total: float = 0.0) -> str:
    lines = [f'{name}_bucket{{model="m",le="{le}"}} {n}' for le, n in buckets.items()]
    count = list(buckets.values())[-1] if buckets else 0
    return "\n".join(
        [*lines, f'{name}_sum{{model="m"}} {total}', f'{name}_count{{model="m"}} {count}']
    )


def test_a_quantile_is_linear_within_its_bucket():
    now = scrape(1.0, histogram("h", {"1": 50, "2": 90, "+Inf": 100}))
    between = Between(None, now)
    assert between.quantile(0.25, "h", model="m") == pytest.approx(0.5)
    assert between.quantile(0.7, "h", model="m") == pytest.approx(1.5)
    assert between.quantile(0.99, "h", model="m") == 2.0  # beyond the last edge that is known
    assert between.quantile(0.5, "h", model="other") is None


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.lists(st.floats(0, 20), min_size=1, max_size=60), st.floats(0.01, 0.99))
def test_a_quantile_lies_in_the_bucket_of_the_true_one(values, q):
    registry = CollectorRegistry()
    edges = [1.0, 2.0, 5.0, 10.0]
    measured = Histogram("h", "made", registry=registry, buckets=edges)
    for value in values:
        measured.observe(value)
    found = Between(None, scrape(0.0, generate_latest(registry).decode())).quantile(q, "h")
    rank = q * len(values)
    below = [sum(v <= edge for v in values) for edge in edges]
    at = next((i for i, n in enumerate(below) if n >= rank), None)
    low = 10.0 if at is None else (0.0 if at == 0 else edges[at - 1])
    high = 10.0 if at is None else edges[at]
    assert low <= found <= high


def test_only_what_came_since_the_earlier_scrape_counts():
    before = scrape(10.0, histogram("h", {"1": 100, "2": 100, "+Inf": 100}))
    after = scrape(20.0, histogram("h", {"1": 100, "2": 150, "+Inf": 150}))
    between = Between(before, after)
    assert between.seconds == 10
    assert between.quantile(0.5, "h", model="m") == pytest.approx(1.5)
    assert Between(after, after).quantile(0.5, "h", model="m") is None


def test_a_counter_that_fell_belongs_to_a_server_that_started_anew():
    before, after = scrape(0.0, 'c{code="200"} 1000'), scrape(1.0, 'c{code="200"} 30')
    assert Between(before, after).growth("code", "c") == {"200": 30}


@pytest.fixture
def served():
    """Real client metrics of a server that answered 80 requests well, 15 badly and refused 5."""
    registry = CollectorRegistry()
    requests = Counter(
        "drivetrain_requests", "made", ["model", "version", "route", "code"], registry=registry
    )
    for code, count in {"200": 80, "503": 15, "400": 5}.items():
        requests.labels("m", "3", "/infer", code).inc(count)
    requests.labels("other", "1", "/infer", "500").inc(1_000)
    seconds, rows, prediction = (
        Histogram(f"drivetrain_{name}", "made", ["model", "version", *labels], registry=registry)
        for name, labels in (
            ("request_seconds", ["route"]),
            ("batch_rows", []),
            ("prediction", ["output"]),
        )
    )
    for _ in range(100):
        seconds.labels("m", "3", "/infer").observe(0.003)
        rows.labels("m", "3").observe(4)
        prediction.labels("m", "3", "late").observe(0.25)
        rows.labels("m", "4").observe(64)  # a shadow
        prediction.labels("m", "4", "late").observe(0.75)
    Gauge("drivetrain_queue_rows", "made", ["model"], registry=registry).labels("m").set(7)
    labels = ["model", "version", "digest", "role"]
    info = Gauge("drivetrain_model_info", "made", labels, registry=registry)
    info.labels("m", "2", "old", "stable").set(0)
    info.labels("m", "3", "abc", "stable").set(1)
    info.labels("m", "4", "def", "shadow").set(1)
    Gauge("drivetrain_ready", "made", registry=registry).set(1)
    Gauge("process_resident_memory_bytes", "made", registry=registry).set(1e8)
    Counter("process_cpu_seconds", "made", registry=registry).inc(5)
    kept = Counter("drivetrain_feedback_rows", "made", ["model"], registry=registry)
    kept.labels("m").inc(90)
    lost = Counter("drivetrain_feedback_dropped", "made", ["model"], registry=registry)
    lost.labels("m").inc(10)
    for name, value in ("events", 40), ("auc", 0.7), ("frozen_auc", 0.75), ("rolled_back", 1):
        Gauge(f"drivetrain_learner_{name}", "made", ["model"], registry=registry).labels("m").set(
            value
        )
    return registry


def test_a_service_since_it_started(served):
    found = service(Between(None, scrape(0.0, generate_latest(served).decode())), "m")
    assert found.ready is True
    assert (found.version, found.digest) == ("3", "abc")
    assert found.requests == 100
    assert found.requests_per_s is None
    assert (found.error_share, found.refused_share) == (0.15, 0.05)
    assert 2.5 <= found.p50_ms <= 5
    assert found.batch_rows == 4
    assert found.queue_rows == 7
    assert found.predictions == {"late": 0.25}
    assert found.memory_bytes == 1e8
    assert (found.feedback_rows, found.feedback_dropped) == (90, 10)
    assert (found.learnt, found.auc, found.frozen_auc, found.rolled_back) == (40, 0.7, 0.75, True)


def test_rates_between_two_scrapes(served):
    text = generate_latest(served).decode()
    before = scrape(0.0, text)
    more = text.replace(
        'code="200",model="m",route="/infer",version="3"} 80.0',
        'code="200",model="m",route="/infer",version="3"} 100.0',
    ).replace("process_cpu_seconds_total 5.0", "process_cpu_seconds_total 8.0")
    assert more != text
    found = service(Between(before, scrape(2.0, more)), "m")
    assert found.requests_per_s == 10
    assert found.cores == 1.5
    assert found.error_share == 0.0
    assert found.p99_ms is None


def test_a_model_that_nobody_serves_has_no_figures(served):
    found = service(Between(None, scrape(0.0, generate_latest(served).decode())), "nobody")
    assert (found.version, found.requests, found.error_share) == ("", 0, None)


def test_metrics_are_fetched_over_http():
    with Endpoint(0) as endpoint:
        endpoint.offer("drivetrain_ready 1\n")
        found = fetch(endpoint.url.removesuffix("metrics"), at=3.0)
    assert found.total("drivetrain_ready") == 1
    assert found.at == 3.0


def test_what_is_no_http_address_is_not_opened(tmp_path):
    with pytest.raises(ValueError, match="url: found 'file:"):
        fetch(f"file://{tmp_path}", at=0.0)


def test_a_server_that_is_not_there_is_named():
    with Endpoint(0) as endpoint:
        url = endpoint.url.removesuffix("/metrics")
    with pytest.raises(OSError, match=url):
        fetch(url, at=0.0)


@pytest.fixture
def guarded() -> Iterator[str]:
    """A server that asks for a token, and sends one path of it elsewhere."""

    class Guarded(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            allowed = self.headers.get("Authorization") == "Bearer secret"
            elsewhere = self.path.startswith("/moved")
            self.send_response(302 if elsewhere else 200 if allowed else 401)
            if elsewhere:
                self.send_header("Location", "/metrics")
            self.end_headers()
            if allowed:
                self.wfile.write(b"drivetrain_ready 1\n")

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Guarded) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_token_is_brought_where_one_is_asked_for(guarded):
    assert fetch(guarded, at=0.0, token="secret").total("drivetrain_ready") == 1
    with pytest.raises(OSError, match="401 Unauthorized"):
        fetch(guarded, at=0.0)


def test_a_token_does_not_follow_a_redirection(guarded):
    with pytest.raises(OSError, match="302 Found"):
        fetch(f"{guarded}/moved", at=0.0, token="secret")
