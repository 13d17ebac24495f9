"""What keeps the observations of an alias, wherever it keeps them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from drivetrain.core.errors import wrong
from drivetrain.core.schema import Schema
from drivetrain.serve.execution.filling import Filling, Kept, Lookup
from drivetrain.serve.execution.live import NONE, Learning, Live
from drivetrain.serve.state.posts import Limits, Post, Reader
from drivetrain.serve.telemetry.metrics import Metrics


@dataclass(frozen=True)
class Outcome:
    """What became of a post; a row counts for every track that it feeds.

    Attributes:
        observed: were added.
        late: came later than is allowed, and were left out.
        missing: had no key, no value or no time at which they were known.
        ignored: rows that were observed before, by what the post says of its source.
        durable: whether they are there again after the process was killed; None where somebody
            else decides that.
    """

    observed: int = 0
    late: int = 0
    missing: int = 0
    ignored: int = 0
    durable: bool | None = None


Told: TypeAlias = Callable[[Outcome | Exception], object]
"""Given what became of a post, on the loop's thread."""


class State(ABC):
    """Keeps the observations of an alias. Every method is called on the loop's thread.

    Attributes:
        reader: reads what is posted; None until :meth:`keep`.
    """

    def __init__(self, name: str, metrics: Metrics) -> None:
        self.name = name
        self.reader: Reader | None = None
        self.lookup_seconds = metrics.lookup_seconds.of(name)
        self._observations = {
            outcome: metrics.observations.of(name, outcome)
            for outcome in ("observed", "late", "missing", "ignored", "refused")
        }

    @abstractmethod
    def keep(
        self, kept: Sequence[Kept], limits: Limits, learning: Mapping[str, Learning] = NONE
    ) -> None:
        """Keep these from now on, and those that were kept before these for a way back.

        Args:
            kept: what the versions that are served need.
            limits: of a post.
            learning: what learns in these versions, by what :meth:`prepare` gave.

        Raises:
            ValueError: they hold one column for different things.
        """

    @abstractmethod
    def lookup(self, filling: Filling) -> Lookup:
        """What gives the windows of a version's rows."""

    def prepare(self, learning: Learning) -> str:
        """Make what learns in a version that is being loaded; its digest. On any thread.

        Raises:
            ValueError: it is not whole, what was kept of it is damaged, or none can be kept here.
        """
        raise wrong(f"{self.name}", "a graph that learns", "[serve] state = a directory or ''")

    def live(self, digest: str, learning: Learning, given: Schema) -> Live:
        """What gives the live tensors of a version's runs, once :meth:`keep` was told.

        Args:
            digest: what :meth:`prepare` gave.
            learning: what learns in it.
            given: the columns that a request brings.
        """
        raise AssertionError("whoever cannot prepare it has refused it")

    @abstractmethod
    def observe(self, post: Post, told: Told) -> None:
        """Add what was observed, and tell what became of it once it is safe.

        What cannot be added for now is told of as an
        :class:`drivetrain.serve.execution.filling.AwayError`.
        """

    @abstractmethod
    async def tell(self) -> dict[str, Any]:
        """What there is to know of it, as plain data."""

    @abstractmethod
    async def close(self) -> None:
        """Take nothing more, and close what is open."""

    def count(self, outcome: Outcome | None, rows: int = 0) -> None:
        """Count what became of a post; of one that was refused, its rows."""
        counters = self._observations
        if outcome is None:
            counters["refused"].value += rows
            return
        for name in ("observed", "late", "missing", "ignored"):
            counters[name].value += getattr(outcome, name)
