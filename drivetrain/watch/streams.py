"""What ``drivetrain watch`` finds of a stream: what its runner says of itself."""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from drivetrain.core.need import need
from drivetrain.watch.exposition import Gauge, render
from drivetrain.watch.looking import Looking

SILENT = 30.0
"""Seconds after which a runner that has said nothing is one to wonder about."""


@dataclass(frozen=True, kw_only=True)
class StreamLook:
    """All that one look found.

    Attributes:
        at: Unix time in seconds.
        name: the stream's.
        said: what its runner said last: counts since its start, ``rows_per_s`` and ``latency_ms``
            (``p50`` and ``p99``, from a message's own clock to the commit) over the last seconds,
            ``lag`` (messages that wait in the topic), ``positions`` and ``version`` of the table,
            ``window_keys`` and ``window_bytes`` of windows in its memory.
        problems: what is wrong.
    """

    at: float
    name: str
    said: Mapping[str, Any] = field(default_factory=dict[str, Any])
    problems: tuple[str, ...] = ()

    def line(self) -> str:
        """The look as one plain line."""
        when = datetime.fromtimestamp(self.at, UTC).isoformat(timespec="seconds")
        parts = [f"{when} {self.name}", *(f"{name} {value}" for name, value in self.figures())]
        return "; ".join([*parts, *(f"PROBLEM: {problem}" for problem in self.problems)])

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def figures(self) -> list[tuple[str, str]]:
        """What is known: name and value."""
        latency = self.said.get("latency_ms") or {}
        rows = [
            ("rows", self.said.get("rows"), "{:,}"),
            ("rows/s", self.said.get("rows_per_s"), "{:,.0f}"),
            ("lag", self.said.get("lag"), "{:,}"),
            ("latency p50", latency.get("p50"), "{:,.0f} ms"),
            ("p99", latency.get("p99"), "{:,.0f} ms"),
            ("dead letters", self.said.get("dead_letters"), "{:,}"),
            ("window keys", self.said.get("window_keys"), "{:,}"),
            ("window bytes", self.said.get("window_bytes"), "{:,}"),
            ("version", self.said.get("version"), "{}"),
        ]
        return [(name, form.format(value)) for name, value, form in rows if value is not None]

    def gauges(self) -> str:
        """The look as Prometheus scrapes it."""
        latency = self.said.get("latency_ms") or {}
        values: list[tuple[str, str, dict[str, str], float | None]] = [
            ("rows", "Rows committed since the start.", {}, self.said.get("rows")),
            ("rows_per_second", "Rows committed a second.", {}, self.said.get("rows_per_s")),
            ("lag", "Messages that wait in the topic.", {}, self.said.get("lag")),
            ("dead_letters", "Messages that did not fit.", {}, self.said.get("dead_letters")),
            ("window_keys", "Keys that windows keep.", {}, self.said.get("window_keys")),
            ("window_bytes", "Memory of these keys.", {}, self.said.get("window_bytes")),
        ]
        values += [
            ("latency_ms", "From a message's clock to its commit.", {"quantile": q}, latency.get(p))
            for q, p in (("0.5", "p50"), ("0.99", "p99"))
        ]
        found: dict[str, Gauge] = {}
        for name, about, labels, value in values:
            if value is not None:
                given = ({"stream": self.name, **labels}, float(value))
                before = found[name].samples if name in found else ()
                found[name] = Gauge(f"drivetrain_stream_{name}", about, [*before, given])
        return render(found.values())


class StreamWatch(Looking[StreamLook]):
    """Looks at the file in which the runner of a stream says how it goes.

    Args:
        name: the stream's.
        path: of the file.
        clock: gives Unix time in seconds.
    """

    offered = "the stream"

    def __init__(self, name: str, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._name, self._path, self._clock = name, path, clock

    @property
    def begun(self) -> bool:
        """Whether a runner has ever begun it here."""
        return self._path.exists()

    def look(self) -> StreamLook:
        """Look once."""
        now = self._clock()
        try:
            said = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return StreamLook(at=now, name=self._name, problems=("no runner has begun it here",))
        except (OSError, ValueError) as error:
            return StreamLook(at=now, name=self._name, problems=(str(error),))
        problems = [said["problem"]] if said.get("problem") else []
        if said.get("ended"):
            problems.append("its runner has ended")
        elif not _runs(int(said["pid"])):
            problems.append(f"its runner, process {said['pid']}, is gone: start it again")
        elif now - said["at"] > SILENT:
            problems.append(f"its runner has said nothing for {now - said['at']:.0f} s")
        return StreamLook(at=now, name=self._name, said=said, problems=tuple(problems))

    def gauges(self, look: StreamLook) -> str:
        """A look as Prometheus scrapes it."""
        return look.gauges()

    def drawn(self, stream: TextIO) -> AbstractContextManager[Callable[[StreamLook], None]]:
        """A view on a terminal that each look draws anew."""
        return _drawn(stream)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


@contextmanager
def _drawn(stream: TextIO) -> Iterator[Callable[[StreamLook], None]]:
    """A view on a terminal that each look draws anew."""
    text, group = need("rich.text", "watch").Text, need("rich.console", "watch").Group
    console = need("rich.console", "watch").Console(file=stream)
    with need("rich.live", "watch").Live(console=console, auto_refresh=False) as live:

        def show(look: StreamLook) -> None:
            lines = [text(f"{look.name}  {datetime.fromtimestamp(look.at):%H:%M:%S}", style="bold")]
            lines += [text.assemble((f"{n:>14} ", "dim"), (v, "bold")) for n, v in look.figures()]
            lines += [text(problem, style="bold yellow") for problem in look.problems]
            live.update(group(*lines), refresh=True)

        yield show
