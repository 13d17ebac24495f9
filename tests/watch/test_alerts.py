"""The generated alert rules, held against the real promtool."""

import json
import shutil
import subprocess
from typing import Any

import promql_parser
import pytest
import yaml

from drivetrain.core.bundle import Manifest
from drivetrain.core.schema import Field, Schema
from drivetrain.watch.alerts import Alerts

MANIFEST = Manifest(
    name="flights",
    inputs=Schema((Field("dep", "float64"),)),
    outputs=Schema((Field("late", "float32"),)),
    bounds={
        "latency/p99_ms": (None, 2.0),
        "test/auc": (0.7, None),
        "test/drift/psi/dep (h)": (None, 0.25),
        "test/drift/psi/carrier": (None, 0.25),
        "test/drift/psi/month": (None, 3.0),
    },
)
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None,
    reason="promtool is not installed: the package prometheus of .ci/system-packages has it",
)


def rules(manifest: Manifest = MANIFEST, **options: Any) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for rule in Alerts(**options).rules(manifest)["groups"][0]["rules"]:
        found.setdefault(rule["alert"], []).append(rule)
    return found


def test_the_yaml_says_what_the_rules_say():
    assert yaml.safe_load(Alerts().render(MANIFEST)) == Alerts().rules(MANIFEST)


def test_every_expression_is_promql():
    for group in rules().values():
        for rule in group:
            assert promql_parser.parse(rule["expr"]) is not None


def test_a_declared_latency_is_an_alert_and_an_undeclared_one_is_not():
    assert rules()["DrivetrainSlow"][0]["expr"].endswith("> 0.002")
    bare = Manifest(name="flights", inputs=Schema(()), outputs=Schema(()))
    assert "DrivetrainSlow" not in rules(bare)


def test_columns_alert_above_their_own_bound():
    (rule,) = rules()["DrivetrainDrift"]
    one, other = rule["expr"].split(" or ")
    assert 'column=~"carrier|dep\\\\ \\\\(h\\\\)"} > 0.25' in one
    assert 'column=~"month"} > 3' in other


def test_without_declared_bounds_every_column_keeps_the_customary_one():
    bare = Manifest(name="flights", inputs=Schema(()), outputs=Schema(()))
    (rule,) = rules(bare)["DrivetrainDrift"]
    assert 'drivetrain_drift_psi{model="flights"} > 0.25' in rule["expr"]


def test_options_move_the_thresholds_that_no_probe_declares():
    found = rules(error_share=0.2, queue_rows=7, drift_rows=3)
    assert found["DrivetrainErrors"][0]["expr"].endswith("> 0.2")
    assert found["DrivetrainQueue"][0]["expr"].endswith("> 7")
    assert found["DrivetrainDrift"][0]["expr"].endswith(">= 3")


@needs_promtool
def test_promtool_accepts_the_rules(tmp_path):
    (tmp_path / "rules.yml").write_text(Alerts().render(MANIFEST))
    done = subprocess.run(
        ["promtool", "check", "rules", "rules.yml"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "11 rules found" in done.stdout
    assert "SUCCESS" in done.stdout


CANARY, STABLE = (f'model="flights",version="{v}",job="d",instance="i"' for v in "43")
BOTH = {
    f'drivetrain_model_info{{{STABLE},role="stable"}}': "1+0x60",
    f'drivetrain_model_info{{{CANARY},role="canary"}}': "1+0x60",
    f'drivetrain_requests_total{{code="200",{STABLE}}}': "0+900x60",
}
WELL = {f'drivetrain_requests_total{{code="200",{CANARY}}}': "0+100x60"}
FEW = {
    f'drivetrain_requests_total{{code="200",{CANARY}}}': "0+5x60",
    f'drivetrain_requests_total{{code="500",{CANARY}}}': "0+1x60",
}


def predictions(of: str, low: int, high: int) -> dict[str, str]:
    """Series of an output whose predictions lie below and above a half, each minute."""
    series = {("bucket", "0.5"): low, ("bucket", "+Inf"): low + high, ("count", ""): low + high}
    return {
        f'drivetrain_prediction_{part}{{output="late",{of}'
        + (f',le="{le}"' if le else "")
        + "}": f"0+{count}x60"
        for (part, le), count in series.items()
    }


def seconds(of: str, fast: int, slow: int) -> dict[str, str]:
    """Series of requests that took up to 0.1 and up to 1 ms, each minute."""
    counts = {"0.0001": fast, "0.001": fast + slow, "+Inf": fast + slow}
    name = "drivetrain_request_seconds_bucket"
    return {f'{name}{{le="{le}",{of}}}': f"0+{count}x60" for le, count in counts.items()}


SERVED = {'drivetrain_model_info{model="flights",version="3",job="d",instance="i"}': "1+0x60"}
TARGET = 'model="flights",job="d",instance="i"'
CASES: dict[str, dict[str, Any]] = {
    "DrivetrainAbsent": {
        "served": {},
        "series": {'drivetrain_model_info{model="other"}': "1+0x60"},
        "summary": "No server offers flights",
        "firing": [{"model": "flights"}],
    },
    "nothing wrong": {
        "series": {
            'drivetrain_ready{job="d",instance="i"}': "1+0x60",
            f'drivetrain_requests_total{{code="200",{TARGET}}}': "0+100x60",
            f"drivetrain_queue_rows{{{TARGET}}}": "3+0x60",
            f'drivetrain_request_seconds_bucket{{le="0.001",{TARGET}}}': "0+100x60",
            f'drivetrain_request_seconds_bucket{{le="+Inf",{TARGET}}}': "0+100x60",
            'drivetrain_drift_psi{model="flights",column="month"}': "2.5+0x60",
            'drivetrain_drift_rows{model="flights"}': "5000+0x60",
            f"drivetrain_feedback_dropped_total{{{TARGET}}}": "7+0x60",
        },
        "firing": [],
    },
    "DrivetrainNotReady": {
        "series": {'drivetrain_ready{job="d",instance="i"}': "0+0x60"},
        "summary": "i serves flights and is not ready",
        "firing": [{"job": "d", "instance": "i"}],
    },
    "DrivetrainErrors": {
        "series": {
            f'drivetrain_requests_total{{code="200",{TARGET}}}': "0+90x60",
            f'drivetrain_requests_total{{code="503",{TARGET}}}': "0+10x60",
        },
        "summary": "10% of the answers of flights are errors",
        "firing": [{}],
    },
    "DrivetrainSlow": {
        "series": {
            f'drivetrain_request_seconds_bucket{{le="0.001",{TARGET}}}': "0+90x60",
            f'drivetrain_request_seconds_bucket{{le="0.01",{TARGET}}}': "0+100x60",
            f'drivetrain_request_seconds_bucket{{le="+Inf",{TARGET}}}': "0+100x60",
        },
        "summary": "p99 of flights is 9.1ms, declared: 2 ms",
        "firing": [{}],
    },
    "DrivetrainQueue": {
        "series": {f"drivetrain_queue_rows{{{TARGET}}}": "5000+0x60"},
        "summary": "5000 rows wait for flights",
        "firing": [{}],
    },
    "DrivetrainDrift": {
        "series": {
            'drivetrain_drift_psi{model="flights",column="dep (h)"}': "0.3+0x60",
            'drivetrain_drift_psi{model="flights",column="month"}': "2.5+0x60",
            'drivetrain_drift_psi{model="other",column="dep (h)"}': "9+0x60",
            'drivetrain_drift_rows{model="flights"}': "5000+0x60",
            'drivetrain_drift_rows{model="other"}': "5000+0x60",
        },
        "summary": "dep (h) of flights has drifted: PSI 0.3 is above its bound",
        "firing": [{"model": "flights", "column": "dep (h)"}],
    },
    "DrivetrainCanaryErrors": {
        "served": BOTH,
        "series": {
            f'drivetrain_requests_total{{code="200",{CANARY}}}': "0+98x60",
            f'drivetrain_requests_total{{code="500",{CANARY}}}': "0+2x60",
        },
        "summary": "The canary of flights has 2% more server errors than the stable version: "
        "drivetrain canary flights --end",
        "firing": [{}],
    },
    "a canary that is as good as the stable version": {
        "served": BOTH,
        "series": {
            **WELL,
            **predictions(CANARY, 55, 45),
            **predictions(STABLE, 450, 450),
            **seconds(CANARY, 99, 1),
            **seconds(STABLE, 891, 9),
        },
        "firing": [],
    },
    "a canary that has answered too few": {
        "served": BOTH,
        "series": {
            **FEW,
            **predictions(CANARY, 6, 0),
            **predictions(STABLE, 450, 450),
            **seconds(CANARY, 0, 6),
            **seconds(STABLE, 900, 0),
        },
        "firing": [],
    },
    "DrivetrainCanarySlow": {
        "served": BOTH,
        "series": {**WELL, **seconds(CANARY, 0, 100), **seconds(STABLE, 900, 0)},
        "summary": "The canary of flights takes 10.01 times the stable version's p99",
        "firing": [{}],
    },
    "DrivetrainCanaryPredictions": {
        "served": BOTH,
        "series": {**WELL, **predictions(CANARY, 75, 25), **predictions(STABLE, 450, 450)},
        "summary": "late of the canary of flights lies 0.25 from the stable version's "
        "(Kolmogorov-Smirnov)",
        "firing": [{"output": "late"}],
    },
    "DrivetrainCanaryStopped": {
        "series": {f"drivetrain_canaries_stopped_total{{{CANARY}}}": "_x25 1+0x35"},
        "summary": "The canary 4 of flights failed and gets no more requests: "
        "drivetrain canary flights --end",
        "firing": [{"version": "4"}],
    },
    "DrivetrainFeedbackDropped": {
        "series": {f"drivetrain_feedback_dropped_total{{{TARGET}}}": "0+1x60"},
        "summary": "flights loses feedback: what it saw can't be read again",
        "firing": [{}],
    },
    "the first loss of feedback": {
        "alert": "DrivetrainFeedbackDropped",
        "series": {f"drivetrain_feedback_dropped_total{{{TARGET}}}": "_x25 40+0x35"},
        "summary": "flights loses feedback: what it saw can't be read again",
        "firing": [{}],
    },
}


def unit_test(case: str) -> dict[str, Any]:
    """A test for promtool: after half an hour exactly the alerts of ``case`` fire."""
    wanted = CASES[case]
    expected = []
    for name, of_name in rules().items():
        alerts = [
            {
                "exp_labels": {"severity": of_name[0]["labels"]["severity"], **labels},
                "exp_annotations": {"summary": wanted["summary"]},
            }
            for labels in (wanted["firing"] if name == wanted.get("alert", case) else ())
        ]
        expected.append({"eval_time": "30m", "alertname": name, "exp_alerts": alerts})
    series = {**wanted.get("served", SERVED), **wanted["series"]}
    return {
        "rule_files": ["rules.yml"],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": s, "values": v} for s, v in series.items()],
                "alert_rule_test": expected,
            }
        ],
    }


@needs_promtool
@pytest.mark.parametrize("case", CASES)
def test_each_fault_raises_its_own_alert_and_no_other(tmp_path, case):
    (tmp_path / "rules.yml").write_text(Alerts().render(MANIFEST))
    (tmp_path / "test.yml").write_text(json.dumps(unit_test(case)))
    done = subprocess.run(
        ["promtool", "test", "rules", "test.yml"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
