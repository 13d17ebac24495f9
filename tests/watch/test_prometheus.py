"""A real Prometheus scrapes made metrics, answers the dashboard's queries and raises an alert."""

import itertools
import json
import random
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from urllib.parse import quote
from urllib.request import urlopen

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from drivetrain.core.batch import Batch
from drivetrain.watch.alerts import Alerts
from drivetrain.watch.dashboard import INTERVAL, dashboard, expressions
from drivetrain.watch.endpoint import Endpoint
from drivetrain.watch.live import Watch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("prometheus") is None,
        reason="prometheus is not installed: .ci/system-packages names the package",
    ),
]
MODEL = "sigmoid"


class Made:
    """Metrics of a made server, under the names that the real one has, that grow by themselves."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        prefix = "drivetrain_"
        self.requests = Counter(
            f"{prefix}requests", "made", ["model", "version", "route", "code"], registry=registry
        )
        self.histograms = {
            name: Histogram(f"{prefix}{name}", "made", labels, registry=registry)
            for name, labels in {
                "request_seconds": ["model", "version", "route"],
                "inference_seconds": ["model", "version"],
                "batch_rows": ["model", "version"],
                "prediction": ["model", "version", "output"],
                "shadow_difference": ["model", "version", "against", "output"],
            }.items()
        }
        shadow = ["model", "version", "outcome"]
        self.shadow = Counter(f"{prefix}shadow_requests", "made", shadow, registry=registry)
        self.queue = Gauge(f"{prefix}queue_rows", "made", ["model"], registry=registry)
        self.feedback = Counter(f"{prefix}feedback_rows", "made", ["model"], registry=registry)
        self.dropped = Counter(f"{prefix}feedback_dropped", "made", ["model"], registry=registry)
        of_role = ["model", "version", "digest", "role"]
        info = Gauge(f"{prefix}model_info", "made", of_role, registry=registry)
        of_share = ["model", "version", "role"]
        share = Gauge(f"{prefix}traffic_share", "made", of_share, registry=registry)
        for version, role, answers in (("1", "stable", 0.8), ("2", "canary", 0.2)):
            info.labels(MODEL, version, f"abc{version}", role).set(1)
            share.labels(MODEL, version, role).set(answers)
        info.labels(MODEL, "3", "abc3", "shadow").set(1)
        Gauge(f"{prefix}ready", "made", registry=registry).set(1)
        Gauge("process_resident_memory_bytes", "made", registry=registry).set(2e8)
        self.cpu = Counter("process_cpu_seconds", "made", registry=registry)
        self.random = random.Random(0)

    def tick(self) -> None:
        """Ten requests to each of two versions, one of each an error; the shadow is asked too."""
        for at, version in itertools.product(range(10), "12"):
            code = "500" if at == 0 else "200"
            self.requests.labels(MODEL, version, "/infer", code).inc()
            self.histograms["request_seconds"].labels(MODEL, version, "/infer").observe(0.02)
            self.histograms["inference_seconds"].labels(MODEL, version).observe(0.006)
            self.histograms["batch_rows"].labels(MODEL, version).observe(3)
            said = self.random.random() * (1.0 if version == "1" else 0.5)
            self.histograms["prediction"].labels(MODEL, version, "late").observe(said)
        self.histograms["batch_rows"].labels(MODEL, "3").observe(64)
        self.histograms["shadow_difference"].labels(MODEL, "3", "1", "late").observe(0.01)
        self.shadow.labels(MODEL, "3", "answered").inc()
        self.queue.labels(MODEL).set(2)
        self.feedback.labels(MODEL).inc(10)
        self.dropped.labels(MODEL).inc(1)
        self.cpu.inc(0.1)


@pytest.fixture(scope="module")
def server() -> Iterator[Endpoint]:
    """The made server."""
    made, stop = Made(), threading.Event()
    with Endpoint(0) as endpoint:

        def live() -> None:
            while not stop.is_set():
                made.tick()
                endpoint.offer(generate_latest(made.registry).decode())
                stop.wait(0.2)

        thread = threading.Thread(target=live)
        thread.start()
        yield endpoint
        stop.set()
        thread.join()


@pytest.fixture(scope="module")
def drift(bundle, rows, tmp_path_factory) -> Iterator[Endpoint]:
    """The drift of made feedback, as the watch offers it."""
    import pyarrow.parquet as pq

    directory = tmp_path_factory.mktemp("feedback")
    moved: Batch = rows(3_000, seed=1, shift=2.0)
    pq.write_table(moved.select(["x", "carrier"]).to_arrow(), directory / "a.parquet")
    watch = Watch(None, bundle, directory)
    with Endpoint(0) as endpoint:
        endpoint.offer(watch.gauges(watch.look()))
        yield endpoint


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def prometheus(server, drift, bundle, tmp_path_factory) -> Iterator[str]:
    """The address of a Prometheus of our own on the loopback."""
    directory = tmp_path_factory.mktemp("prometheus")
    rules = Alerts(drift_rows=100, canary_requests=1).rules(bundle.manifest)
    for rule in rules["groups"][0]["rules"]:
        rule["for"] = "0s"  # a test does not wait for ten minutes
    (directory / "rules.yml").write_text(json.dumps(rules))
    targets = [endpoint.url.split("/")[2] for endpoint in (server, drift)]
    configuration = {
        "global": {"scrape_interval": "500ms", "evaluation_interval": "500ms"},
        "rule_files": ["rules.yml"],
        "scrape_configs": [{"job_name": "drivetrain", "static_configs": [{"targets": targets}]}],
    }
    (directory / "prometheus.yml").write_text(json.dumps(configuration))
    port = free_port()
    command = [
        "prometheus",
        f"--config.file={directory}/prometheus.yml",
        f"--storage.tsdb.path={directory}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (directory / "log").open("w") as log, subprocess.Popen(command, stderr=log) as process:
        url = f"http://127.0.0.1:{port}"
        try:
            wait_for(lambda: query(url, "count(count_over_time(up[5s]) > 7) == 2"))
            yield url
        finally:
            process.terminate()


def wait_for(found, seconds: float = 40.0):
    """What ``found`` gives, once it gives something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if answer := found():
                return answer
        except OSError:
            pass
        time.sleep(0.2)
    raise AssertionError("it did not come in time")


def ask(url: str, path: str):
    with urlopen(f"{url}{path}", timeout=5) as answer:
        body = json.load(answer)
    assert body["status"] == "success"
    return body["data"]


def query(url: str, expression: str) -> list:
    return ask(url, f"/api/v1/query?query={quote(expression)}")["result"]


def value(url: str, expression: str) -> float:
    (sample,) = query(url, expression)
    return float(sample["value"][1])


def drawn(bundle) -> list[str]:
    return [e.replace(INTERVAL, "5s") for e in expressions(dashboard(bundle.manifest))]


def test_every_query_of_the_dashboard_is_answered_with_data(prometheus, bundle):
    empty = [e for e in drawn(bundle) if not query(prometheus, e)]
    assert empty == []


def test_the_dashboard_shows_what_was_measured(prometheus, bundle):
    board = dashboard(bundle.manifest)
    queries = {panel["title"]: panel.get("targets", []) for panel in board["panels"]}

    def shown(title: str, at: int = 0) -> float:
        return value(prometheus, queries[title][at]["expr"].replace(INTERVAL, "5s"))

    assert shown("Share of server errors") == pytest.approx(0.1, abs=0.02)
    assert 0.01 <= shown("Request latency") <= 0.025  # the bucket that 20 ms lies in
    assert shown("Rows in a batch") == pytest.approx(3)
    by_version = queries["Mean prediction"][0]["expr"].replace(INTERVAL, "5s")
    means = {s["metric"]["version"]: float(s["value"][1]) for s in query(prometheus, by_version)}
    assert means == {"1": pytest.approx(0.5, abs=0.2), "2": pytest.approx(0.25, abs=0.1)}
    assert shown("Canary: distance of its predictions") == pytest.approx(0.5, abs=0.2)
    assert shown("Memory") == 2e8
    assert shown("Rows that wait") == 2


def test_drift_arrives_and_its_alert_fires(prometheus):
    assert value(prometheus, 'drivetrain_drift_psi{column="x"}') > 1
    expected = {"DrivetrainDrift", "DrivetrainErrors", "DrivetrainFeedbackDropped"}
    expected.add("DrivetrainCanaryPredictions")

    def firing() -> list[dict]:
        alerts = ask(prometheus, "/api/v1/alerts")["alerts"]
        found = [alert for alert in alerts if alert["state"] == "firing"]
        return found if {a["labels"]["alertname"] for a in found} >= expected else []

    found = wait_for(firing)
    assert {alert["labels"]["alertname"] for alert in found} == expected
    (moved,) = [a for a in found if a["labels"]["alertname"] == "DrivetrainDrift"]
    assert moved["labels"]["column"] == "x"


def test_the_rules_are_loaded_without_an_error(prometheus):
    (group,) = ask(prometheus, "/api/v1/rules")["groups"]
    wait_for(lambda: all(rule["health"] == "ok" for rule in group["rules"]))
    assert len(group["rules"]) == 10  # this bundle declares no latency
