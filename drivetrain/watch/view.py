"""Draws what a look at a server and its feedback found."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO

from drivetrain.core.need import need

if TYPE_CHECKING:
    from drivetrain.watch.live import Snapshot

SHOWN = 20
"""Columns of drift on the screen, those with the greatest index."""


def line(snapshot: "Snapshot") -> str:
    """A look as one plain line."""
    when = datetime.fromtimestamp(snapshot.at, UTC).isoformat(timespec="seconds")
    parts = [f"{when} {snapshot.model}", *(f"{k} {v}" for k, v, _ in figures(snapshot))]
    if snapshot.drift_rows:
        name, value = max(snapshot.drift.items(), key=lambda item: item[1].psi)
        parts.append(f"drift of {snapshot.drift_rows:,} rows: most in {name} {value.psi:.3f}")
        if snapshot.drifted:
            parts.append(f"ABOVE BOUND: {', '.join(snapshot.drifted)}")
    parts.extend(f"PROBLEM: {problem}" for problem in snapshot.problems)
    return "; ".join(parts)


def figures(snapshot: "Snapshot") -> list[tuple[str, str, bool]]:
    """The figures of the service: name, value and whether it is bad; none that nobody knows."""
    seen = snapshot.service
    if seen is None:
        return []
    bound = snapshot.p99_bound_ms
    slow = bound is not None and seen.p99_ms is not None and seen.p99_ms > bound
    rows: list[tuple[str, Any, str, bool]] = [
        (
            "ready",
            None if seen.ready is None else ("yes" if seen.ready else "NO"),
            "",
            not seen.ready,
        ),
        ("version", seen.version or None, "", False),
        ("requests", seen.requests, "{:,.0f}", False),
        ("requests/s", seen.requests_per_s, "{:,.1f}", False),
        ("errors", seen.error_share, "{:.2%}", bool(seen.error_share)),
        ("refused", seen.refused_share, "{:.2%}", False),
        ("p50", seen.p50_ms, "{:.2f} ms", False),
        ("p99", seen.p99_ms, "{:.2f} ms", slow),
        ("rows a batch", seen.batch_rows, "{:.1f}", False),
        ("rows waiting", seen.queue_rows, "{:,.0f}", False),
        (
            "memory",
            None if seen.memory_bytes is None else seen.memory_bytes / 2**20,
            "{:,.0f} MiB",
            False,
        ),
        ("cores", seen.cores, "{:.2f}", False),
        ("feedback rows", seen.feedback_rows, "{:,.0f}", False),
        ("feedback lost", seen.feedback_dropped, "{:,.0f}", bool(seen.feedback_dropped)),
        ("learnt", seen.learnt, "{:,.0f}", False),
        ("AUC", seen.auc, "{:.3f}", False),
        ("without learning", seen.frozen_auc, "{:.3f}", False),
        ("rolled back", "YES" if seen.rolled_back else None, "", True),
        *((f"mean {name}", value, "{:.4g}", False) for name, value in seen.predictions.items()),
    ]
    return [
        (name, form.format(value) if form else str(value), bad)
        for name, value, form, bad in rows
        if value is not None
    ]


@contextmanager
def draw(stream: TextIO) -> Iterator[Callable[["Snapshot"], None]]:
    """A view on a terminal that each look draws anew."""
    console = need("rich.console", "watch").Console(file=stream)
    with need("rich.live", "watch").Live(console=console, auto_refresh=False) as live:
        yield lambda snapshot: live.update(view(snapshot), refresh=True)


def view(snapshot: "Snapshot") -> Any:
    """A look as a drawing for ``rich``."""
    group = need("rich.console", "watch").Group
    text = need("rich.text", "watch").Text
    parts: list[Any] = [text(_title(snapshot), style="bold")]
    known = figures(snapshot)
    if known:
        parts.append(_service(known))
    if snapshot.drift:
        parts.append(_drift(snapshot))
    elif snapshot.service is not None:
        parts.append(text("No feedback was read: nothing is known of drift.", style="dim"))
    parts.extend(text(problem, style="bold yellow") for problem in snapshot.problems)
    return group(*parts)


def _title(snapshot: "Snapshot") -> str:
    seconds = snapshot.service.seconds if snapshot.service else None
    over = "since the server started" if seconds is None else f"over the last {seconds:.0f} s"
    return f"{snapshot.model}  {datetime.fromtimestamp(snapshot.at):%H:%M:%S}  {over}"


def _service(known: list[tuple[str, str, bool]]) -> Any:
    table = need("rich.table", "watch").Table.grid(padding=(0, 3))
    text = need("rich.text", "watch").Text
    for _ in range(4):
        table.add_column()
    cells = [
        text.assemble((f"{name} ", "dim"), (value, "bold red" if bad else "bold"))
        for name, value, bad in known
    ]
    for start in range(0, len(cells), 4):
        table.add_row(*cells[start : start + 4])
    return table


def _drift(snapshot: "Snapshot") -> Any:
    table = need("rich.table", "watch").Table(
        title=f"Drift of the newest {snapshot.drift_rows:,} rows", title_justify="left", box=None
    )
    text = need("rich.text", "watch").Text
    for name in ("column", "PSI", "bound", "by chance", "distance", "missing", "before", "unknown"):
        table.add_column(name, justify="left" if name == "column" else "right")
    ordered = sorted(snapshot.drift.items(), key=lambda item: -item[1].psi)
    for name, value in ordered[:SHOWN]:
        bound = snapshot.drift_bound.get(name)
        table.add_row(
            text(name),
            text(f"{value.psi:.3f}", style="bold red" if name in snapshot.drifted else ""),
            "" if bound is None else f"{bound:g}",
            f"{value.by_chance:.3f}",
            f"{value.distance:.3f}",
            f"{value.missing:.1%}",
            f"{value.missing_before:.1%}",
            f"{value.unknown:.1%}",
        )
    if len(ordered) > SHOWN:
        table.caption = f"and {len(ordered) - SHOWN} columns that drifted less"
    return table
