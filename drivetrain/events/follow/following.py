"""Follows a topic in one process: messages to rows to a Delta table, each exactly once.

The offsets of a batch are in the commit of its rows, so wherever the process stops the table says
where to go on. While one batch is cleaned and committed the next is taken and decoded, and no
further one: what is in flight is bounded, and a table that is slow slows the reading.
"""

import fcntl
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TypeVar

from drivetrain.core.metric import Emit, Note, silent
from drivetrain.core.schema import Schema
from drivetrain.events.duckdb import Engine, Limits, engine
from drivetrain.events.follow.cleaning import Cleaning
from drivetrain.events.follow.dead import DeadLetters
from drivetrain.events.follow.pace import SAMPLED, STATUS, Pace
from drivetrain.events.follow.recall import Recall
from drivetrain.events.follow.telling import Batch, Telling
from drivetrain.events.lake.lake import Lake
from drivetrain.events.plan import Plan, compile_plan
from drivetrain.events.stream import Stream
from drivetrain.events.topic.bounded import misfit
from drivetrain.events.topic.messages import Messages, Reading, Rows
from drivetrain.events.topic.places import Places, number
from drivetrain.events.topic.topic import OffsetGoneError, Topic

PAUSES = (0.5, 10.0)
"""Seconds between two tries to reach a broker: the first, and the most."""

REFRESH = 5.0
"""Seconds between two looks for partitions that were added."""

OFTEN = 0.5
"""Seconds between two looks that others are given at least."""

T = TypeVar("T")


@dataclass(frozen=True)
class Taken:
    """A batch: its messages, and the rows that they became."""

    messages: Messages
    rows: Rows | None = None


def follow(
    stream: Stream,
    room: Path,
    *,
    limits: Limits | None = None,
    emit: Emit = silent,
    stop: Event | None = None,
    from_start: bool = False,
    to_end: bool = False,
    token: str | None = None,
) -> Pace:
    """Append what comes to a stream's topic to its table, until it is told to stop.

    Args:
        stream: what to do.
        room: a directory of its own: what others look at, and the state of windows.
        limits: of the engine that runs its steps.
        emit: hears of each batch, and of what it waits for.
        stop: once it is set, the batch that was begun is committed, and that was it.
        from_start: accept that the topic was made anew, or that messages have expired unread: read
            what there is from its beginning.
        to_end: stop behind the messages that there are at the beginning.
        token: what the servers that are told ask their clients for, if anything.

    Returns:
        What was done.

    Raises:
        OSError: there is no such topic, it may not be read, or the table cannot be written.
        ValueError: the declaration does not fit; a message does not, and there is no table for
            such; the topic is not the one that the table was written from; another runner writes.
    """
    room.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(only_one(room, stream.name))
        running = stack.enter_context(engine(limits or Limits()))
        pace = Pace(stream.name, stream.topic.topic, emit, room / STATUS)
        with pace.beginning():
            follower = Follower(stream, running, pace, emit, stop or Event(), token)
        stack.callback(follower.close)
        follower.run(from_start=from_start, to_end=to_end)
    return pace


@contextmanager
def only_one(room: Path, name: str) -> Generator[None]:
    """Hold the directory of a stream's runner.

    Raises:
        ValueError: another runner does.
    """
    with (room / "lock").open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"stream {name!r}: found another runner of it in {room}, allowed: one at a time."
            ) from None
        yield


class Follower:
    """One run of a stream.

    Args:
        stream: what to do.
        running: runs its steps; None where something else does.
        pace: counts.
        emit: hears notes.
        stop: once it is set, the run ends.
        token: for the servers that are told.
    """

    def __init__(
        self,
        stream: Stream,
        running: Engine | None,
        pace: Pace,
        emit: Emit,
        stop: Event,
        token: str | None = None,
    ) -> None:
        self.stream, self.pace, self._emit, self._stop = stream, pace, emit, stop
        self._running, self._token = running, token
        self._telling: Telling | None = None
        self.at: dict[int, int] = {}
        self._failed = False
        leaf = stream.topic
        flight = 2 * stream.bytes
        self._topic = Topic(leaf, group=stream.name, in_flight=flight, say=self._say)
        schema = self._patiently(stream.check)
        self._ready(schema)
        self._lake = Lake.open(str(stream.into), schema, partition_by=stream.partition_by)
        self._dead: DeadLetters | None = None
        self._places = Places(leaf.topic)
        self._identity = ""
        self._due: dict[int, int] | None = None
        self._lag: dict[int, int] = {}
        self._looked = self._shown = self._asked = 0.0

    def _ready(self, schema: Schema) -> None:
        """Make ready what runs the steps, and what tells servers."""
        self._steps(schema)
        if self._plan.stateful:
            self.pace.kept = lambda: self._plan.kept
        if self.stream.observe:
            assert self._running is not None
            self._telling = Telling(self.stream, self._running, self._token, self._warn)

    def _steps(self, schema: Schema) -> None:
        assert self._running is not None
        events, limits = self.stream.events, Limits()
        self._plan: Plan = compile_plan(events, schema.names, self._running, limits, split=False)
        self._reading = Reading(self.stream.topic, self._plan.reads)
        self._cleaning = Cleaning(self._plan, aside=self.stream.dead is not None)
        room = self.pace.path.parent
        self._recall = Recall(self.stream, self._plan, self._cleaning, room, self._note)

    def close(self) -> None:
        """Let go of the topic, and of the servers that are told."""
        self._topic.close()
        if self._telling is not None:
            self._telling.close()

    def run(self, *, from_start: bool, to_end: bool) -> None:
        """Follow; see :func:`follow`."""
        try:
            self._patiently(lambda: self._begin(from_start))
            if self.stream.dead is not None:
                path, name = str(self.stream.dead), self.stream.name
                self._dead = DeadLetters(path, name, self._places, self.at)
            self._due = self._ends() if to_end else None
            self._look(now=True)
            self._loop()
        except InterruptedError:  # asked to end before there was anything to do
            return
        except Exception as error:
            self.pace.problem = str(error)
            raise
        finally:
            self.pace.look(self.at, {}, ended=True)

    def _loop(self) -> None:
        self._topic.assign(self.at)
        self._remember()
        if not self._there(self._due, {}):
            self._batches()
            self._recall.keep(self._places, self.at, now=True)
            self._topic.tell(self.at)
        whole = self._due is None or self._telling is None
        while not whole and not self._stop.is_set():
            assert self._telling is not None
            whole = self._telling.tell(self._places, self.at)

    def _batches(self) -> None:
        """Take and commit batches until there is reason to end."""
        with ThreadPoolExecutor(1, "taking") as pool, self._failing():
            ahead = pool.submit(self._take)
            while True:
                taken = self._result(ahead.result)
                behind = {**self.at, **taken.messages.behind}
                last = self._stop.is_set() or self._there(self._due, taken.messages.ends, behind)
                if not last:
                    ahead = pool.submit(self._take)
                if taken.rows is not None:
                    self._commit(taken.messages, taken.rows)
                elif self._telling is not None:
                    self._telling.tell(self._places, self.at)
                self._look()
                if last:
                    return

    @contextmanager
    def _failing(self) -> Generator[None]:
        """An error of what runs within also ends the batch that is being gathered meanwhile."""
        try:
            yield
        except BaseException:
            self._failed = True
            raise

    def _remember(self) -> bytes:
        """Bring the steps to the state that they had where the table stands."""
        return self._patiently(lambda: self._recall.restore(self._places, self.at))

    # -- where it goes on --------------------------------------------------------------------------

    def _begin(self, from_start: bool) -> None:
        """Find out where the table stands, and whether the topic is still the one it was."""
        partitions = self._topic.partitions()
        kept = self._lake.positions(self.stream.name)
        places = Places.of(self._topic.name, kept)
        at = places.positions(kept)
        self._identity = self._topic.identity()
        bounds = {n: self._topic.bounds(n) for n in partitions}
        anew = self._anew(kept, places, at, bounds)
        expired = {n: bounds[n][0] for n in at if n in bounds and at[n] < bounds[n][0]}
        if anew is not None:
            if not from_start:
                raise ValueError(f"{anew}; --from-start reads the new one from its beginning.")
            places, at, expired = places.next(), {}, {}
            self._note(f"topic {self._topic.name!r} was made anew: read from its beginning")
        if expired and not from_start:
            partition = min(expired)
            error = self._topic.absent(partition, at[partition], *bounds[partition])
            raise ValueError(f"{error} --from-start goes on without what is gone.")
        at |= expired
        missing = [n for n in partitions if n not in at]
        self._places, self.at = places, at | self._topic.starts(missing)
        self._looked = time.monotonic()

    def _anew(
        self,
        kept: Mapping[str, int],
        places: Places,
        at: Mapping[int, int],
        bounds: Mapping[int, tuple[int, int]],
    ) -> str | None:
        """What shows that the topic is not the one that the table was written from, if any does."""
        head = f"topic {self._topic.name!r}"
        known = kept.get(places.identity)
        if known is not None and self._identity and known != number(self._identity):
            return self._other(self._identity)
        for partition, position in sorted(at.items()):
            if partition not in bounds:
                return f"{head}: found no partition {partition}, allowed: {len(at)}, as it had"
            low, high = bounds[partition]
            if position > high:
                text = str(self._topic.absent(partition, position, low, high))
                return text.rstrip(".")
        return None

    def _same(self) -> None:
        """Hold that the topic is still the one that the table is written from.

        Raises:
            ValueError: it was made anew.
        """
        identity = self._topic.identity() if self._identity else ""
        if identity and identity != self._identity:
            raise ValueError(f"{self._other(identity)}; --from-start reads the new one.")

    def _other(self, identity: str) -> str:
        found = f"found it made anew (its identity is now {identity})"
        allowed = "the one that the table was written from"
        return f"topic {self._topic.name!r}: {found}, allowed: {allowed}"

    def _ends(self) -> dict[int, int]:
        return {n: self._topic.bounds(n)[1] for n in self.at}

    def _there(
        self,
        ends: Mapping[int, int] | None,
        seen: Mapping[int, int],
        behind: Mapping[int, int] | None = None,
    ) -> bool:
        """Whether all that is to be read was: by positions, or by the ends that were seen."""
        if ends is None:
            return False
        at = self.at if behind is None else behind
        return all(max(at.get(n, 0), seen.get(n, -1)) >= end for n, end in ends.items())

    # -- a batch -----------------------------------------------------------------------------------

    def _take(self) -> Taken:
        """The next messages and their rows; done ahead, in a thread of its own."""
        self._look_for_partitions()
        self._tell_brokers()
        stream = self.stream
        taken = self._topic.take(stream.messages, stream.bytes, stream.seconds, ended=self._ended)
        return Taken(taken, self._read(taken) if len(taken) else None)

    def _read(self, taken: Messages) -> Rows:
        """The rows of messages, once a registry answers that knows their schemas."""
        return self._patiently(lambda: self._reading(taken), shown=False)

    def _tell_brokers(self) -> None:
        """Show them the positions, and see how far behind these are.

        Here, since the client makes whoever asks it wait while another thread takes messages.
        """
        at, now = self.at, time.monotonic()
        if now - self._asked >= OFTEN:
            self._asked = now
            self._topic.tell(at)
            self._lag = self._topic.lag(at)

    def _ended(self, behind: Mapping[int, int]) -> bool:
        seen = {partition: offset + 1 for partition, offset in behind.items()}
        asked = self._stop.is_set() or self._failed
        return asked or self._there(self._due, self._topic.ends, self.at | seen)

    def _look_for_partitions(self) -> None:
        now = time.monotonic()
        if now - self._looked < REFRESH:
            return
        self._looked = now
        try:
            self._same()
            added = set(self._topic.partitions()) - set(self.at) - self._topic.added
            if added:
                starts = self._topic.starts(sorted(added))
                self._topic.add(starts)
                self._note(f"topic {self._topic.name!r} has got partition {sorted(added)} more")
        except ConnectionError:
            return  # taking messages tells that the broker is gone

    def _result(self, result: Callable[[], Taken]) -> Taken:
        try:
            return result()
        except OffsetGoneError as gone:
            low, high = self._topic.bounds(gone.partition)
            error = self._topic.absent(gone.partition, gone.offset, low, high)
            raise ValueError(f"{error} --from-start goes on with what there is.") from None

    def _commit(self, messages: Messages, rows: Rows) -> None:
        """Lay a batch down: what does not fit first, then the rows, with the offsets of both."""
        found = self._cleaning(rows, self._remember)
        buried = 0
        if found.refused:
            if self._dead is None:
                first = found.refused[0]
                raise misfit(self.stream.topic, messages.raw[first.message], first.reason)
            buried = self._dead.bury(messages, found.refused, messages.behind)
        kept = self._places.kept(messages.behind, self._identity)
        behind = {**self.at, **messages.behind}
        self._recall.ready(self._places, behind)
        version = self._lake.append(found.table, self.stream.name, kept)
        begun = {partition: self.at.get(partition, 0) for partition in messages.behind}
        self.at = behind
        self._recall.keep(self._places, self.at)
        step, count = max(len(messages) // SAMPLED, 1), len(found.table)
        self.pace.batch(len(messages), count, buried, version, messages.times(step))
        if self._telling is not None:
            partitions, offsets = messages.partitions[found.origin], messages.offsets[found.origin]
            batch = Batch(found.table, partitions, offsets, begun)
            self._telling.tell(self._places, self.at, batch)

    # -- what it says ------------------------------------------------------------------------------

    def _look(self, *, now: bool = False) -> None:
        at = time.monotonic()
        if now or at - self._shown >= OFTEN:
            self._shown = at
            self.pace.look(self.at, self._lag, ended=False)

    def _say(self, text: str) -> None:
        self.pace.problem = text if "waiting" in text else None
        self._note(text, warning=self.pace.problem is not None)

    def _warn(self, text: str) -> None:
        self._note(text, warning=True)

    def _note(self, text: str, *, warning: bool = False) -> None:
        self._emit(Note(stage="stream", text=text, warning=warning))

    def _patiently(self, ask: Callable[[], T], *, shown: bool = True) -> T:
        """What ``ask`` gives once a broker, or a registry of schemas, answers.

        Args:
            ask: raises a ``ConnectionError`` as long as it does not.
            shown: whether others are let see at once; for the thread alone that lets them.
        """
        pause, most = PAUSES
        waited = False
        while True:
            try:
                found = ask()
            except ConnectionError as error:
                waited = True
                self._say(f"{error}: waiting for it")
                if shown:
                    self.pace.look(self.at, {}, ended=False)
            else:
                if waited or (shown and self.pace.problem is not None):
                    self._say("what was waited for answers again")
                return found
            if self._stop.wait(pause) or self._failed:
                raise InterruptedError("asked to end before there was an answer")
            pause = min(2 * pause, most)


def positions_of(stream: Stream) -> Sequence[tuple[int, int]]:
    """Where a stream's table stands: partitions and offsets."""
    kept = Lake.open(str(stream.into), None).positions(stream.name)
    topic = stream.topic.topic
    return sorted(Places.of(topic, kept).positions(kept).items())
