"""What the tests of streams share: messages, a stream of them, and a follower in a thread."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event, Thread
from time import monotonic, sleep
from typing import Any, Self

import pyarrow as pa

import drivetrain as dt
from drivetrain.core.metric import Emitted, Note
from drivetrain.events.follow.following import follow
from drivetrain.events.lake.snapshot import Snapshot

TYPES: Any = {"n": "int64", "s": "string"}

PATIENCE = 60.0


def send(broker: Any, topic: str, values: Sequence[Any], *partitions: int, **more: Any) -> None:
    """Write messages, plain data as JSON, to partitions in turn."""
    data = [json.dumps(v).encode() if isinstance(v, dict) else v for v in values]
    places = partitions or (0, 1)
    for place, partition in enumerate(places):
        broker.send(topic, data[place :: len(places)], partition=partition, **more)


def numbers(count: int, first: int = 0) -> list[dict[str, Any]]:
    return [{"n": n, "s": f"row {n}"} for n in range(first, first + count)]


def made(broker: Any, topic: str, folder: Path, **changed: Any) -> dt.Stream:
    """A stream of the topic into a table of the folder."""
    leaf = {"types": TYPES} | changed.pop("leaf", {})
    events = changed.pop("steps", lambda table: table)(
        dt.Kafka(topic, servers=broker.servers, **leaf)
    )
    into = {"into": folder / "table", "dead": folder / "dead"} | changed
    return dt.Stream(name="made", events=events, **{"every": "20ms", "messages": 100} | into)


def rows(path: Any) -> list[dict[str, Any]]:
    snapshot = Snapshot.open(str(path))
    tables = [*snapshot.chunks(snapshot.schema, 100_000)]
    return pa.concat_tables(tables).to_pylist() if tables else []


def held(stream: dt.Stream) -> list[int]:
    """The numbers in a stream's table, in order."""
    return sorted(row["n"] for row in rows(stream.into))


class Running:
    """A follower in a thread of its own."""

    patience = PATIENCE
    follow: Callable[..., object] = staticmethod(follow)

    def __init__(self, stream: dt.Stream, room: Path, *site: Any, **options: Any) -> None:
        self.heard: list[Emitted] = []
        self.error: BaseException | None = None
        self.room = room
        self._stop = Event()
        given = {"emit": self.heard.append, "stop": self._stop, **options}

        def run() -> None:
            try:
                self.follow(stream, room, *site, **given)
            except BaseException as error:
                self.error = error

        self._thread = Thread(target=run)
        self._thread.start()

    def until(self, true: Callable[[], bool]) -> None:
        """Wait for a state."""
        end = monotonic() + self.patience
        while not true():
            assert self._thread.is_alive(), self.error
            assert monotonic() < end, [item for item in self.heard if isinstance(item, Note)]
            sleep(0.01)

    def has(self, text: str) -> bool:
        """Whether a note says this."""
        return any(isinstance(item, Note) and text in item.text for item in self.heard)

    def ended(self) -> BaseException | None:
        """Wait for its own end; its error."""
        self._thread.join(self.patience)
        assert not self._thread.is_alive()
        return self.error

    def end(self) -> None:
        """Ask it to end, and see that it does so well."""
        self._stop.set()
        error = self.ended()
        assert error is None, error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self.ended()


def count(stream: dt.Stream) -> Callable[[int], Callable[[], bool]]:
    """``count(stream)(n)``: whether the table holds so many rows."""

    def holds(number: int) -> Callable[[], bool]:
        def look() -> bool:
            try:
                return (Snapshot.open(str(stream.into)).rows or 0) >= number
            except FileNotFoundError:
                return False

        return look

    return holds
