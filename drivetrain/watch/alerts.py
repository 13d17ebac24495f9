"""Prometheus alert rules generated from a bundle's manifest."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from drivetrain.core.bundle import Manifest
from drivetrain.watch import roles
from drivetrain.watch.bounds import drift_bounds, p99_bound
from drivetrain.watch.exposition import quoted


@dataclass(frozen=True, kw_only=True)
class Alerts:
    """When a person is called, where the system itself declares no bound.

    Attributes:
        error_share: of answers that are server errors, over five minutes.
        queue_rows: rows that wait, for two minutes.
        drift_rows: how many rows must have been compared before drift is believed.
        canary_requests: how many a canary must have answered in ten minutes before it is judged.
        canary_error_share: by which it may exceed the stable version's share of server errors.
        canary_slower: how often the stable version's p99 it may take.
        canary_distance: how far its predictions may lie from the stable version's, 0 to 1 (see
            :func:`drivetrain.watch.roles.distance`).
    """

    error_share: float = 0.01
    queue_rows: int = 1000
    drift_rows: int = 1000
    canary_requests: int = 100
    canary_error_share: float = 0.01
    canary_slower: float = 1.5
    canary_distance: float = 0.1

    def rules(self, manifest: Manifest, model: str | None = None) -> dict[str, Any]:
        """The rules as plain data.

        Args:
            manifest: of the bundle that is served; its bounds of latency and drift are alerts.
            model: the name that it is served under; None is the system's name.
        """
        model = model or manifest.name
        rules = [
            *self._service(manifest, model),
            *self._canary(model),
            *self._data(manifest, model),
        ]
        return {"groups": [{"name": f"drivetrain-{model}", "rules": rules}]}

    def render(self, manifest: Manifest, model: str | None = None) -> str:
        """The rules as the YAML file that Prometheus loads."""
        return "\n".join(_yaml(self.rules(manifest, model))) + "\n"

    def _service(self, manifest: Manifest, model: str) -> Iterator[dict[str, Any]]:
        of = f"model={quoted(model)}"
        info = f"drivetrain_model_info{{{of}}}"
        yield _rule(
            "DrivetrainAbsent",
            f"absent({info})",
            wait="2m",
            severity="critical",
            summary=f"No server offers {model}",
        )
        yield _rule(
            "DrivetrainNotReady",
            f"(drivetrain_ready == 0) and on (job, instance) {info}",
            wait="2m",
            severity="critical",
            summary=f"{{{{ $labels.instance }}}} serves {model} and is not ready",
        )
        requests = f"drivetrain_requests_total{{{of}}}"
        failed = f'drivetrain_requests_total{{{of}, code=~"5.."}}'
        yield _rule(
            "DrivetrainErrors",
            f"sum(rate({failed}[5m])) / sum(rate({requests}[5m])) > {self.error_share:g}",
            wait="5m",
            severity="critical",
            summary=f"{{{{ $value | humanizePercentage }}}} of the answers of {model} are errors",
        )
        bound = p99_bound(manifest)
        if bound is not None:
            seconds = f"rate(drivetrain_request_seconds_bucket{{{of}}}[5m])"
            yield _rule(
                "DrivetrainSlow",
                f"histogram_quantile(0.99, sum by (le) ({seconds})) > {bound / 1000:g}",
                wait="5m",
                severity="warning",
                summary=f"p99 of {model} is {{{{ $value | humanizeDuration }}}}, "
                f"declared: {bound:g} ms",
            )
        yield _rule(
            "DrivetrainQueue",
            f"sum(drivetrain_queue_rows{{{of}}}) > {self.queue_rows}",
            wait="2m",
            severity="warning",
            summary=f"{{{{ $value }}}} rows wait for {model}",
        )

    def _canary(self, model: str) -> Iterator[dict[str, Any]]:
        of, over = f"model={quoted(model)}", "10m"
        asked = f"{roles.requests('canary', of, over)} * 600 >= {self.canary_requests}"
        worse = (
            f"({roles.error_share('canary', of, over)}) - ({roles.error_share('stable', of, over)})"
        )
        yield _rule(
            "DrivetrainCanaryErrors",
            f"({worse} > {self.canary_error_share:g}) and ({asked})",
            wait="1m",
            severity="critical",
            summary=f"The canary of {model} has {{{{ $value | humanizePercentage }}}} more server "
            f"errors than the stable version: drivetrain canary {model} --end",
        )
        slower = f"{roles.latency(0.99, 'canary', of, over)} / "
        slower += roles.latency(0.99, "stable", of, over)
        yield _rule(
            "DrivetrainCanarySlow",
            f"({slower} > {self.canary_slower:g}) and ({asked})",
            wait="5m",
            severity="warning",
            summary=f"The canary of {model} takes {{{{ $value | humanize }}}} times the stable "
            "version's p99",
        )
        far = f"{roles.distance(of, over)} > {self.canary_distance:g}"
        yield _rule(
            "DrivetrainCanaryPredictions",
            f"({far}) and on () ({asked})",
            wait="5m",
            severity="warning",
            summary=f"{{{{ $labels.output }}}} of the canary of {model} lies "
            '{{ $value | printf "%.2f" }} from the stable version\'s (Kolmogorov-Smirnov)',
        )

        stopped = f"drivetrain_canaries_stopped_total{{{of}}}"
        yield _rule(
            "DrivetrainCanaryStopped",
            f"sum by (version) ({_grew(stopped)}) > 0",
            wait="0m",
            severity="critical",
            summary=f"The canary {{{{ $labels.version }}}} of {model} failed and gets no more "
            f"requests: drivetrain canary {model} --end",
        )

    def _data(self, manifest: Manifest, model: str) -> Iterator[dict[str, Any]]:
        of = f"model={quoted(model)}"
        believed = f"and on (model) drivetrain_drift_rows{{{of}}} >= {self.drift_rows}"
        above: list[str] = []
        for bound, columns in drift_bounds(manifest).items():
            names = "|".join(re.escape(column) for column in columns)
            of_columns = f"{of}, column=~{quoted(names)}" if columns else of
            above.append(f"drivetrain_drift_psi{{{of_columns}}} > {bound:g}")
        yield _rule(
            "DrivetrainDrift",
            f"({' or '.join(above)}) {believed}",
            wait="10m",
            severity="warning",
            summary=f"{{{{ $labels.column }}}} of {model} has drifted: PSI {{{{ $value }}}} is "
            "above its bound",
        )
        yield _rule(
            "DrivetrainFeedbackDropped",
            f"sum({_grew(f'drivetrain_feedback_dropped_total{{{of}}}')}) > 0",
            wait="0m",
            severity="warning",
            summary=f"{model} loses feedback: what it saw can't be read again",
        )


def _grew(counter: str) -> str:
    """By how much a counter grew in ten minutes, where it did; one that is born above 0 has no
    increase: that is the first that it counted."""
    return f"increase({counter}[10m]) > 0 or ({counter} > 0 unless {counter} offset 10m)"


def _rule(name: str, expression: str, *, wait: str, severity: str, summary: str) -> dict[str, Any]:
    return {
        "alert": name,
        "expr": expression,
        "for": wait,
        "labels": {"severity": severity},
        "annotations": {"summary": summary},
    }


def _yaml(value: Mapping[str, Any] | Sequence[Any], indent: int = 0) -> Iterator[str]:
    """Plain data as YAML lines; strings are quoted as JSON does, which is YAML too."""
    pad = "  " * indent
    if isinstance(value, Mapping):
        for key, item in value.items():
            if isinstance(item, str | int | float):
                yield f"{pad}{key}: {json.dumps(item, ensure_ascii=False)}"
            else:
                yield f"{pad}{key}:"
                yield from _yaml(item, indent + 1)
        return
    for item in value:
        first, *rest = _yaml(item, indent + 1)
        yield f"{pad}- {first.strip()}"
        yield from rest
