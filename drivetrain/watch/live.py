"""What ``drivetrain watch`` finds of a server: how it does, and how far its rows have drifted."""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from drivetrain.core.bundle import Bundle
from drivetrain.watch.bounds import drift_bounds, p99_bound
from drivetrain.watch.drift import Drifting, Window
from drivetrain.watch.exposition import Gauge, render
from drivetrain.watch.feedback import Feedback, feedback_schema
from drivetrain.watch.looking import Looking
from drivetrain.watch.reference import DriftValue
from drivetrain.watch.scrape import Between, Scrape, Service, fetch, service
from drivetrain.watch.view import draw, line

OVER = 10.0
"""Seconds over which rates and percentiles are taken."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """All that one look found.

    Attributes:
        at: Unix time in seconds.
        model: the name that is served.
        service: how the server does; None when none is watched or none answers.
        p99_bound_ms: the declared bound, if any.
        drift: of each column, over the newest rows of feedback.
        drift_bound: the bound of each column in ``drift``; None where the system set none.
        drift_rows: how many rows that are.
        skipped_rows: older rows that were passed over.
        problems: what could not be looked at, and why.
    """

    at: float
    model: str
    service: Service | None = None
    p99_bound_ms: float | None = None
    drift: Mapping[str, DriftValue] = field(default_factory=dict[str, DriftValue])
    drift_bound: Mapping[str, float | None] = field(default_factory=dict[str, float | None])
    drift_rows: int = 0
    skipped_rows: int = 0
    problems: tuple[str, ...] = ()

    @property
    def drifted(self) -> tuple[str, ...]:
        """The columns above their bound, by more than chance would give, the furthest first."""
        found = [
            (value.psi, name)
            for name, value in self.drift.items()
            if (bound := self.drift_bound.get(name)) is not None
            and value.psi > bound + value.by_chance
        ]
        return tuple(name for _, name in sorted(found, reverse=True))

    def line(self) -> str:
        """The look as one plain line."""
        return line(self)

    def to_json(self) -> dict[str, Any]:
        """Plain data; a number that JSON can't say, such as a mean of NaN, is None."""
        return _finite({**asdict(self), "drifted": list(self.drifted)})


class Watch(Looking[Snapshot]):
    """Looks at a server's metrics and at its feedback, each if there is one."""

    offered = "drift"

    def __init__(
        self,
        url: str | None,
        bundle: Bundle,
        feedback: str | Path | None,
        *,
        model: str | None = None,
        window: int = 100_000,
        token: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args:
        url: the server's address, such as ``http://127.0.0.1:8080``; None watches none.
        bundle: what drift is measured against.
        feedback: the directory that the server writes its events to; None reads none.
        model: the name that it is served under; None is the system's name.
        window: drift is that of about so many of the newest rows.
        token: what the server asks its clients for, if anything.
        clock: gives seconds.
        """
        self._url = url
        self._token = token
        self._bundle = bundle
        self._model = model or bundle.manifest.name
        self._clock = clock
        self._scrapes: deque[Scrape] = deque()
        self._drifting = Drifting(bundle.fitted)
        self._window = Window(self._drifting, window)
        self._feedback = None
        if feedback is not None:
            schema = feedback_schema(bundle.manifest)
            watched = [n for n in schema.names if n in self._drifting.columns]
            self._feedback = Feedback(feedback, schema.select(watched), window)
        self._bounds = self._column_bounds()

    def look(self) -> Snapshot:
        """Look once."""
        problems: list[str] = []
        seen = self._scrape(problems)
        self._read(problems)
        found = self._window.values()
        return Snapshot(
            at=time.time(),
            model=self._model,
            service=seen,
            p99_bound_ms=p99_bound(self._bundle.manifest),
            drift=found,
            drift_bound={name: self._bounds.get(name) for name in found},
            drift_rows=self._window.rows,
            skipped_rows=self._feedback.skipped if self._feedback else 0,
            problems=tuple(problems),
        )

    def gauges(self, look: Snapshot) -> str:
        """The drift as Prometheus scrapes it."""

        def each(value: Callable[[DriftValue], float]) -> list[tuple[dict[str, str], float]]:
            return [
                ({"model": self._model, "column": name}, value(found))
                for name, found in look.drift.items()
            ]

        rows = [({"model": self._model}, float(look.drift_rows))]
        psi = "Population stability index against the rows that the bundle was fitted on."
        return render(
            [
                Gauge("drivetrain_drift_psi", psi, each(lambda v: v.psi)),
                Gauge("drivetrain_drift_missing", "Share of missing values.", each(_missing)),
                Gauge("drivetrain_drift_rows", "Rows that drift was measured on.", rows),
            ]
        )

    def drawn(self, stream: TextIO) -> AbstractContextManager[Callable[[Snapshot], None]]:
        """A view on a terminal that each look draws anew."""
        return draw(stream)

    def _scrape(self, problems: list[str]) -> Service | None:
        if self._url is None:
            return None
        try:
            now = fetch(self._url, self._clock(), token=self._token)
        except (OSError, ValueError) as error:
            self._scrapes.clear()
            problems.append(f"no metrics: {error}")
            return None
        self._scrapes.append(now)
        while len(self._scrapes) > 1 and now.at - self._scrapes[1].at >= OVER:
            self._scrapes.popleft()
        before = self._scrapes[0] if len(self._scrapes) > 1 else None
        found = service(Between(before, now), self._model)
        if found.digest and found.digest != self._bundle.digest:
            problems.append(
                f"the server has bundle {found.digest[:12]}, drift is measured against "
                f"{self._bundle.digest[:12]}"
            )
        elif not found.version and not found.digest:
            problems.append(f"the server at {self._url} has no model {self._model!r}")
        return found

    def _read(self, problems: list[str]) -> None:
        if self._feedback is None:
            return
        try:
            for batch in self._feedback.new():
                self._window.add(batch)
        except OSError as error:
            problems.append(f"no feedback: {error}")
        problems.extend(self._feedback.problems)

    def _column_bounds(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for bound, columns in drift_bounds(self._bundle.manifest).items():
            found.update(dict.fromkeys(columns or self._drifting.columns, bound))
        return found


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _missing(value: DriftValue) -> float:
    return value.missing
