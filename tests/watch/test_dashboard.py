"""The generated dashboard: its shape, and every expression in it."""

import itertools
import json

import promql_parser
import pytest

from drivetrain.core.bundle import Manifest
from drivetrain.core.schema import Field, Schema
from drivetrain.watch.dashboard import INTERVAL, dashboard, dashboard_json, expressions, uid

MANIFEST = Manifest(
    name="flights",
    inputs=Schema((Field("dep", "float64"),)),
    outputs=Schema((Field("late", "float32"), Field('od"d\\', "float32"))),
    bounds={"latency/p99_ms": (None, 2.0), "test/drift/psi/dep": (None, 0.2)},
)
METRICS = (
    "drivetrain_requests_total",
    "drivetrain_request_seconds_bucket",
    "drivetrain_inference_seconds_bucket",
    "drivetrain_batch_rows_bucket",
    "drivetrain_queue_rows",
    "drivetrain_prediction_bucket",
    "drivetrain_prediction_sum",
    "drivetrain_model_info",
    "drivetrain_traffic_share",
    "drivetrain_shadow_requests_total",
    "drivetrain_shadow_difference_bucket",
    "drivetrain_feedback_rows_total",
    "drivetrain_feedback_dropped_total",
    "process_resident_memory_bytes",
    "process_cpu_seconds_total",
    "drivetrain_drift_psi",
    "drivetrain_drift_missing",
)


@pytest.mark.parametrize("expression", expressions(dashboard(MANIFEST)))
def test_every_expression_is_promql(expression):
    assert promql_parser.parse(expression.replace(INTERVAL, "1m")) is not None


def test_every_metric_of_the_server_is_drawn():
    drawn = " ".join(expressions(dashboard(MANIFEST)))
    assert [name for name in METRICS if name not in drawn] == []


def test_panels_have_their_own_place_and_number():
    panels = dashboard(MANIFEST)["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        grid = panel["gridPos"]
        assert grid["x"] >= 0
        assert grid["x"] + grid["w"] <= 24
    for a, b in itertools.combinations([panel["gridPos"] for panel in panels], 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        above = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert beside or above


def test_every_query_asks_the_source_that_the_reader_chose():
    board = dashboard(MANIFEST)
    assert board["templating"]["list"][0]["name"] == "datasource"
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        references = [target["refId"] for target in panel.get("targets", ())]
        assert len(set(references)) == len(references)


def limits(board) -> dict[str, float]:
    return {
        panel["title"]: panel["fieldConfig"]["defaults"]["thresholds"]["steps"][1]["value"]
        for panel in board["panels"]
        if panel["type"] != "row"
        and len(panel["fieldConfig"]["defaults"]["thresholds"]["steps"]) > 1
    }


def test_declared_bounds_are_drawn_as_limits():
    assert limits(dashboard(MANIFEST)) == {
        "Request latency": 0.002,
        "Drift of each column (PSI)": 0.2,
    }


def test_without_declared_bounds_only_the_customary_one_of_drift_is_drawn():
    bare = Manifest(name="flights", inputs=Schema(()), outputs=Schema(()))
    assert limits(dashboard(bare)) == {"Drift of each column (PSI)": 0.25}


def test_the_same_manifest_gives_the_same_text_and_another_name_another_dashboard():
    assert dashboard_json(MANIFEST) == dashboard_json(MANIFEST)
    assert json.loads(dashboard_json(MANIFEST))["uid"] == "drivetrain-flights"
    assert dashboard(MANIFEST, model="flights-canary")["uid"] == "drivetrain-flights-canary"


def test_a_long_name_keeps_its_uid_within_forty_characters():
    long, other = "f" * 60, "f" * 59 + "g"
    assert len(uid(long)) == 40
    assert uid(long) != uid(other)
    assert uid("a/b") == "drivetrain-a-b"
