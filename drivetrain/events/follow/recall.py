"""What a stream's windows remember, over stops: states that are kept, and messages read again."""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from heapq import merge
from pathlib import Path
from typing import Any

from drivetrain.core import durable
from drivetrain.events.follow.cleaning import Cleaning
from drivetrain.events.plan import Plan
from drivetrain.events.stream import Stream
from drivetrain.events.topic.messages import Messages, Reading, micros
from drivetrain.events.topic.places import Places
from drivetrain.events.topic.topic import Topic
from drivetrain.events.windowed.standing import FOLDER, forget, found_in

SHARE = 0.05
"""Of its time a stream spends at most about so much on keeping states."""

IN_FLIGHT = 1 << 20
"""Bytes that the client of each partition that is read again holds ahead."""


@dataclass(frozen=True)
class Kept:
    """A state on the disk, the positions behind all that is in it, and what reads it."""

    path: Path
    positions: Mapping[int, int]
    state: Callable[[], bytes]


class Recall:
    """Keeps the state of a plan now and then, and makes that of any position from it.

    A state is a function of the messages before its position, in their order. So of a topic with
    one partition one that is older, or none, will do: the messages between are read again, and what
    becomes of them is dropped. What has expired in the topic before the oldest state cannot be read
    again, and is said. In which order messages of several partitions came cannot be read again
    either, and it decides which of them were late: there the state is kept before each commit, and
    where it is lost all the same, they are read again in the order of their clocks.

    Args:
        stream: whose it is.
        plan: that has the state.
        cleaning: runs the plan.
        room: the directory of states.
        say: hears what is read again, and what is gone.
    """

    def __init__(
        self,
        stream: Stream,
        plan: Plan,
        cleaning: Cleaning,
        room: Path,
        say: Callable[[str], None],
    ) -> None:
        self._stream, self._plan, self._cleaning, self._room = stream, plan, cleaning, room
        self._say = say
        self._fresh = plan.state() if plan.stateful else b""
        self._due = 0.0

    def keep(self, places: Places, at: Mapping[int, int], *, now: bool = False) -> None:
        """Write the state down if it is time to.

        Args:
            places: how positions are named.
            at: the positions behind all that the state has seen; the table has them already.
            now: do not wait until it is.
        """
        begin = time.monotonic()
        path = self._path(places, at)
        several = len(at) > 1
        if not self._plan.stateful or (begin < self._due and not (now or several)):
            return
        if not (several and path.exists()):
            self._write(path, places, at)
        for other in self._room.glob("state-*.bin"):
            if other != path:
                other.unlink(missing_ok=True)
        forget(self._room)
        ended = time.monotonic()
        self._due = ended + (ended - begin) / SHARE

    def ready(self, places: Places, at: Mapping[int, int]) -> None:
        """Write down the state of a commit that comes next, where it could not be made again.

        Args:
            places: how positions are named.
            at: the positions behind all that the state has seen; the table does not have them yet.
        """
        if self._plan.stateful and len(at) > 1:
            self._write(self._path(places, at), places, at)

    def _path(self, places: Places, at: Mapping[int, int]) -> Path:
        return self._room / f"state-{places.generation:04}-{sum(at.values()):020}.bin"

    def _write(self, path: Path, places: Places, at: Mapping[int, int]) -> None:
        head = {"topic": places.identity, "positions": {str(n): p for n, p in at.items()}}
        durable.write(path, json.dumps(head).encode() + b"\n" + self._plan.state())

    def restore(self, places: Places, at: Mapping[int, int]) -> bytes:
        """Bring the plan to the state that it had at these positions, and give that state.

        Raises:
            OSError: the messages between cannot be read.
        """
        if not self._plan.stateful:
            return b""
        begun: dict[int, int] = {}
        for kept in self._fitting(places, at):
            try:
                self._plan.restore(kept.state())
            except (ValueError, OSError) as error:  # of another plan, or damaged
                self._say(f"{kept.path.name} is of no use: {error}")
                continue
            begun = dict(kept.positions)
            break
        else:
            self._plan.restore(self._fresh)
        if begun != dict(at):
            self._again(begun, at)
        return self._plan.state()

    def _fitting(self, places: Places, at: Mapping[int, int]) -> list[Kept]:
        """The states of positions that are not beyond these, the newest first.

        Those of a run on Spark lie in a folder of their own.
        """
        found = [
            Kept(one.path, one.positions, one.state)
            for one in found_in(self._room / FOLDER)
            if one.topic == places.identity and _within(one.positions, at)
        ]
        for path in self._room.glob("state-*.bin"):
            try:
                with path.open("rb") as opened:
                    head = json.loads(opened.readline())
                positions = {int(n): int(p) for n, p in head["positions"].items()}
            except (OSError, ValueError, KeyError):
                continue
            if head.get("topic") == places.identity and _within(positions, at):
                found.append(Kept(path, positions, partial(_state, path)))
        return sorted(found, key=lambda kept: -sum(kept.positions.values()))

    def _again(self, begun: Mapping[int, int], at: Mapping[int, int]) -> None:
        """Run what lies between through the plan, for what it remembers of it."""
        leaf = self._stream.topic
        with ExitStack() as stack:
            topic = stack.enter_context(Topic(leaf))
            missing = [n for n in at if n not in begun]
            starts = {**topic.starts(missing), **begun}
            count = sum(max(end - starts[n], 0) for n, end in at.items())
            if count:
                how = ", in order of their clocks" if len(at) > 1 else ""
                self._say(f"windows are made from {count:,} messages that are read again{how}")
            sources: list[Iterator[Any]] = []
            for partition, end in sorted(at.items()):
                low = topic.bounds(partition)[0]
                if low > starts[partition]:
                    gone = f"{low - starts[partition]:,} messages of partition {partition}"
                    self._say(f"{gone} have expired: windows are without them")
                start = max(starts[partition], low)
                if start < end:
                    source = stack.enter_context(Topic(leaf, in_flight=IN_FLIGHT))
                    sources.append(_of(source, partition, start, end))
            reading = Reading(leaf, self._plan.reads)
            for messages in self._cut(merge(*sources, key=micros)):
                state = self._plan.state() if self._stream.dead is not None else b""
                self._cleaning(reading(messages), lambda state=state: state)

    def _cut(self, raw: Iterable[Any]) -> Iterator[Messages]:
        """Messages in batches that are no larger than those of the stream."""
        held: list[Any] = []
        values: list[bytes | None] = []
        size = 0
        for message in raw:
            value = message.value()
            held.append(message)
            values.append(value)
            size += len(value or b"")
            if len(held) >= self._stream.messages or size >= self._stream.bytes:
                yield Messages(held, values, size=size)
                held, values, size = [], [], 0
        if held:
            yield Messages(held, values, size=size)


def _within(positions: Mapping[int, int], at: Mapping[int, int]) -> bool:
    return all(position <= at.get(n, -1) for n, position in positions.items())


def _state(path: Path) -> bytes:
    return path.read_bytes().split(b"\n", 1)[1]


def _of(topic: Topic, partition: int, start: int, end: int) -> Iterator[Any]:
    """The messages of a partition between two offsets, one by one."""
    for messages in topic.within(partition, start, end, 1_000):
        yield from messages.raw
