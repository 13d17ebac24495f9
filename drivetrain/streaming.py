"""Streams on a site: held against their topics, run until they are told to stop, and watched."""

import signal
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from drivetrain.core.errors import unknown, wrong
from drivetrain.core.metric import Emit, silent
from drivetrain.core.site import Site
from drivetrain.events.stream import Stream

if TYPE_CHECKING:
    from drivetrain.watch.streams import StreamWatch

STATUS = "status.json"


@dataclass(frozen=True, kw_only=True)
class How:
    """How a stream is run.

    Attributes:
        from_start: accept a topic that was made anew, and messages that expired unread.
        to_end: stop behind the messages that there are at the beginning.
    """

    from_start: bool = False
    to_end: bool = False


def room_of(site: Site, name: str) -> Path:
    """Where the runner of a stream keeps what is its own."""
    return Path(site.work) / "streams" / name


def check(stream: Stream) -> dict[str, Any]:
    """Hold a stream against its topic and its tables, without running it.

    Raises:
        OSError: no broker answers, or there is no such topic.
        ValueError: a step does not fit the topic's columns, or a table is one of other columns.
    """
    from drivetrain.events.lake.lake import Lake
    from drivetrain.events.topic.topic import Topic

    schema = stream.check()
    try:
        with Topic(stream.topic) as topic:
            partitions = len(topic.partitions())
    except ConnectionError as error:  # nothing that the same command would go on with
        raise OSError(str(error)) from None
    table = Lake.open(str(stream.into), partition_by=stream.partition_by)
    table.fits(schema)
    positions = table.positions(stream.name)
    found = {"stream": stream.name, "topic": stream.topic.topic, "partitions": partitions}
    return found | {"columns": list(schema.names), "positions": positions}


def said(found: dict[str, Any]) -> str:
    """What :func:`check` found, for a person."""
    return (
        f"{found['stream']}: {len(found['columns'])} columns of the topic {found['topic']} "
        f"({found['partitions']} partitions): the declaration fits."
    )


def run(stream: Stream, site: Site, how: How = How(), emit: Emit = silent) -> None:
    """Run a stream in this process until it is asked to end.

    SIGTERM and SIGINT let it commit the batch that it has begun.

    Raises:
        OSError: there is no such topic, or a table cannot be written.
        ValueError: the declaration does not fit, or what is met on the way; says what.
    """
    if site.launcher.kind not in ("inline", "local"):
        allowed = "inline or local: a stream runs in one process"
        raise wrong("[launcher] kind", site.launcher.kind, allowed)
    with _until_asked() as stop, suppress(InterruptedError):  # asked before it had begun
        room = room_of(site, stream.name)
        options: Any = {**vars(how), "emit": emit, "stop": stop, "token": site.serve.token()}
        if site.engine.kind == "duckdb":
            from drivetrain.events.duckdb import Limits
            from drivetrain.events.follow.following import follow

            limits = Limits(memory=site.engine.memory, threads=site.engine.threads)
            follow(stream, room, limits=limits, **options)
        elif site.engine.kind == "spark":
            from drivetrain.events.spark import streaming

            streaming.follow(stream, room, site.engine, **options)
        else:
            raise unknown("engine", site.engine.kind, ("duckdb", "spark"), "[engine] kind")


@contextmanager
def _until_asked() -> Generator[Event]:
    """Set once this process is asked to end."""
    stop = Event()
    before = {
        number: signal.signal(number, lambda *_: stop.set())
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield stop
    finally:
        for number, what in before.items():
            signal.signal(number, what)


def stream_watch(site: Site, name: str) -> "StreamWatch":
    """What looks at a stream of this name."""
    from drivetrain.watch.streams import StreamWatch

    return StreamWatch(name, room_of(site, name) / STATUS)
