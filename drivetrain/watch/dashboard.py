"""A Grafana dashboard generated from a bundle's manifest."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from drivetrain.core.bundle import Manifest
from drivetrain.watch import roles
from drivetrain.watch.bounds import drift_bounds, p99_bound
from drivetrain.watch.exposition import quoted

SCHEMA_VERSION = 39
"""Of Grafana 10.4; later versions migrate it when they load it."""
COLUMNS = 24
"""The width of a dashboard in Grafana's grid units."""
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
INTERVAL = "$__rate_interval"


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One drawing: its queries as ``(PromQL, legend)``.

    Attributes:
        unit: as Grafana names it, such as ``s``, ``reqps``, ``percentunit``.
        limit: a value to draw a red line at.
        width: in grid units, of 24.
    """

    title: str
    queries: Sequence[tuple[str, str]]
    unit: str = "short"
    kind: str = "timeseries"
    limit: float | None = None
    width: int = 8
    about: str = ""


def dashboard(manifest: Manifest, model: str | None = None) -> dict[str, Any]:
    """The dashboard as plain data, ready to be imported or provisioned.

    Its ``uid`` depends on the model's name alone: importing it again replaces it.

    Args:
        manifest: of the bundle that is served.
        model: the name that it is served under; None is the system's name.
    """
    model = model or manifest.name
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in _rows(manifest, model):
        panels.append(_row(len(panels) + 1, title, y))
        y += 1
        x = 0
        for panel in row:
            if x + panel.width > COLUMNS:
                x, y = 0, y + 8
            panels.append(_panel(len(panels) + 1, panel, x, y))
            x += panel.width
        y += 8
    return {
        "uid": uid(model),
        "title": f"Drivetrain: {model}",
        "tags": ["drivetrain"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [_datasource()]},
        "annotations": {"list": [_version_changes(model)]},
        "panels": panels,
    }


def dashboard_json(manifest: Manifest, model: str | None = None) -> str:
    """The dashboard as text, the same for the same manifest."""
    return json.dumps(dashboard(manifest, model), indent=2, ensure_ascii=False) + "\n"


def uid(model: str) -> str:
    """A stable identity of at most 40 characters, which is Grafana's limit."""
    name = re.sub(r"[^\w-]", "-", f"drivetrain-{model}", flags=re.ASCII)
    if len(name) <= 40:
        return name
    return f"{name[:27]}-{hashlib.sha256(model.encode()).hexdigest()[:12]}"


def expressions(board: Mapping[str, Any]) -> list[str]:
    """Every PromQL expression of a dashboard."""
    return [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]


# -- what is drawn ---------------------------------------------------------------------------------


def _rows(manifest: Manifest, model: str) -> Iterator[tuple[str, list[Panel]]]:
    yield "Service", _service(manifest, _of(model))
    yield "Inference", _inference(_of(model))
    yield "Predictions", list(_predictions(manifest, model))
    yield "Canary and shadow", _traffic(_of(model))
    yield "Drift and feedback", list(_drift(manifest, _of(model)))
    yield "Process", _process(_of(model))


def _of(model: str) -> str:
    return f"model={quoted(model)}"


def quantile(q: float, histogram: str, labels: str, by: str = "", only: str = "") -> str:
    """A quantile of a Prometheus histogram over the rate interval; ``only`` of a role."""
    groups = f"le, {by}" if by else "le"
    rate = _rate(f"{histogram}_bucket", labels, only)
    return f"histogram_quantile({q:g}, sum by ({groups}) ({rate}))"


def mean(histogram: str, labels: str, by: str = "", only: str = "") -> str:
    """The mean of a Prometheus histogram over the rate interval; ``only`` of a role."""
    group = f" by ({by})" if by else ""
    total, count = (
        f"sum{group} ({_rate(f'{histogram}_{part}', labels, only)})" for part in ("sum", "count")
    )
    return f"{total} / {count}"


def _rate(metric: str, labels: str, only: str) -> str:
    rate = f"rate({metric}{{{labels}}}[{INTERVAL}])"
    return roles.in_role(rate, only, labels.partition(", ")[0]) if only else rate


def _service(manifest: Manifest, of: str) -> list[Panel]:
    requests = f"rate(drivetrain_requests_total{{{of}}}[{INTERVAL}])"
    failed = f'rate(drivetrain_requests_total{{{of}, code=~"5.."}}[{INTERVAL}])'
    seconds = "drivetrain_request_seconds"
    limit = p99_bound(manifest)
    return [
        Panel(
            title="Requests by code",
            queries=[(f"sum by (code) ({requests})", "{{code}}")],
            unit="reqps",
        ),
        Panel(
            title="Share of server errors",
            queries=[(f"(sum({failed}) or vector(0)) / sum({requests})", "5xx")],
            unit="percentunit",
        ),
        Panel(
            title="Request latency",
            queries=[(quantile(q, seconds, of), f"p{q * 100:g}") for q in (0.5, 0.95, 0.99)],
            unit="s",
            limit=None if limit is None else limit / 1000,
        ),
    ]


def _inference(of: str) -> list[Panel]:
    seconds, rows, only = "drivetrain_inference_seconds", "drivetrain_batch_rows", "stable"
    return [
        Panel(
            title="Time in the graph",
            queries=[(quantile(q, seconds, of, only=only), f"p{q * 100:g}") for q in (0.5, 0.99)],
            unit="s",
            about="Of the stable version.",
        ),
        Panel(
            title="Rows in a batch",
            queries=[
                (mean(rows, of, only=only), "mean"),
                (quantile(0.95, rows, of, only=only), "p95"),
            ],
            about="Of the stable version.",
        ),
        Panel(
            title="Rows that wait",
            queries=[(f"sum(drivetrain_queue_rows{{{of}}})", "queue")],
        ),
    ]


def _predictions(manifest: Manifest, model: str) -> Iterator[Panel]:
    histogram = "drivetrain_prediction"
    yield Panel(
        title="Mean prediction",
        queries=[
            (mean(histogram, _of(model), "output, version"), "{{output}} of {{version}}"),
        ],
        about="A step here without a new version is a change in the events.",
    )
    for output in manifest.outputs:
        labels = f"{_of(model)}, output={quoted(output.name)}"
        deciles = [q / 10 for q in range(1, 10)]
        yield Panel(
            title=f"Deciles of {output.name}",
            queries=[(quantile(q, histogram, labels, only="stable"), f"{q:.0%}") for q in deciles],
            about="Of the stable version.",
        )


def _traffic(of: str) -> list[Panel]:
    """What tells a canary from the stable version, and a shadow from those who answer."""
    requests = f"rate(drivetrain_requests_total{{{of}}}[{INTERVAL}])"
    failed = f'rate(drivetrain_requests_total{{{of}, code=~"5.."}}[{INTERVAL}])'
    versions = "sum by (version)"
    asked = f"rate(drivetrain_shadow_requests_total{{{of}}}[{INTERVAL}])"
    apart = "drivetrain_shadow_difference"
    return [
        Panel(
            title="Share of the requests",
            queries=[
                (
                    f"max by (version, role) (drivetrain_traffic_share{{{of}}})",
                    "{{role}} {{version}}",
                ),
            ],
            unit="percentunit",
            about="As it was asked for; 0 is a shadow.",
        ),
        Panel(
            title="Share of server errors by version",
            queries=[
                (
                    f"({versions} ({failed}) or 0 * {versions} ({requests})) "
                    f"/ {versions} ({requests})",
                    "{{version}}",
                )
            ],
            unit="percentunit",
        ),
        Panel(
            title="p99 latency by version",
            queries=[
                (quantile(0.99, "drivetrain_request_seconds", of, "version"), "{{version}}"),
            ],
            unit="s",
        ),
        Panel(
            title="Canary: distance of its predictions",
            queries=[(roles.distance(of, INTERVAL), "{{output}}")],
            about="Kolmogorov-Smirnov, 0 to 1, from those of the stable version.",
        ),
        Panel(
            title="Shadow: requests",
            queries=[(f"sum by (outcome) ({asked})", "{{outcome}}")],
            unit="reqps",
            about="Dropped ones found the shadow's queue full: it takes only what is left over.",
        ),
        Panel(
            title="Shadow: difference from the answers",
            queries=[
                (quantile(q, apart, of, "output"), f"{{{{output}}}} p{q * 100:g}")
                for q in (0.5, 0.99)
            ],
            about="Absolute, of a number; of anything else 0 is the same and 1 is not.",
        ),
    ]


def _drift(manifest: Manifest, of: str) -> Iterator[Panel]:
    bounds = drift_bounds(manifest)
    yield Panel(
        title="Drift of each column (PSI)",
        queries=[(f"drivetrain_drift_psi{{{of}}}", "{{column}}")],
        limit=min(bounds),
        about="Against the rows that the bundle was fitted on; `drivetrain watch --port` gives it.",
    )
    yield Panel(
        title="Missing values",
        queries=[(f"drivetrain_drift_missing{{{of}}}", "{{column}}")],
        unit="percentunit",
    )
    yield Panel(
        title="Feedback",
        queries=[
            (f"sum(rate(drivetrain_feedback_rows_total{{{of}}}[{INTERVAL}]))", "kept"),
            (f"sum(rate(drivetrain_feedback_dropped_total{{{of}}}[{INTERVAL}]))", "dropped"),
        ],
        unit="rowsps",
    )


def _process(of: str) -> list[Panel]:
    serving = f"and on (job, instance) drivetrain_model_info{{{of}}}"
    cpu = f"rate(process_cpu_seconds_total[{INTERVAL}])"
    return [
        Panel(
            title="Memory",
            queries=[(f"process_resident_memory_bytes {serving}", "{{instance}}")],
            unit="bytes",
        ),
        Panel(title="Cores in use", queries=[(f"{cpu} {serving}", "{{instance}}")]),
        Panel(
            title="Model",
            queries=[(f"drivetrain_model_info{{{of}}}", "{{role}} {{version}}")],
            kind="table",
        ),
    ]


# -- Grafana's JSON --------------------------------------------------------------------------------


def _datasource() -> dict[str, Any]:
    return {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "refresh": 1,
        "hide": 0,
        "includeAll": False,
        "multi": False,
        "options": [],
    }


def _version_changes(model: str) -> dict[str, Any]:
    """A mark wherever another version began to serve."""
    return {
        "name": "New version",
        "datasource": SOURCE,
        "enable": True,
        "iconColor": "purple",
        "expr": f"drivetrain_model_info{{{_of(model)}}} unless "
        f"drivetrain_model_info{{{_of(model)}}} offset 1m",
        "titleFormat": "version {{version}}",
        "textFormat": "{{digest}}",
    }


def _row(number: int, title: str, y: int) -> dict[str, Any]:
    grid = {"h": 1, "w": COLUMNS, "x": 0, "y": y}
    return {
        "id": number,
        "type": "row",
        "title": title,
        "collapsed": False,
        "gridPos": grid,
        "panels": [],
    }


def _panel(number: int, panel: Panel, x: int, y: int) -> dict[str, Any]:
    table = panel.kind == "table"
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.limit is not None:
        steps.append({"color": "red", "value": panel.limit})
    custom = {"thresholdsStyle": {"mode": "dashed" if panel.limit is not None else "off"}}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": SOURCE,
        "gridPos": {"h": 8, "w": panel.width, "x": x, "y": y},
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "thresholds": {"mode": "absolute", "steps": steps},
                "custom": {} if table else custom,
            },
            "overrides": [],
        },
        "options": {} if table else {"legend": {"displayMode": "list", "placement": "bottom"}},
        "targets": [
            {
                "refId": chr(ord("A") + at),
                "datasource": SOURCE,
                "editorMode": "code",
                "expr": expression,
                "legendFormat": legend,
                "instant": table,
                "range": not table,
                "format": "table" if table else "time_series",
            }
            for at, (expression, legend) in enumerate(panel.queries)
        ],
    }
