"""The learners of one alias: those that learn of what is observed, and those that may come back."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from drivetrain.core.batch import Batch
from drivetrain.core.describe import canonical
from drivetrain.core.schema import Schema
from drivetrain.serve.execution.live import Learning
from drivetrain.serve.state.awake import Awake
from drivetrain.serve.state.ring import KEPT, Event, Ring

log = logging.getLogger("drivetrain.serve")

_PIECE = 1 << 30
"""Bytes of a learner's state at a time: MessagePack takes less than 4 GiB."""
_TAKEN_OVER = KEPT - KEPT // 4
"""Events that a new version begins with, at most; so many fewer than are kept that none of them
is gone before the log says so."""

Span = list[int | None]
"""Numbers of events: the first, and that behind the last, which None leaves open."""
Entry = Sequence[Any]
"""Of the log, for a learner that learns from now on: digest, schema, and where others than before
are due to it, the number before which it was told and the spans from there on."""
Counts = tuple[int, int, int]


@dataclass
class Held:
    """A learner by its name.

    Attributes:
        schema: the columns that it observes.
        at: the number before which it was told of all that it is to know.
        due: the spans that it was not told of. The last one of a learner that learns is open.
        state: what it was at ``at``; empty: as training left it. Not kept of one that learns.
        awake: itself; None where no version that is served has it.
    """

    schema: Schema
    at: int = 0
    due: list[Span] = field(default_factory=list[Span])
    state: bytes = b""
    awake: Awake | None = None

    @property
    def learns(self) -> bool:
        """Whether it is told of what is observed."""
        return bool(self.due) and self.due[-1][1] is None

    def sleep(self, end: int) -> None:
        """Be told of nothing from the event ``end`` on."""
        if self.learns:
            start = self.due.pop()[0]
            if start != end:
                self.due.append([start, end])

    def plain(self) -> dict[str, Any]:
        """Plain data, for MessagePack. On any thread, while it is told of nothing."""
        state = self.state
        if self.learns and self.awake is not None:
            state = self.awake.learner.dump()
        whole = memoryview(state)
        pieces = [whole[n : n + _PIECE] for n in range(0, len(whole), _PIECE)]
        schema = self.schema.to_json()
        return {"schema": schema, "at": self.at, "due": [*self.due], "state": pieces}

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> "Held":
        """What :meth:`plain` gave."""
        schema = Schema.from_json(data["schema"])
        return cls(schema, data["at"], data["due"], b"".join(data["state"]))


@dataclass(frozen=True)
class _Ready:
    """A learner that was made, and what it was told until then.

    Attributes:
        awake: itself.
        schema: the columns that it observes.
        mark: the number before which it had been told before.
        due: what was due to it from there on.
        at: the number before which it was told now.
    """

    awake: Awake
    schema: Schema
    mark: int
    due: list[Span]
    at: int


class Learners:
    """Learners by their digests, and the latest events.

    A learner is a function of its version's graph and of the events that it was told, in their
    order. Which events these are stands in the log and in snapshots, so that it is the same after
    a restart; what was not told yet it is told once its graph is there. A new version takes over
    the latest events; those of them that its training had change nothing. One that comes back is
    told what it has missed, as far as that is still kept.

    Every method is called on the loop's thread but :meth:`prepare` and what says so.

    Attributes:
        held: those that learn, and those that learnt before these, for a way back.
        wanted: the digests of those that learn.

    Args:
        runs: of one version at once.
    """

    def __init__(self, runs: int = 1) -> None:
        self._runs = runs
        self.held: dict[str, Held] = {}
        self.wanted: tuple[str, ...] = ()
        self._rings: dict[str, Ring] = {}
        self._ready: dict[str, _Ready] = {}
        self._made: tuple[str, ...] = ()
        self._coming = set[str]()

    def _ring(self, schema: Schema) -> Ring:
        return self._rings.get(canonical(schema.to_json())) or Ring()

    # -- which learn ---------------------------------------------------------------------------

    def prepare(self, learning: Learning) -> str:
        """Make the learner of a version that is being loaded, and tell it what is due to it; its
        digest. On any thread, for as long as that takes.

        Raises:
            ValueError: it is not whole, or what was kept of it is damaged.
        """
        learner = learning.learner()
        digest = learner.digest
        self._coming.add(digest)  # before it is looked for: from now on it is not put to sleep
        held = self.held.get(digest)
        if held is not None and held.awake is not None:
            return digest
        ring = self._ring(learning.schema)
        end, mark = ring.end, 0 if held is None else held.at
        if held is None:
            due: list[Span] = [[max(ring.first, end - _TAKEN_OVER), None]]
        else:
            if held.state:
                learner.restore(held.state)
            due = [list(span) for span in held.due]
            if not held.learns:
                due.append([due[-1][1] if due else held.at, None])
            due = _still_here(due, ring, digest)
        awake = Awake(learner, self._runs)
        for start, stop in due:
            for event in ring.within(start or 0, end if stop is None else stop):
                awake.tell(event)
        awake.show()
        self._ready[digest] = _Ready(awake, learning.schema, mark, due, end)
        return digest

    def make(self, digests: Sequence[str]) -> None:
        """Have these answer, each prepared; what comes new learns from :meth:`keep` on."""
        self._made = tuple(digests)
        self._coming.clear()
        for digest, ready in list(self._ready.items()):
            held = self.held.get(digest)
            if held is not None and held.awake is not None:
                continue
            if digest not in digests:  # of a version that was refused
                del self._ready[digest]
                continue
            if held is None:
                held = self.held[digest] = Held(ready.schema)
            held.awake = ready.awake
            if held.learns:  # as the log has it: its server was away
                self._begin(held, ready)
                del self._ready[digest]

    def _begin(self, held: Held, ready: _Ready) -> None:
        """Tell a learner what came since it was made; from now on it learns."""
        ring = self._ring(held.schema)
        for event in ring.within(ready.at, None):
            ready.awake.tell(event)
        ready.awake.show()
        held.at, held.due, held.state = ring.end, [[ring.end, None]], b""

    def wants(self, digests: Sequence[str]) -> bool:
        """Whether it was these that :meth:`keep` was told last."""
        return set(self.wanted) == set(digests)

    def entries(self, digests: Sequence[str]) -> list[Entry]:
        """What the log says of those that learn from now on."""
        found: list[Entry] = []
        for digest in digests:
            held, ready = self.held[digest], self._ready.get(digest)
            told: Entry = (None, None) if ready is None else (ready.mark, ready.due)
            found.append((digest, held.schema.to_json(), *told))
        return found

    def leaving(self, digests: Sequence[str]) -> dict[str, Callable[[], bytes]]:
        """Those that learn no more once it is these that do, and what gives the state of each;
        on any thread."""
        found = {d: self.held[d].awake for d in self.wanted if d not in digests}
        return {d: awake.learner.dump for d, awake in found.items() if awake is not None}

    def keep(self, entries: Sequence[Entry], states: Mapping[str, bytes]) -> None:
        """Let those of the entries learn from now on, and keep those that learnt before them.

        Args:
            entries: as the log has them.
            states: of those that are leaving, where they are awake.
        """
        for digest, schema, mark, due in entries:
            held = self.held.setdefault(digest, Held(Schema.from_json(schema)))
            self._rings.setdefault(canonical(held.schema.to_json()), Ring())
            ready = self._ready.pop(digest, None)
            if ready is not None:
                self._begin(held, ready)
            elif due is not None:
                held.due = [*_before(held.due, mark), *(list(span) for span in due)]
        now = tuple(entry[0] for entry in entries)
        self._drop(now, states)
        self.wanted = now

    def _drop(self, now: Sequence[str], states: Mapping[str, bytes]) -> None:
        """Let those sleep that learnt until now, and forget those before them.

        One that is to answer again, as its alias has moved back meanwhile, stays awake and is told
        what it misses once the log says that it learns.
        """
        for digest, held in list(self.held.items()):
            if digest in now:
                continue
            returns = digest in self._made or digest in self._coming
            if digest not in self.wanted:
                if not returns:
                    self._ready.pop(digest, None)
                    del self.held[digest]
                continue
            end = self._ring(held.schema).end
            held.sleep(end)
            if held.awake is not None:
                held.state = states.get(digest) or held.awake.learner.dump()
            if returns and held.awake is not None:
                self._ready[digest] = _Ready(held.awake, held.schema, end, [[end, None]], end)
            else:
                self._ready.pop(digest, None)
                held.awake = None
        used = {canonical(held.schema.to_json()) for held in self.held.values()}
        self._rings = {name: ring for name, ring in self._rings.items() if name in used}

    # -- what they learn -----------------------------------------------------------------------

    @property
    def learning(self) -> list[Held]:
        """Those that are told of what is observed, and can be."""
        held = (self.held[digest] for digest in self.wanted)
        return [each for each in held if each.awake is not None]

    def tell(self, pieces: Sequence[Batch]) -> Iterator[Counts]:
        """Tell what was observed, one event at a time: how often it was kept, late and missing.

        Nobody sees anything of it before :meth:`show`.
        """
        for piece in pieces:
            for ring, events in self._note(piece):
                for held in self.learning:
                    if self._ring(held.schema) is ring and held.awake is not None:
                        for event in events:
                            yield held.awake.tell(event)
                        held.at = ring.end
                        held.due = [[held.at, None]]

    def note(self, pieces: Sequence[Batch]) -> None:
        """Keep events that nobody can be told of yet."""
        for piece in pieces:
            list(self._note(piece))

    def _note(self, piece: Batch) -> Iterator[tuple[Ring, list[Event]]]:
        """The events in rows, and the ring that they are now in."""
        schemas = {canonical(held.schema.to_json()): held.schema for held in self.held.values()}
        for name, schema in schemas.items():
            if name in self._rings and all(column in piece for column in schema.names):
                columns = [piece[column].tolist() for column in schema.names]
                events = list(zip(*columns, strict=True))
                self._rings[name].add(events)
                yield self._rings[name], events

    def show(self) -> None:
        """Let runs that begin from now on see what was told, and forget the oldest events."""
        for held in self.learning:
            if held.awake is not None:
                held.awake.show()
        for ring in self._rings.values():
            ring.trim()

    # -- what is told of them ------------------------------------------------------------------

    @property
    def keys(self) -> int:
        """The users and items that those who learn were told of."""
        return sum(held.awake.learner.keys for held in self.learning if held.awake)

    @property
    def size(self) -> int:
        """Bytes of those who learn, beside what training left, and of what is published."""
        awake = [held.awake for held in self.held.values() if held.awake]
        return sum(each.learner.bytes + each.published.bytes for each in awake)

    @property
    def figures(self) -> dict[str, float] | None:
        """Those of the stable version's learner; None where none learns."""
        for held in self.learning:
            if held.awake is not None:
                found = held.awake.learner.figures()
                return {**found, "bytes": float(held.awake.learner.bytes)}
        return None

    def figure(self, name: str) -> float | None:
        """One of them; None where there is none yet."""
        return (self.figures or {}).get(name)

    # -- what is written -----------------------------------------------------------------------

    def plain(self) -> Callable[[], dict[str, Any]]:
        """What gives all of it as plain data, for MessagePack; on any thread, while they are told
        of nothing."""
        held, rings = dict(self.held), dict(self._rings)

        def given() -> dict[str, Any]:
            return {
                "wanted": self.wanted,
                "learners": {digest: each.plain() for digest, each in held.items()},
                "events": {
                    name: [ring.first, ring.within(ring.first, None)]
                    for name, ring in rings.items()
                },
            }

        return given

    def fill(self, data: Mapping[str, Any]) -> None:
        """Be what :meth:`plain` gave."""
        self.wanted = tuple(data["wanted"])
        self.held = {digest: Held.of(each) for digest, each in data["learners"].items()}
        self._rings = {
            name: Ring(first, [tuple(event) for event in events])
            for name, (first, events) in data["events"].items()
        }


def _before(due: Sequence[Span], mark: int) -> list[Span]:
    """The part of spans that lies before a number."""
    return [
        [start, mark if stop is None else min(stop, mark)]
        for start, stop in due
        if (start or 0) < mark
    ]


def _still_here(due: Sequence[Span], ring: Ring, digest: str) -> list[Span]:
    """The part of spans that a ring still has."""
    found: list[Span] = []
    lost = 0
    for start, stop in due:
        begin = max(start or 0, ring.first)
        lost += (begin if stop is None else min(begin, stop)) - (start or 0)
        if stop is None or begin < stop:
            found.append([begin, stop])
    if lost:
        log.warning("a learner (%s) comes back without %d events that are gone", digest[:12], lost)
    return found
