"""Observations in Redis, for several processes and hosts that serve the same alias."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from drivetrain.core.batch import Array, Batch
from drivetrain.serve.execution.filling import AwayError, Filling, Kept, Lookup, observed_by
from drivetrain.serve.execution.live import NONE, Learning
from drivetrain.serve.state.kept import Outcome, State, Told
from drivetrain.serve.state.posts import Limits, Post, Reader
from drivetrain.serve.state.queue import Queue
from drivetrain.serve.state.redis import VERSION, Place
from drivetrain.serve.state.scratch import Scratch
from drivetrain.serve.telemetry.family import Counter, Histogram
from drivetrain.serve.telemetry.metrics import Metrics

log = logging.getLogger("drivetrain.serve")

_TRIES = 100
"""How often a write is tried anew when another process has written one of its keys meanwhile."""
_GROUP_BYTES = 1 << 20
"""Of the posts that are written at once."""
_SLACK = 86_400_000
"""Milliseconds that a key stays beyond its horizon: whoever feeds may stand still for so long."""


@dataclass
class _Attempt:
    """What one write of some posts is made of."""

    sources: dict[str, tuple[int | None, int]] = field(
        default_factory=dict[str, tuple[int | None, int]]
    )
    watermarks: dict[str, int] = field(default_factory=dict[str, int])
    keys: dict[str, tuple[bytes, bytes, int]] = field(
        default_factory=dict[str, tuple[bytes, bytes, int]]
    )
    outcomes: list[Outcome | Exception] = field(default_factory=list[Outcome | Exception])


class Shared(State):
    """Keeps the observations of an alias in Redis, each key of each track as one value.

    A write is an optimistic transaction over all that it has read, so that what two servers
    observe of one key at a time is both there. Who loses reads again and tries anew.

    Args:
        name: of the alias.
        url: of the server.
        empty: whether rows get empty windows while Redis is away; otherwise they are refused.
        metrics: where it is counted.

    Raises:
        ImportError: the client is not installed.
        ValueError: the address is none.
    """

    def __init__(self, name: str, url: str, empty: bool, metrics: Metrics) -> None:
        super().__init__(name, metrics)
        self._place = Place(url, name)
        self._rows_empty = metrics.windows_empty.of(name) if empty else None
        self._kept: tuple[Kept, ...] = ()
        self._before: tuple[Kept, ...] = ()
        self._scratch: dict[str, Scratch] = {}
        self._begun = metrics.windows_begun.of(name)
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting = Queue(_GROUP_BYTES)
        self._task: asyncio.Task[None] | None = None

    def keep(
        self, kept: Sequence[Kept], limits: Limits, learning: Mapping[str, Learning] = NONE
    ) -> None:
        if {each.digest for each in kept} == {each.digest for each in self._kept}:
            return
        self._before, self._kept = self._kept, tuple(kept)
        fed = list(self._kept)
        columns = observed_by(fed)
        for each in self._before:
            if each in fed:
                continue
            try:
                columns = observed_by([*fed, each])
                fed.append(each)
            except ValueError as error:
                log.warning("%s: observations of before are fed no more: %s", self.name, error)
        self._scratch = {each.digest: Scratch(each) for each in fed}
        self._do(self._look(tuple(kept)))
        self.reader = Reader(columns, fed, limits)

    async def _look(self, kept: Sequence[Kept]) -> None:
        """Say which tracks nobody has told anything."""
        with suppress(AwayError):
            _, watermarks = await self._place.heads()
            for each in kept:
                if each.digest not in watermarks:
                    self._begun.value += 1
                    log.warning("%s: the windows over %s begin empty", self.name, each)

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the loop itself keeps no more than a weak reference
        task.add_done_callback(self._tasks.discard)

    def lookup(self, filling: Filling) -> Lookup:
        return Asking(filling, self._place, self.lookup_seconds, self._rows_empty)

    # -- what is observed ----------------------------------------------------------------------

    def observe(self, post: Post, told: Told) -> None:
        if not self._waiting.fits(post):
            self.count(None, post.rows)
            told(AwayError(f"{self._waiting.bytes} bytes of observations wait for Redis."))
            return
        self._waiting.add(post, told)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._follow())

    async def _follow(self) -> None:
        """Write what waits, until nothing does."""
        try:
            while self._waiting:
                group = self._waiting.take()
                try:
                    outcomes = await self._commit([post for post, _ in group])
                except Exception as error:
                    if not isinstance(error, AwayError):
                        log.exception("%s: observations could not be kept", self.name)
                    outcomes = [error] * len(group)
                for (post, told), outcome in zip(group, outcomes, strict=True):
                    failed = isinstance(outcome, Exception)
                    self.count(None if failed else outcome, post.rows)
                    told(outcome)
        finally:
            self._task = None

    async def _commit(self, posts: Sequence[Post]) -> list[Outcome | Exception]:
        """Write posts, all or none; what became of each.

        Raises:
            AwayError: Redis does not answer, or refuses, or others write the same keys all along.
        """
        scratch = tuple(self._scratch.values())
        wanted = [each.fed_by(posts) for each in scratch]
        names = self._names(scratch, wanted)
        for _ in range(_TRIES):
            positions, watermarks = await self._place.heads()
            found = await self._place.read(names)
            tried = _tried(posts, scratch, wanted, names, found, positions, watermarks)
            if not (tried.keys or tried.sources or tried.watermarks):
                return tried.outcomes
            if await self._place.write(tried.sources, tried.watermarks, tried.keys):
                return tried.outcomes
        raise AwayError(f"others wrote the same keys {_TRIES} times meanwhile.")

    def _names(self, scratch: Sequence[Scratch], wanted: Sequence[Array]) -> list[str]:
        pairs = zip(scratch, wanted, strict=True)
        return [name for each, hashes in pairs for name in self._place.keys(each.kept, hashes)]

    # -- what is told of it --------------------------------------------------------------------

    async def tell(self) -> dict[str, Any]:
        positions, watermarks = await self._place.heads()
        marks = [watermarks[each.digest] for each in self._kept if each.digest in watermarks]
        assert self.reader is not None
        return {
            "columns": self.reader.schema.names,
            "positions": positions,
            "watermark": min(marks, default=None),
        }

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
        await self._place.close()


def _tried(
    posts: Sequence[Post],
    scratch: Sequence[Scratch],
    wanted: Sequence[Array],
    names: Sequence[str],
    found: Sequence[bytes | None],
    positions: Mapping[str, int],
    watermarks: Mapping[str, int],
) -> _Attempt:
    """Posts added to what was read, as it is to be written."""
    attempt = _Attempt()
    at = 0
    blobs: list[Sequence[bytes | None]] = []
    try:
        for each, hashes in zip(scratch, wanted, strict=True):
            mine = found[at : at + len(hashes)]
            at += len(hashes)
            blobs.append(mine)
            if each.kept.digest in watermarks:
                each.mark(watermarks[each.kept.digest])
            each.load(hashes, _states(mine))
        now = dict(positions)
        for post in posts:
            attempt.outcomes.append(_added(post, scratch, now, attempt))
        at = 0
        for each, hashes, mine in zip(scratch, wanted, blobs, strict=True):
            horizon = each.kept.horizon
            stays = 0 if horizon is None else horizon // 1000 + 1 + _SLACK
            for before, state in zip(mine, each.states(hashes), strict=True):
                version, held = (before[:VERSION], before[VERSION:]) if before else (b"", b"")
                if state != held:  # of what is late or missing nothing is written
                    after = (int.from_bytes(version, "little") + 1).to_bytes(VERSION, "little")
                    attempt.keys[names[at]] = (version, after + state, stays)
                at += 1
            if each.tracks.watermark not in (None, watermarks.get(each.kept.digest)):
                attempt.watermarks[each.kept.digest] = each.tracks.watermark
    finally:
        for each in scratch:
            each.renew()
    if not any(isinstance(o, Outcome) and not o.ignored for o in attempt.outcomes):
        return _Attempt(outcomes=attempt.outcomes)
    attempt.sources = {
        source: (positions.get(source), after)
        for source, after in now.items()
        if positions.get(source) != after
    }
    return attempt


def _added(
    post: Post, scratch: Sequence[Scratch], positions: dict[str, int], attempt: _Attempt
) -> Outcome | Exception:
    """Add one post to the scratch tracks."""
    if post.source is not None:
        if post.offset <= positions.get(post.source, -1):
            return Outcome(ignored=post.rows)
        positions[post.source] = post.offset
    observed = late = missing = 0
    for piece in post.pieces:
        for each in scratch:
            if each.takes(piece):
                counts = each.tracks.observe(piece)
                observed += counts.kept
                late += counts.late
                missing += counts.missing
    return Outcome(observed, late, missing)


class Asking:
    """The windows of rows out of Redis; a :class:`Lookup`.

    Args:
        filling: of the version whose rows they are.
        place: where they lie.
        seconds: gets how long each takes.
        empty: counts the rows whose windows are left empty while Redis is away; None has these
            rows refused.
    """

    def __init__(
        self, filling: Filling, place: Place, seconds: Histogram, empty: Counter | None
    ) -> None:
        self._place = place
        self._seconds = seconds
        self._empty = empty
        self._away = False
        places = {name: number for number, name in enumerate(filling.given.names)}
        self._parts = [
            (Scratch(kept), [(name, places[name]) for name in kept.windows.asked])
            for kept in filling.kept
        ]
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(
        self, arrays: Sequence[Array], then: Callable[[Sequence[Array] | Exception], object]
    ) -> None:
        task = asyncio.get_running_loop().create_task(self._ask(arrays, then))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(
        self, arrays: Sequence[Array], then: Callable[[Sequence[Array] | Exception], object]
    ) -> None:
        begun = perf_counter()
        try:
            found: Sequence[Array] | Exception = await self._found(arrays)
        except Exception as error:
            found = error
        self._seconds.observe(perf_counter() - begun)
        then(found)

    async def _found(self, arrays: Sequence[Array]) -> list[Array]:
        batches = [
            Batch({name: arrays[place] for name, place in asked}) for _, asked in self._parts
        ]
        parts = [part for part, _ in self._parts]
        wanted = [part.hashes_of([b]) for part, b in zip(parts, batches, strict=True)]
        pairs = zip(parts, wanted, strict=True)
        names = [name for part, hashes in pairs for name in self._place.keys(part.kept, hashes)]
        try:
            blobs = await self._place.read(names)
            self._away = False
        except AwayError as error:
            if self._empty is None:
                raise
            if not self._away:
                log.error("rows get empty windows: %s", error)
            self._away = True
            self._empty.value += len(batches[0])
            blobs = [None] * len(names)
        given: list[Array] = []
        at = 0
        for part, batch, hashes in zip(parts, batches, wanted, strict=True):
            mine = _states(blobs[at : at + len(hashes)])
            at += len(hashes)
            try:
                part.load(hashes, mine)
                given += part.tracks.read(batch).values()
            finally:
                part.drop()
        return given


def _states(found: Sequence[bytes | None]) -> list[bytes | None]:
    """What lies at keys, without the versions before it."""
    return [None if each is None else each[VERSION:] for each in found]
