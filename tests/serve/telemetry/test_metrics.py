"""The exposition: names that dashboards rely on, text that Prometheus' own parser reads."""

import json
import shutil
import subprocess

import pytest
from prometheus_client import parser

from drivetrain.serve.telemetry.family import OLDER, Counter, Family, Histogram
from drivetrain.serve.telemetry.metrics import RETIRED, SECONDS, Metrics

ROW = {"carrier": "AA", "distance": 733.5, "hour": 7}
NAMES = {
    *("drivetrain_requests", "drivetrain_request_seconds", "drivetrain_inference_seconds"),
    *("drivetrain_batch_rows", "drivetrain_queue_rows", "drivetrain_prediction"),
    *("drivetrain_model_info", "drivetrain_feedback_rows", "drivetrain_feedback_dropped"),
    *("drivetrain_reload_failures", "drivetrain_ready", "drivetrain_traffic_share"),
    *("drivetrain_shadow_requests", "drivetrain_shadow_difference"),
    "drivetrain_canaries_stopped",
    *("drivetrain_access_lines_dropped", "drivetrain_trace_spans", "drivetrain_traces_dropped"),
    *("drivetrain_feedback_files_deleted", "drivetrain_placement_info"),
    *("process_resident_memory_bytes", "process_cpu_seconds"),
    *("drivetrain_window_observations", "drivetrain_window_tracks_begun"),
    *("drivetrain_window_rows_empty", "drivetrain_window_lookup_seconds"),
    *("drivetrain_window_keys", "drivetrain_window_bytes", "drivetrain_window_key_bytes"),
    "drivetrain_window_watermark_lag_seconds",
    *("drivetrain_learner_events", "drivetrain_learner_new_users", "drivetrain_learner_new_items"),
    *("drivetrain_learner_refused", "drivetrain_learner_auc", "drivetrain_learner_frozen_auc"),
    *("drivetrain_learner_rolled_back", "drivetrain_learner_bytes"),
}


def parsed(text):
    return {family.name: family for family in parser.text_string_to_metric_families(text)}


def value(family, name, **labels):
    return next(s.value for s in family.samples if s.name == name and s.labels == labels)


def test_every_promised_metric_is_there_and_counts(serve, tiny):
    client = serve()
    client.post("/predict/tiny", {"rows": [ROW, ROW, ROW]})
    client.post("/predict/tiny", {})
    client.get("/nowhere")
    client.raw(b"nonsense\r\n\r\n")
    reply = client.get("/metrics")
    found = parsed(reply.body.decode())
    version = tiny.digest[:12]
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert set(found) == NAMES

    def requests(**labels):
        return value(found["drivetrain_requests"], "drivetrain_requests_total", **labels)

    assert requests(model="tiny", version=version, route="rows", code="200") == 1
    assert requests(model="tiny", version=version, route="rows", code="400") == 1
    assert requests(model="", version="", route="other", code="404") == 1
    assert requests(model="", version="", route="http", code="400") == 1
    seconds = found["drivetrain_request_seconds"]
    name = "drivetrain_request_seconds_count"
    assert value(seconds, name, model="tiny", version=version, route="rows") == 2
    rows = found["drivetrain_batch_rows"]
    assert value(rows, "drivetrain_batch_rows_sum", model="tiny", version=version) == 3
    late = found["drivetrain_prediction"]
    of_output = {"model": "tiny", "version": version, "output": "late"}
    assert value(late, "drivetrain_prediction_count", **of_output) == 3
    info = found["drivetrain_model_info"]
    labels = {"model": "tiny", "version": version, "digest": tiny.digest, "role": "stable"}
    assert value(info, "drivetrain_model_info", **labels) == 1
    share = found["drivetrain_traffic_share"]
    labels = {"model": "tiny", "version": version, "role": "stable"}
    assert value(share, "drivetrain_traffic_share", **labels) == 1
    assert value(found["drivetrain_queue_rows"], "drivetrain_queue_rows", model="tiny") == 0
    assert value(found["drivetrain_ready"], "drivetrain_ready") == 1
    memory = found["process_resident_memory_bytes"]
    assert 10e6 < value(memory, "process_resident_memory_bytes") < 10e9


def test_the_predictions_fall_into_their_deciles(serve, tiny):
    client = serve()
    late = tiny.predict([ROW])["late"][0]
    client.post("/predict/tiny", {"rows": [ROW] * 40})
    client.post("/predict/tiny", ROW)
    found = parsed(client.get("/metrics").body.decode())["drivetrain_prediction"]
    buckets = {float(s.labels["le"]): s.value for s in found.samples if s.name.endswith("_bucket")}
    assert all(count == (41 if bound >= late else 0) for bound, count in buckets.items())
    labels = {"model": "tiny", "version": tiny.digest[:12], "output": "late"}
    total = value(found, "drivetrain_prediction_sum", **labels)
    assert total == pytest.approx(41 * late, rel=1e-6)


def test_buckets_hold_what_is_at_or_below_their_bound():
    histogram = Histogram(SECONDS)
    for seconds in (0.00005, 0.00006, 11.0):
        histogram.observe(seconds)
    lines = list(histogram.samples("t", "", histogram.numbers()))
    assert lines[0] == 't_bucket{le="5e-05"} 1'
    assert lines[1] == 't_bucket{le="0.0001"} 2'
    assert lines[-3:] == ['t_bucket{le="+Inf"} 3', "t_sum 11.00011", "t_count 3"]


def test_label_values_are_escaped():
    family = Family("t_total", "counter", "Back\\slash\nand line.", ("city",), Counter)
    ugly = 'a"b\\c\nd'
    family.of(ugly).value = 2
    text = "\n".join(family.text()) + "\n"
    assert r'city="a\"b\\c\nd"' in text
    assert value(parsed(text)["t"], "t_total", city=ugly) == 2


def test_promtool_finds_nothing_wrong(client):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool (the package `prometheus` of .ci/system-packages) is not installed")
    client.post("/predict/tiny", ROW)
    text = client.get("/metrics").body
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


def test_metrics_are_one_text_that_ends_with_a_line():
    text = Metrics().text().decode()
    assert text.endswith("\n")
    assert json.dumps(text).isascii()


def of_versions(metrics):
    return {labels[1] for labels in metrics.requests.numbers() if labels[0] == "tiny"}


def test_a_server_that_lives_through_many_versions_tells_of_the_last_ones_only():
    metrics = Metrics()
    for number in range(100):
        metrics.serve("tiny", f"v{number}")
        metrics.requests.of("tiny", f"v{number}", "rows", "200").value += 1
        metrics.prediction.of("tiny", f"v{number}", "late").observe(0.5)
        metrics.statistics.of("tiny", f"v{number}")
        against = ("tiny", f"v{number}", f"v{number - 1}", "late")
        metrics.shadow_difference.of(*against).observe(0.25)
        if number:
            metrics.retire("tiny", f"v{number - 1}")
    expected = {f"v{number}" for number in range(99 - RETIRED, 100)}
    assert {labels[1] for labels in metrics.statistics.numbers()} == expected
    assert of_versions(metrics) == expected | {OLDER}
    assert {labels[1] for labels in metrics.prediction.numbers()} == expected | {OLDER}
    # What the others have counted goes on in one place: no sum falls when a version goes.
    assert sum(count for (count,) in metrics.requests.numbers().values()) == 100
    assert sum(numbers[-1] for numbers in metrics.prediction.numbers().values()) == 50
    older = metrics.shadow_difference.of("tiny", OLDER, OLDER, "late")
    assert (sum(older.counts), len(metrics.shadow_difference.numbers())) == (
        99 - RETIRED,
        RETIRED + 2,
    )


def test_a_version_that_is_served_again_or_is_of_another_alias_is_not_forgotten():
    metrics = Metrics()
    for name in ("tiny", "other"):
        metrics.requests.of(name, "first", "rows", "200").value += 1
        metrics.retire(name, "first")
    metrics.requests.of("", "", "http", "400").value += 1
    metrics.serve("tiny", "first")
    for number in range(2 * RETIRED):
        metrics.retire("tiny", f"v{number}")
    counted = metrics.requests.numbers()
    assert counted["tiny", "first", "rows", "200"] == (1.0,)
    assert counted["other", "first", "rows", "200"] == (1.0,)
    assert counted["", "", "http", "400"] == (1.0,)


def test_a_worker_that_counts_on_tells_of_no_more_than_the_one_before():
    before, after = Metrics(), Metrics()
    for number in range(RETIRED):
        before.requests.of("tiny", f"v{number}", "rows", "200").value += 1
    after.inherit(before.figures())
    after.serve("tiny", "v0")
    for number in range(RETIRED, 3 * RETIRED):
        after.requests.of("tiny", f"v{number}", "rows", "200").value += 1
        after.retire("tiny", f"v{number}")
    last = {f"v{number}" for number in range(2 * RETIRED, 3 * RETIRED)}
    assert of_versions(after) == {"v0", OLDER} | last
