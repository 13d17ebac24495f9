"""The observations of one alias in the memory of this process."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import msgspec
import numpy as np

from drivetrain.core.batch import Array, Batch
from drivetrain.core.tracks import Tracks
from drivetrain.serve.execution.filling import Filling, Kept
from drivetrain.serve.state.learners import Learners
from drivetrain.serve.state.posts import Post
from drivetrain.serve.telemetry.family import Histogram

log = logging.getLogger("drivetrain.serve")

_FORMAT = 3
_FORMATS = (1, 2, 3)
"""That are read; the first held the state of a track in one piece, the second no learners."""
_PIECE = 1 << 30
"""Bytes of a track's state at a time: MessagePack takes less than 4 GiB."""
FEW = 16
"""Rows that are asked and told one by one."""
_EXPIRES = 8
"""How often within its horizon a track is looked through for keys that can give nothing more."""


@dataclass
class Counts:
    """What became of observations; each row counts for every track that it feeds.

    Attributes:
        observed: were added.
        late: came later than is allowed, and were left out.
        missing: had no key, no value or no time at which they were known.
    """

    observed: int = 0
    late: int = 0
    missing: int = 0


NOBODY = Counts()
"""Of a post that nobody learns of."""


class Memory:
    """Tracks by their digests, learners, and how far what feeds them was read.

    Used on one thread, but for :meth:`dump`, beside which only reads go on.

    Attributes:
        tracks: what is read.
        learners: what learns.
        positions: of each source, behind the last row that was observed.

    Args:
        runs: of one version at once.
    """

    def __init__(self, runs: int = 1) -> None:
        self.tracks: dict[str, Tracks] = {}
        self.learners = Learners(runs)
        self.positions: dict[str, int] = {}
        self.kept: dict[str, Kept] = {}
        self._wanted: frozenset[str] = frozenset()
        self._expired: dict[str, int] = {}

    # -- which tracks --------------------------------------------------------------------------

    def make(self, kept: Sequence[Kept]) -> list[Kept]:
        """Make the tracks that are not there, which begin empty and are read at once; they are
        fed from :meth:`keep` on. Gives those that are new."""
        new = [each for each in kept if each.digest not in self.tracks]
        for each in new:
            self.tracks[each.digest] = Tracks(each.windows, each.schema)
        return new

    def wants(self, kept: Sequence[Kept]) -> bool:
        """Whether it was these that :meth:`keep` was told last."""
        return self._wanted == {each.digest for each in kept}

    def fed_with(self, kept: Sequence[Kept]) -> dict[str, Kept]:
        """What is fed once :meth:`keep` was told of these, the others behind them."""
        if self.wants(kept):
            return self.kept
        now = {each.digest: each for each in kept}
        return now | {d: self.kept[d] for d in self._wanted if d not in now}

    def keep(self, kept: Sequence[Kept]) -> None:
        """Feed these from now on, and those that were fed before these; drop what is older.

        An alias may go back to the version that it meant before, which finds what it needs.
        """
        self.make(kept)
        if self.wants(kept):
            return
        self.kept = self.fed_with(kept)
        self._wanted = frozenset(each.digest for each in kept)
        for digest in self.tracks.keys() - self.kept.keys():
            del self.tracks[digest]
            self._expired.pop(digest, None)

    # -- what is observed ----------------------------------------------------------------------

    def knows(self, post: Post) -> bool:
        """Whether the rows of a post were observed already, by what it says of its source."""
        return post.source is not None and post.offset <= self.positions.get(post.source, -1)

    def observe(self, post: Post) -> Counts:
        """Add what was observed to the tracks.

        Raises:
            Exception: the kernel refuses it, now and whenever it is added again.
        """
        found = Counts()
        if post.source is not None:
            self.positions[post.source] = post.offset
        for piece in post.pieces:
            few = len(piece) <= FEW
            values = {name: piece[name].tolist() for name in piece.columns} if few else {}
            for digest, kept in self.kept.items():
                if not all(name in piece.columns for name in kept.columns):
                    continue
                if few:
                    tell = self.tracks[digest].tell
                    rows = zip(*[values[name] for name in kept.columns], strict=True)
                    told = [sum(counts) for counts in zip(*map(tell, rows), strict=True)]
                else:
                    counts = self.tracks[digest].observe(piece)
                    told = (counts.kept, counts.late, counts.missing)
                found.observed += told[0]
                found.late += told[1]
                found.missing += told[2]
        self._expire()
        return found

    def _expire(self, at_once: bool = False) -> None:
        """Forget keys that can give nothing more."""
        for digest, kept in self.kept.items():
            watermark, horizon = self.tracks[digest].watermark, kept.horizon
            if watermark is None or horizon is None:
                continue
            before = self._expired.setdefault(digest, watermark)
            if watermark - before >= (1 if at_once else max(horizon // _EXPIRES, 1)):
                self._expired[digest] = watermark
                self.tracks[digest].expire(watermark - kept.windows.lateness)

    def shrink(self) -> None:
        """Forget at once what can be forgotten."""
        self._expire(at_once=True)

    def goes_on(self, post: Post) -> bool:
        """Whether a post takes time so far on that keys are forgotten once it is observed."""
        for digest, kept in self.kept.items():
            watermark, horizon = self.tracks[digest].watermark, kept.horizon
            if watermark is None or horizon is None:
                continue
            due = self._expired.get(digest, watermark) + max(horizon // _EXPIRES, 1)
            fed = (p for p in post.pieces if all(name in p.columns for name in kept.columns))
            if any(piece[kept.known].max(initial=due - 1) >= due for piece in fed):
                return True
        return False

    # -- what is told of it --------------------------------------------------------------------

    @property
    def keys(self) -> int:
        """Of all tracks."""
        return sum(tracks.keys for tracks in self.tracks.values())

    @property
    def size(self) -> int:
        """Bytes of all tracks, and of what learners have learnt."""
        return sum(tracks.bytes for tracks in self.tracks.values()) + self.learners.size

    @property
    def watermark(self) -> int | None:
        """The latest time at which something is known, of the track that is furthest behind."""
        found = [self.tracks[digest].watermark for digest in self._wanted]
        known = [each for each in found if each is not None]
        return min(known) if known else None

    # -- what is written -----------------------------------------------------------------------

    def dump(self, learners: Mapping[str, Any] | None = None) -> bytes:
        """All of it; :meth:`load` reads it.

        Args:
            learners: what :meth:`Learners.plain` gave; None for these as they are.
        """
        found = {
            "learning": self.learners.plain()() if learners is None else learners,
            "format": _FORMAT,
            "positions": self.positions,
            "wanted": sorted(self._wanted),
            "tracks": [
                {"kept": kept.to_json(), "state": _pieces(self.tracks[digest].dump())}
                for digest, kept in self.kept.items()
            ],
        }
        return msgspec.msgpack.encode(found)

    def load(self, data: bytes) -> None:
        """Be what was dumped.

        Raises:
            ValueError: it was dumped by another format.
        """
        found: dict[str, Any] = msgspec.msgpack.decode(data)
        if found.get("format") not in _FORMATS:
            allowed = " or ".join(map(str, _FORMATS))
            raise ValueError(f"a snapshot: found format {found.get('format')}, allowed: {allowed}.")
        self.positions = dict(found["positions"])
        for each in found["tracks"]:
            kept = Kept.from_json(each["kept"])
            self.kept[kept.digest] = kept
            state = each["state"] if isinstance(each["state"], bytes) else b"".join(each["state"])
            self.tracks[kept.digest] = Tracks.load(state, kept.windows, kept.schema)
        self._wanted = frozenset(found["wanted"])
        if "learning" in found:
            self.learners.fill(found["learning"])


def _pieces(state: bytes) -> list[memoryview]:
    whole = memoryview(state)
    return [whole[start : start + _PIECE] for start in range(0, len(whole), _PIECE)]


class Reading:
    """The windows of rows out of tracks in memory; a :class:`Lookup`.

    Args:
        filling: of the version whose rows they are.
        tracks: by digest.
        seconds: gets how long each takes.
    """

    def __init__(self, filling: Filling, tracks: Mapping[str, Tracks], seconds: Histogram) -> None:
        self._seconds = seconds
        self._tracks = tracks
        asked = dict.fromkeys(name for kept in filling.kept for name in kept.windows.asked)
        self._asked = [(name, filling.given.names.index(name)) for name in asked]
        self._parts = [
            (
                kept.digest,
                tracks[kept.digest],  # if no longer kept, it goes on being read as it was
                [list(asked).index(name) for name in kept.windows.asked],
                [np.dtype(filling.filled.field(name).numpy) for name in kept.windows.names],
            )
            for kept in filling.kept
        ]

    def __call__(
        self, arrays: Sequence[Array], then: Callable[[Sequence[Array] | Exception], object]
    ) -> None:
        begun = perf_counter()
        found = self._few(arrays) if len(arrays[0]) <= FEW else self._many(arrays)
        self._seconds.observe(perf_counter() - begun)
        then(found)

    def _few(self, arrays: Sequence[Array]) -> list[Array]:
        """Row by row: what many rows have to be made for takes longer than a few rows do."""
        values = [arrays[place].tolist() for _, place in self._asked]
        found: list[Array] = []
        for digest, held, places, dtypes in self._parts:
            tracks = self._tracks.get(digest, held)
            rows = zip(*[values[place] for place in places], strict=True)
            columns = zip(*map(tracks.ask, rows), strict=True)
            found += [np.array(c, dtype) for c, dtype in zip(columns, dtypes, strict=True)]
        return found

    def _many(self, arrays: Sequence[Array]) -> list[Array]:
        batch = Batch({name: arrays[place] for name, place in self._asked})
        found = [self._tracks.get(digest, held) for digest, held, _, _ in self._parts]
        return [array for tracks in found for array in tracks.read(batch).values()]
