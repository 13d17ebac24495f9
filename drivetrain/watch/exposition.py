"""Prometheus' text format, read and written (text exposition format, version 0.0.4)."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True)
class Sample:
    """One number with its labels."""

    name: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Gauge:
    """A metric that may fall: its help text and its samples, ``(labels, value)``."""

    name: str
    about: str
    samples: Sequence[tuple[Mapping[str, str], float]]


def render(gauges: Iterable[Gauge]) -> str:
    """Gauges as Prometheus scrapes them."""
    lines: list[str] = []
    for gauge in gauges:
        about = gauge.about.replace("\\", r"\\").replace("\n", r"\n")
        lines += [f"# HELP {gauge.name} {about}", f"# TYPE {gauge.name} gauge"]
        for labels, value in gauge.samples:
            inside = ",".join(f"{key}={quoted(text)}" for key, text in labels.items())
            lines.append(f"{gauge.name}{{{inside}}} {_number(value)}")
    return "\n".join(lines) + "\n" if lines else ""


def quoted(text: str) -> str:
    """A label's value as the format, PromQL and YAML write it."""
    escaped = text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'"{escaped}"'


def _number(value: float) -> str:
    if value != value:
        return "NaN"
    return {float("inf"): "+Inf", float("-inf"): "-Inf"}.get(value, repr(float(value)))


_LINE = re.compile(r"([a-zA-Z_:][\w:]*)\s*(?:\{(.*)\})?\s*(\S+)(?:\s+-?\d+)?\s*")
_LABEL = re.compile(r'\s*([a-zA-Z_]\w*)\s*=\s*"((?:[^"\\]|\\.)*)"\s*(?:,|$)')
_ESCAPED = re.compile(r"\\(.)")


def parse(text: str) -> list[Sample]:
    """The samples of a scrape; comments and time stamps are dropped.

    Raises:
        ValueError: a line is not of the format; names it.
    """
    found: list[Sample] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        labels = _labels(match.group(2) or "") if match else None
        if match is None or labels is None:
            raise ValueError(
                f"line {number} of the metrics: found {line[:80]!r}, allowed: a sample"
            )
        try:
            value = float(match.group(3).replace("Inf", "inf"))
        except ValueError:
            raise ValueError(
                f"line {number} of the metrics: found {match.group(3)!r}, allowed: a number"
            ) from None
        found.append(Sample(match.group(1), value, labels))
    return found


def _labels(inside: str) -> dict[str, str] | None:
    labels: dict[str, str] = {}
    at = 0
    while at < len(inside.rstrip()):
        match = _LABEL.match(inside, at)
        if match is None:
            return None
        labels[match.group(1)] = _ESCAPED.sub(
            lambda m: "\n" if m.group(1) == "n" else m.group(1), match.group(2)
        )
        at = match.end()
    return labels
