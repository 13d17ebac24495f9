"""Observations in the memory of this process, safe in a directory."""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from time import perf_counter
from typing import Any

from drivetrain.core.schema import Schema
from drivetrain.serve.execution.filling import AwayError, Fed, Filling, Kept, Lookup, observed_by
from drivetrain.serve.execution.live import NONE, Learning, Live
from drivetrain.serve.state.awake import Learnt
from drivetrain.serve.state.journal import Journal
from drivetrain.serve.state.kept import Outcome, State, Told
from drivetrain.serve.state.memory import NOBODY, Counts, Memory, Reading
from drivetrain.serve.state.posts import Limits, Post, Reader
from drivetrain.serve.state.queue import Queue, Waits
from drivetrain.serve.state.replay import entries_of, replay
from drivetrain.serve.telemetry.metrics import Metrics
from drivetrain.serve.telemetry.metrics import Reading as Gauge

log = logging.getLogger("drivetrain.serve")

_GROUP_BYTES = 4 << 20
"""Of the posts that share a flush."""
_BEYOND = 8
"""By at most this part of its bound memory grows beyond it by what lets others expire."""
_LOG_BYTES = 64 << 20
"""Of the log until a snapshot takes its place; a snapshot that is longer waits for as much."""


_LOG_EVENTS = 50_000
"""That learners were told of until a snapshot takes the place of the log: each is learnt anew at a
start, which takes some tenths of a millisecond."""
_SLICE_SECONDS = 0.002
"""Of learning, until others have a turn."""


@dataclass(frozen=True)
class _Change:
    """What is fed from now on.

    Attributes:
        kept: tracks.
        learners: digests.
    """

    kept: Sequence[Kept]
    learners: Sequence[str]


class Embedded(State):
    """Keeps the observations of an alias in this process.

    What is posted is first in the log and then in memory, in the same order, so that memory is at
    any time what the log gives. All that arrives while the disk flushes shares the next flush.

    Args:
        name: of the alias.
        room: the directory of its log and its snapshots; None keeps memory only.
        most_bytes: that the tracks may take in memory.
        metrics: where it is counted.
        runs: of one version at once.

    Raises:
        OSError: the directory cannot be read or written.
        ValueError: another process uses it, or a file in it is damaged.
    """

    def __init__(
        self, name: str, room: Path | None, most_bytes: int, metrics: Metrics, runs: int = 1
    ) -> None:
        super().__init__(name, metrics)
        self.memory = Memory(runs)
        self._most_bytes = most_bytes
        self._metrics = metrics
        self._changed: _Change | None = None
        self._writing: _Change | None = None
        self._events = 0
        self._slice_ends = 0.0
        self._waiting = Queue(_GROUP_BYTES)
        self._task: asyncio.Task[None] | None = None
        self._snapshot_bytes = 0
        self._ended = False
        self._keeping: asyncio.Future[None] | None = None
        self._journal = None if room is None else Journal(room)
        self._pool = ThreadPoolExecutor(2, "drivetrain-state") if self._journal else None
        if self._journal is not None:
            try:
                self._recover(self._journal)
            except BaseException:
                self._journal.close()
                raise
        memory = self.memory
        for family, read in (
            (metrics.window_keys, lambda: float(memory.keys)),
            (metrics.window_bytes, lambda: float(memory.size)),
            (metrics.window_key_bytes, lambda: memory.size / max(memory.keys, 1)),
            (metrics.watermark_lag, lambda: _lag(memory.watermark)),
        ):
            family.set(Gauge(read), name)

    def _recover(self, journal: Journal) -> None:
        """Be what the snapshot and the log give."""
        snapshot = journal.snapshot()
        if snapshot is not None:
            self._snapshot_bytes = len(snapshot)
            self.memory.load(snapshot)
        replay(self.memory, journal.frames())
        journal.begin()

    # -- which tracks and learners -------------------------------------------------------------

    def keep(
        self, kept: Sequence[Kept], limits: Limits, learning: Mapping[str, Learning] = NONE
    ) -> None:
        fed: list[Fed] = [*kept, *learning.values()]
        columns = observed_by(fed)
        for each in self.memory.fed_with(kept).values():
            if each in fed:
                continue
            try:
                columns = observed_by([*fed, each])
                fed.append(each)
            except ValueError as error:
                log.warning("%s: observations of before are fed no more: %s", self.name, error)
        self.reader = Reader(columns, fed, limits)
        for each in self.memory.make(kept):
            self._metrics.windows_begun.of(self.name).value += 1
            log.warning("%s: the windows over %s begin empty", self.name, each)
        change, learners = _Change(kept, tuple(learning)), self.memory.learners
        learners.make(change.learners)
        if learning:
            self._metrics.show_learner(self.name, learners.figure)
        same = self.memory.wants(kept) and learners.wants(change.learners)
        if same and self._writing is None:
            self._changed = None
        elif self._journal is None and not (learning or learners.held):
            self.memory.keep(kept)
        else:
            self._changed = change
            self._wake()

    def lookup(self, filling: Filling) -> Lookup:
        return Reading(filling, self.memory.tracks, self.lookup_seconds)

    def prepare(self, learning: Learning) -> str:
        return self.memory.learners.prepare(learning)

    def live(self, digest: str, learning: Learning, given: Schema) -> Live:
        awake = self.memory.learners.held[digest].awake
        assert awake is not None, "it was kept, and so made"
        return Learnt(awake, given.names.index(learning.user.name))

    # -- what is observed ----------------------------------------------------------------------

    def observe(self, post: Post, told: Told) -> None:
        why = self._full(post)
        if why:
            self.count(None, post.rows)
            told(AwayError(why))
        elif self._journal is None and not self.memory.learners.held:
            told(self._outcome(post))
        else:
            self._waiting.add(post, told)
            self._wake()

    def _full(self, post: Post) -> str:
        """Why a post cannot be taken for now; empty if it can."""
        memory = self.memory
        if memory.size > self._most_bytes:
            memory.shrink()
        over = memory.size - self._most_bytes
        # What takes time on is taken nevertheless, a little beyond: only so does anything expire.
        if over > 0 and (over > self._most_bytes // _BEYOND or not memory.goes_on(post)):
            return (
                f"observations of {self.name!r} take {memory.size} bytes, allowed: "
                f"{self._most_bytes}, as [serve] state_bytes says; until later ones let these "
                "expire nothing is taken: raise it."
            )
        if not self._waiting.fits(post):
            return f"{self._waiting.bytes} bytes of observations wait for the disk."
        return ""

    def _outcome(self, post: Post, learnt: Counts = NOBODY) -> Outcome | Exception:
        """Add a post to memory, what was learnt of it too, and say what became of it."""
        durable = self._journal is not None
        if self.memory.knows(post):
            outcome = Outcome(ignored=post.rows, durable=durable)
            self.count(outcome)
            return outcome
        found = self._add(post)
        self.memory.learners.show()
        if isinstance(found, Exception):
            self.count(None, post.rows)
            return found
        outcome = Outcome(
            found.observed + learnt.observed,
            found.late + learnt.late,
            found.missing + learnt.missing,
            durable=durable,
        )
        self.count(outcome)
        return outcome

    async def _learn(self, post: Post) -> Counts:
        """Tell learners of a post, which nobody sees yet; others have their turns meanwhile."""
        found = Counts()
        if self.memory.knows(post):
            return found
        for kept, late, missing in self.memory.learners.tell(post.pieces):
            found.observed += kept
            found.late += late
            found.missing += missing
            self._events += 1
            if perf_counter() > self._slice_ends:
                await asyncio.sleep(0)
                self._slice_ends = perf_counter() + _SLICE_SECONDS
        return found

    def _add(self, post: Post) -> Counts | Exception:
        try:
            return self.memory.observe(post)
        except Exception as error:  # the same now and whenever the log is read: it stays left out
            log.exception("%s: an observation was left out", self.name)
            return error

    # -- the log -------------------------------------------------------------------------------

    def _wake(self) -> None:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._follow())

    async def _follow(self) -> None:
        """Write what waits, until nothing does."""
        try:
            while self._waiting or self._changed is not None:
                if not await self._commit(self._waiting.take()) and not self._waiting:
                    break  # the disk takes nothing; whoever comes next tries again
                await self._shorten()
        except Exception:
            log.exception("%s: observations could not be kept", self.name)
        finally:
            self._task = None

    async def _commit(self, group: list[Waits]) -> bool:
        """Write posts, add them to memory and say so; whether they could be written."""
        changed, new = self._changed, list[Post]()
        positions = dict[str, int]()
        for post, _ in group:
            last = -1 if post.source is None else positions.get(post.source, -1)
            if self.memory.knows(post) or (post.source is not None and post.offset <= last):
                continue
            if post.source is not None:
                positions[post.source] = post.offset
            new.append(post)
        learners, states, entries = self.memory.learners, dict[str, bytes](), None
        self._writing = changed
        try:
            if changed is not None and (changed.learners or learners.wanted):
                entries = learners.entries(changed.learners)
                leaving = learners.leaving(changed.learners)
                states = {digest: await self._away(dump) for digest, dump in leaving.items()}
            kept = None if changed is None else changed.kept
            content = b"" if self._journal is None else entries_of(kept, entries, new)
            if content and self._journal is not None:
                await self._away(self._journal.append, content)
        except Exception as error:  # whatever it is, who waits is answered
            self._refuse(group, error)
            return False
        finally:
            self._writing = None
        if changed is not None:
            self.memory.keep(changed.kept)
            if entries is not None:
                learners.keep(entries, states)
            if self._changed is changed:
                self._changed = None
            elif self._changed is not None:
                self.memory.make(self._changed.kept)  # they went with what is older, as in a replay
        for post, told in group:
            told(self._outcome(post, await self._learn(post)))
        return True

    def _refuse(self, group: list[Waits], error: Exception) -> None:
        log.error("%s: observations could not be written: %s", self.name, error)
        why = f"observations cannot be written: {getattr(error, 'strerror', None) or error}."
        for post, told in group:
            if self.memory.knows(post):
                told(self._outcome(post))
            else:
                self.count(None, post.rows)
                told(AwayError(why))

    async def _shorten(self) -> None:
        """Put a snapshot in the place of a log that has grown long."""
        journal = self._journal
        if journal is None:
            return
        long = journal.size >= max(_LOG_BYTES, self._snapshot_bytes)
        if not long and self._events < _LOG_EVENTS:
            return
        if self._keeping is not None and not self._keeping.done():
            return
        try:
            number = await self._away(journal.turn)
        except OSError as error:
            log.error("%s: no new log could be begun: %s", self.name, error)
            return
        learners = await self._away(self.memory.learners.plain())  # nobody learns meanwhile
        self._events = 0
        self._keeping = self._away(self._compact, journal, number, learners)

    def _compact(self, journal: Journal, number: int, learners: Mapping[str, Any]) -> None:
        """Make the snapshot of all before a log, on a thread, out of what lies there: a dump of
        the tracks that are read would hold their readers up. Learners are given as they were then:
        to learn all anew would take long."""
        try:
            memory = Memory()
            content = journal.snapshot()
            if content is not None:
                memory.load(content)
            frames = takewhile(lambda _: not self._ended, journal.closed(number))
            replay(memory, frames, learners=False)
            if not self._ended:
                content = memory.dump(learners)
                journal.keep(number, content)
                self._snapshot_bytes = len(content)
        except Exception:  # what lies there is as good, and longer
            log.exception("%s: no snapshot could be written", self.name)
            self._snapshot_bytes = 2 * journal.size  # not again after every commit

    def _away(self, work: Any, *given: Any) -> "asyncio.Future[Any]":
        return asyncio.get_running_loop().run_in_executor(self._pool, work, *given)

    # -- what is told of it --------------------------------------------------------------------

    async def tell(self) -> dict[str, Any]:
        memory = self.memory
        assert self.reader is not None
        return {
            "columns": self.reader.schema.names,
            "positions": memory.positions,
            "keys": memory.keys,
            "bytes": memory.size,
            "watermark": memory.watermark,
            "learner": memory.learners.figures,
            "durable": self._journal is not None,
        }

    async def close(self) -> None:
        self._ended = True
        if self._task is not None:
            self._task.cancel()
        if self._pool is not None:  # its last write ends first
            await asyncio.to_thread(self._pool.shutdown)
        if self._journal is not None:
            self._journal.close()


def _lag(watermark: int | None) -> float:
    """How many seconds ago that was."""
    return 0.0 if watermark is None else time.time() - watermark / 1e6
