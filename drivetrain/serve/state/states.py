"""The observations of every alias that a server serves, where its site wants them kept."""

import logging
import threading
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from drivetrain.core.errors import wrong
from drivetrain.serve.execution.models import Model, Release
from drivetrain.serve.state.kept import State
from drivetrain.serve.state.posts import Limits
from drivetrain.serve.telemetry.metrics import Metrics

log = logging.getLogger("drivetrain.serve")

_REDIS = ("redis", "rediss", "unix")
REFUSE, EMPTY = "refuse", "empty"


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """Where the observations that windows are read off are kept.

    Attributes:
        place: a directory for a log and snapshots, ``redis://host:port/db``, or empty for memory
            only, which ends with the process.
        bytes: what the observations of an alias may take in memory; beyond it none are taken.
        ahead: seconds that what is observed may lie ahead of this machine's clock; 0 is no bound.
        missing: what becomes of requests while Redis cannot be asked: ``refuse`` answers 503,
            ``empty`` predicts with empty windows, counts these and says so.

    Raises:
        ValueError: a value is not allowed.
    """

    place: str = ""
    bytes: int = 1 << 30
    ahead: int = 86_400
    missing: str = REFUSE

    def __post_init__(self) -> None:
        if self.missing not in (REFUSE, EMPTY):
            raise wrong("[serve] state_missing", self.missing, f"{REFUSE} or {EMPTY}")
        if self.bytes < 1:
            raise wrong("[serve] state_bytes", self.bytes, "1 or more")
        if self.ahead < 0:
            raise wrong("[serve] state_ahead", self.ahead, "0 or more seconds")
        if "://" in self.place and not self.redis:
            raise wrong("[serve] state", self.place, "a directory, redis://… or nothing")

    @property
    def redis(self) -> bool:
        """Whether several processes share it."""
        return "://" in self.place and urlsplit(self.place).scheme in _REDIS


class States:
    """Opens what keeps the observations of each alias, and tells versions where to look.

    Args:
        keeping: where they are kept.
        processes: how many serve the same port.
        metrics: where they are counted.
        most_rows: of a post.
        runs: of one version at once.
    """

    def __init__(
        self, keeping: Keeping, processes: int, metrics: Metrics, most_rows: int, runs: int = 1
    ) -> None:
        self._keeping = keeping
        self._processes = processes
        self._metrics = metrics
        self._runs = runs
        self._limits = Limits(most_rows, keeping.ahead)
        self._lock = threading.Lock()
        self._states: dict[str, State] = {}
        self._learners: WeakKeyDictionary[Model, str] = WeakKeyDictionary()
        self._asked: set[str] = set()

    def check(self, model: Model) -> None:
        """See that the windows of a version can be kept, and open what keeps them; any thread.

        Raises:
            ImportError: what is needed is not installed.
            OSError: the directory cannot be read or written.
            ValueError: they cannot be; or another process uses the directory; or what lies there
                is damaged.
        """
        if model.filling is None and model.learning is None:
            return
        if model.learning is not None and (self._processes > 1 or self._keeping.redis):
            found = "state in Redis" if self._keeping.redis else f"{self._processes} workers"
            raise ValueError(
                f"{model.name}: found a graph that learns while it is served and {found}, allowed: "
                "what learns belongs to one process: [serve] workers = 1, and state = a directory "
                "or ''."
            )
        if self._processes > 1 and not self._keeping.redis:
            raise ValueError(
                f"{model.name}: found windows and {self._processes} workers, allowed: embedded "
                "state belongs to one process: [serve] workers = 1, or state = 'redis://…'."
            )
        from drivetrain.core.tracks import Tracks

        for kept in () if model.filling is None else model.filling.kept:
            Tracks(kept.windows, kept.schema)
        with self._lock:
            if model.name not in self._states:
                self._states[model.name] = self._opened(model.name)
        if model.learning is not None:
            self._learners[model] = self._states[model.name].prepare(model.learning)
            model.learning.forget()

    def _opened(self, name: str) -> State:
        keeping = self._keeping
        if keeping.redis:
            from drivetrain.serve.state.shared import Shared

            return Shared(name, keeping.place, keeping.missing == EMPTY, self._metrics)
        from drivetrain.serve.state.embedded import Embedded

        room = Path(keeping.place) / name if keeping.place else None
        return Embedded(name, room, keeping.bytes, self._metrics, self._runs)

    def adopt(self, release: Release) -> None:
        """Keep what the versions of an alias need, and give them their windows; before they are
        asked. Each was checked.

        Raises:
            ValueError: they observe one column as different things.
        """
        fillings = [(m, m.filling) for m in release.models if m.filling is not None]
        learning = [(m, m.learning) for m in release.models if m.learning is not None]
        if not fillings and not learning:
            self._asked.discard(release.name)
            return
        state = self._states[release.name]
        kept = {each.digest: each for _, filling in fillings for each in filling.kept}
        learners = {self._learners[model]: each for model, each in learning}
        state.keep(tuple(kept.values()), self._limits, learners)
        self._asked.add(release.name)
        for model, filling in fillings:
            if model.lookup is None:
                model.lookup = state.lookup(filling)
        for model, each in learning:
            if model.live is None:
                model.live = state.live(self._learners[model], each, model.inputs)

    def of(self, name: str) -> State | None:
        """What keeps the observations of an alias; None where it has no windows."""
        return self._states.get(name) if name in self._asked else None

    async def close(self) -> None:
        """Take nothing more, and close what is open."""
        while self._states:
            _, state = self._states.popitem()
            await state.close()
