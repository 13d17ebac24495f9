"""Draws a system or a bundle: as plain data, for the terminal, and as one self-contained page."""

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from drivetrain.core.schema import FeatureSchema, Schema
from drivetrain.watch.plan import constructor, steps

if TYPE_CHECKING:
    from drivetrain.core.bundle import Manifest

Plain = Mapping[str, Any]

WIDTH = 100
"""Characters of a terminal's line."""


def plain(
    system: Plain,
    *,
    schema: Schema | None = None,
    manifest: "Manifest | None" = None,
    digest: str = "",
) -> dict[str, Any]:
    """All that the drawings show, as plain data.

    Args:
        system: a described declaration.
        schema: the columns that the events have, if they were read.
        manifest: the bundle's, if it is a bundle that is drawn.
        digest: the bundle's.
    """
    features = manifest.features if manifest else None
    stages = [
        {"stage": "events", "lines": steps(system.get("events"))},
        {"stage": "features", "lines": [constructor(f) for f in system.get("features", ())]},
        {"stage": "model", "lines": [constructor(system.get("model"))]},
        {"stage": "train", "lines": [constructor(system.get("train"))]},
        {"stage": "compress", "lines": [constructor(p) for p in system.get("compress", ())]},
        {"stage": "probes", "lines": [constructor(p) for p in system.get("probes", ())]},
    ]
    drawn: dict[str, Any] = {
        "name": system.get("name", ""),
        "digest": digest,
        "stages": [stage for stage in stages if stage["lines"]],
        "targets": list(system.get("targets", ())),
    }
    if schema is not None:
        drawn["columns"] = schema.to_json()
    if manifest is not None:
        drawn["inputs"] = manifest.inputs.to_json()
        drawn["outputs"] = manifest.outputs.to_json()
        drawn["metrics"] = dict(manifest.metrics)
        drawn["bounds"] = {name: list(bound) for name, bound in manifest.bounds.items()}
        drawn["parents"] = dict(manifest.parents)
        drawn["sources"] = [dict(source) for source in manifest.sources]
        drawn["packages"] = dict(manifest.packages)
        drawn["files"] = {name: dict(file) for name, file in manifest.files.items()}
    if features is not None:
        drawn["features"] = features.to_json()
    return drawn


def text(drawn: Plain) -> str:
    """The drawing for a terminal."""
    lines = [f"{drawn['name']}  {drawn['digest'][:12]}".rstrip(), ""]
    for position, stage in enumerate(drawn["stages"]):
        lines += ["    ↓"] if position else []
        for number, line in enumerate(stage["lines"]):
            lines += _wrapped(stage["stage"] if not number else "", line)
    lines += [f"{'targets':10}{', '.join(drawn['targets'])}", ""]
    lines += _columns("columns", drawn.get("columns"))
    lines += _columns("raw inputs", drawn.get("inputs"))
    lines += _columns("predictions", drawn.get("outputs"))
    if "features" in drawn:
        lines += ["model inputs"]
        lines += [f"  {name:28}{size:24}from {of}" for name, size, of in _inputs(drawn)]
    for title in ("metrics", "measured", "parents", "packages"):
        if drawn.get(title):
            bounds = drawn["bounds"] if title == "metrics" else {}
            lines += ["", title]
            lines += [
                f"  {key:40}{_number(item):12}{_bound(bounds.get(key))}".rstrip()
                for key, item in drawn[title].items()
            ]
    if drawn.get("sources"):
        lines += ["", "sources", *(f"  {source}" for source in _sources(drawn))]
    return "\n".join(map(_printable, lines)) + "\n"


def _sources(drawn: Plain) -> Iterable[str]:
    """What names the rows that a bundle was made of, a line each."""
    for source in drawn["sources"]:
        yield ", ".join(f"{key} {json.dumps(value)}" for key, value in source.items())


def _columns(title: str, fields: Any) -> list[str]:
    if not fields:
        return []
    return [title, *(f"  {f['name']:28}{f['dtype']}{f['shape'] or ''}" for f in fields), ""]


def _inputs(drawn: Plain) -> Iterable[tuple[str, str, str]]:
    for feature in FeatureSchema.from_json(drawn["features"]).features:
        size = f"{feature.kind} {feature.width}"
        if feature.cardinality:
            size += f" of {feature.cardinality:,}"
        if feature.shape:
            size = f"{feature.kind} {list(feature.shape)}"
        yield feature.name, size, ", ".join(feature.columns)


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _wrapped(title: str, line: str) -> list[str]:
    """A line of a stage over as many lines of a terminal as it takes; a path stays whole."""
    indent = " " * (14 + len(line) - len(line.lstrip()))
    return wrap(
        f"{title:10}{line}",
        WIDTH,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _printable(line: str) -> str:
    """A line in which no name can steer the terminal."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in line)


STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; color: #1a2027;
       padding: 0 1rem; background: #fff }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.05rem; margin: 2rem 0 .4rem }
.digest { color: #68737d; font: 13px ui-monospace, monospace; overflow-wrap: anywhere }
.flow { display: flex; flex-wrap: wrap; gap: .6rem; align-items: stretch; margin: 1.2rem 0 }
.stage { border: 1px solid #c9d1d9; border-radius: 8px; padding: .6rem .8rem; flex: 1 1 15rem;
         background: #f6f8fa; min-width: 0 }
.stage b { display: block; color: #0b5cad } .stage code { display: block; font-size: 12px;
         overflow-wrap: anywhere; margin-top: .2rem; white-space: pre-wrap }
table { border-collapse: collapse; width: 100% }
td, th { text-align: left; border-bottom: 1px solid #e3e8ec; padding: .25rem .6rem .25rem 0 }
td.n { font-family: ui-monospace, monospace; font-size: 13px; overflow-wrap: anywhere }
@media (prefers-color-scheme: dark) { body { background: #11161b; color: #d7dde3 }
  .stage { background: #1a2129; border-color: #36414c } .stage b { color: #6cb2ff }
  td, th { border-color: #2a333c } }
"""


def html(drawn: Plain) -> str:
    """The drawing as one page that needs nothing else: no script, no font, no address."""
    stages = "".join(
        f'<div class="stage"><b>{escape(s["stage"])}</b>'
        + "".join(f"<code>{escape(line)}</code>" for line in s["lines"])
        + "</div>"
        for s in drawn["stages"]
    )
    parts = [
        f"<h1>{escape(drawn['name'])}</h1>",
        f'<div class="digest">{escape(drawn["digest"])}</div>',
        f'<div class="flow">{stages}</div>',
    ]
    for title in ("columns", "inputs", "outputs"):
        if drawn.get(title):
            rows = [(f["name"], f"{f['dtype']} {f['shape'] or ''}") for f in drawn[title]]
            parts.append(_table(title, ("name", "type"), rows))
    if "features" in drawn:
        parts.append(_table("model inputs", ("feature", "tensor", "columns"), _inputs(drawn)))
    if drawn.get("metrics"):
        bounds = drawn.get("bounds", {})
        rows = [(k, _number(v), _bound(bounds.get(k))) for k, v in drawn["metrics"].items()]
        parts.append(_table("metrics", ("metric", "value", "bound"), rows))
    if drawn.get("measured"):
        rows = [(name, _number(value)) for name, value in drawn["measured"].items()]
        parts.append(_table("measured", ("in the last run", "value"), rows))
    parts += [
        _table(title, (title, ""), drawn[title].items())
        for title in ("parents", "packages")
        if drawn.get(title)
    ]
    if drawn.get("sources"):
        parts.append(_table("sources", ("rows of",), [(line,) for line in _sources(drawn)]))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(drawn['name'])}</title><style>{STYLE}</style></head>"
        f"<body>{''.join(parts)}</body></html>\n"
    )


def _bound(bound: Sequence[float | None] | None) -> str:
    low, high = bound or (None, None)
    parts = [f"at least {low:g}"] if low is not None else []
    parts += [f"at most {high:g}"] if high is not None else []
    return ", ".join(parts)


def _table(title: str, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    header = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(f'<td class="n">{escape(str(cell))}</td>' for cell in row) + "</tr>"
        for row in rows
    )
    return f"<h2>{escape(title)}</h2><table><tr>{header}</tr>{body}</table>"
