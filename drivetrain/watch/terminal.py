"""Listeners for people and for programs: progress bars, plain lines and JSON lines."""

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from types import TracebackType
from typing import Any, Self, TextIO, cast

from drivetrain.core.metric import Emitted, Metric, Note, Progress

QUIET = 5.0
"""Seconds without a line of progress that nobody should wonder about."""
OFTEN = 1.0
"""Seconds between two lines of progress at least."""
STEP = 0.1
"""The share of a stage that is worth a line."""


class Terminal:
    """Shows the stream to a person: bars where they can be drawn, else a few plain lines.

    Bars need a terminal and the package ``rich`` (the extra ``watch``). Without either, a stage
    writes a line every tenth of its way or every five seconds, never more than one a second, and
    one at its end.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        bars: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        stream: where to write; None is standard error.
        bars: whether to draw bars; None finds out.
        clock: gives seconds.
        """
        where = cast(TextIO, sys.stderr) if stream is None else stream
        if bars is None:
            bars = where.isatty() and find_spec("rich") is not None
        self._shown: Bars | Lines = Bars(where) if bars else Lines(where, clock)

    def __call__(self, item: Emitted) -> None:
        """Show one item."""
        match item:
            case Progress():
                self._shown.progress(item)
            case Note():
                mark = "warning: " if item.warning else ""
                self._shown.line(f"{item.stage}: {mark}{item.text}", warning=item.warning)
            case Metric(step=None):
                self._shown.line(str(item), warning=not item.holds)
            case Metric():
                self._shown.figure(item)

    def close(self) -> None:
        """Leave the terminal as a person expects it."""
        self._shown.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Writer:
    """Writes lines until nobody reads them any more: ``| head`` must not end a training."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._open = True

    def __call__(self, line: str) -> None:
        """Write one line and flush it."""
        if not self._open:
            return
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except (BrokenPipeError, ValueError):  # ValueError: the stream was closed
            self._open = False


@dataclass
class Pace:
    """How fast a stage goes, by what was seen of it."""

    began: float
    first: int
    told: float
    told_share: float = 0.0
    done: int = 0
    ended: bool = False

    def rate(self, now: float) -> float | None:
        """Units a second since the stage was first seen; None before anything can be said."""
        seconds = now - self.began
        return (
            (self.done - self.first) / seconds if seconds > 0 and self.done > self.first else None
        )


class Lines:
    """Plain lines, few enough for a log file."""

    def __init__(self, stream: TextIO, clock: Callable[[], float]) -> None:
        self._write = Writer(stream)
        self._clock = clock
        self._paces: dict[str, Pace] = {}
        self._figures: dict[str, Metric] = {}

    def line(self, text: str, warning: bool) -> None:
        """Write a line now."""
        self._write(text)

    def figure(self, metric: Metric) -> None:
        """Remember a metric of a series for the next line of progress."""
        self._figures[metric.name] = metric

    def progress(self, item: Progress) -> None:
        """Write a line if it is time for one."""
        now = self._clock()
        pace = self._paces.get(item.stage)
        if pace is None or item.done < pace.done:  # a stage that starts again is a new one
            pace = self._paces[item.stage] = Pace(began=now, first=item.done, told=now)
        pace.done = item.done
        share = item.done / item.total if item.total else 0.0
        finished = item.total is not None and item.done >= item.total
        waited = now - pace.told
        further = share >= pace.told_share + STEP and waited >= OFTEN
        if (finished and not pace.ended) or (not finished and (further or waited >= QUIET)):
            pace.told, pace.told_share, pace.ended = now, share, finished
            self._write(_line(item, pace.rate(now), self._recent()))

    def close(self) -> None:
        """Write the last figures of series that no line of progress has told."""
        for text in self._recent():
            self._write(text)

    def _recent(self) -> list[str]:
        told = [f"{m.name} {m.value:.5g}" for m in self._figures.values()]
        self._figures.clear()
        return told


def _line(item: Progress, rate: float | None, figures: list[str]) -> str:
    parts: list[str] = []
    if item.total:
        parts.append(f"{min(item.done / item.total, 1):4.0%}")
        parts.append(f"{item.done:,}/{item.total:,} {item.unit}")
    else:
        parts.append(f"{item.done:,} {item.unit}")
    if rate is not None:
        parts.append(f"{rate:,.0f} {item.unit}/s" if rate >= 10 else f"{rate:.2g} {item.unit}/s")
        if item.total and item.done < item.total:
            parts.append(f"{duration((item.total - item.done) / rate)} left")
    return f"{item.stage}: " + ", ".join((*parts, *figures)).strip()


def duration(seconds: float) -> str:
    """Seconds as ``m:ss`` or ``h:mm:ss``."""
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@dataclass
class Bars:
    """Bars, one for each stage; notes and figures scroll above them."""

    stream: TextIO
    _progress: Any = None
    _tasks: dict[str, Any] = field(default_factory=dict[str, Any])
    _figures: dict[str, str] = field(default_factory=dict[str, str])

    def line(self, text: str, warning: bool) -> None:
        """Print above the bars."""
        style = "bold yellow" if warning else None
        self._drawn().console.print(text, style=style, markup=False, highlight=False)

    def figure(self, metric: Metric) -> None:
        """Show the newest figure of a series beside the bar of its stage."""
        stage, _, name = metric.name.partition("/")
        self._figures[stage] = f"{name} {metric.value:.4g}"
        if stage in self._tasks:
            self._drawn().update(self._tasks[stage], figure=self._figures[stage])

    def progress(self, item: Progress) -> None:
        """Move the bar of a stage."""
        progress = self._drawn()
        if item.stage not in self._tasks:
            self._settle()
            self._tasks[item.stage] = progress.add_task(item.stage, total=item.total, figure="")
        figure = self._figures.get(item.stage, "")
        task = self._tasks[item.stage]
        progress.update(task, completed=item.done, total=item.total, figure=figure)
        progress.update(task, unit=item.unit)

    def close(self) -> None:
        """Draw the last state and give the cursor back."""
        if self._progress is not None:
            self._settle()
            self._progress.stop()
            self._progress = None

    def _settle(self) -> None:
        """A stage that could not know its total is over when the next one starts."""
        for task in self._progress.tasks if self._progress else ():
            if task.total is None:
                self._progress.update(task.id, total=task.completed)

    def _drawn(self) -> Any:
        if self._progress is None:
            self._progress = _rich_progress(self.stream)
            self._progress.start()
        return self._progress


def _rich_progress(stream: TextIO) -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        ProgressColumn,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as RichProgress
    from rich.text import Text

    class Rate(ProgressColumn):
        """Units done, and how many a second."""

        def render(self, task: Any) -> Text:
            unit = task.fields.get("unit", "")
            speed = task.finished_speed or task.speed
            rate = "" if speed is None else f"  {speed:,.0f} {unit}/s"
            return Text(f"{task.completed:,.0f} {unit}{rate}")

    return RichProgress(
        TextColumn("{task.description:>9}", markup=False),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[figure]}", markup=False),
        console=Console(file=stream),
        refresh_per_second=8,
    )


class JsonLines:
    """Writes each item as one JSON object on a line of its own, for a program to read.

    ``type`` is ``metric``, ``progress`` or ``note``; ``at`` is Unix time in seconds. A number
    that JSON can't say (NaN, an infinity) is null. A metric with a bound has ``holds``.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.time) -> None:
        self._write = Writer(stream)
        self._clock = clock

    def __call__(self, item: Emitted) -> None:
        """Write one item."""
        line: dict[str, Any] = {"type": type(item).__name__.lower(), "at": round(self._clock(), 3)}
        line.update((key, value) for key, value in vars(item).items() if value is not None)
        if isinstance(item, Metric):
            line["value"] = item.value if math.isfinite(item.value) else None
            if item.at_least is not None or item.at_most is not None:
                line["holds"] = item.holds
        self._write(json.dumps(line, ensure_ascii=False, allow_nan=False))
