"""A stream: messages of a topic that become rows of a table for ever, each exactly once."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike, fspath

from drivetrain.core.describe import describe, digest
from drivetrain.core.errors import wrong
from drivetrain.core.schema import Schema
from drivetrain.core.system import NAME
from drivetrain.core.window import Length, microseconds_of
from drivetrain.events.kafka import Kafka
from drivetrain.events.table import Assign, DropDuplicates, Table


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Messages of a topic, cleaned and joined as they come, appended to a Delta table.

    A row and the offsets of its batch are one commit of the table: whenever the process or the
    machine stops, nothing is lost and nothing is there twice.

    Attributes:
        name: lower-case letters, digits and dashes; the writer's name in the table.
        events: steps on a ``Kafka`` topic, without a split.
        into: the path or URL of the Delta table.
        dead: the path or URL of a Delta table of the messages that do not fit, with the reason and
            where they were; None ends the stream at the first one, with nothing lost.
        every: how long messages are gathered for one commit, from the first of them on.
        messages: at most so many go into one commit.
        bytes: a commit is begun once their values are so many.
        partition_by: columns that the table is partitioned by.
        observe: addresses of servers' aliases, such as ``http://127.0.0.1:8080/observe/flights``,
            that are told the rows once they are committed.
        observed: the columns that they are told; none takes those that each of them observes.
    """

    name: str
    events: Table
    into: str | PathLike[str] = field(metadata={"declared": False})
    dead: str | PathLike[str] | None = field(default=None, metadata={"declared": False})
    every: Length = "1s"
    messages: int = 100_000
    bytes: int = 64 << 20
    partition_by: Sequence[str] = ()
    observe: Sequence[str] = field(default=(), metadata={"declared": False})
    observed: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise wrong("Stream.name", self.name, "a-z, 0-9 and dashes, no dash first, 64 at most")
        leaf, steps = self.events.chain()
        if not isinstance(leaf, Kafka):
            raise wrong("Stream.events", type(leaf).__name__, "steps on a Kafka topic")
        if leaf.end is not None:
            raise wrong("Stream.events", "a topic with an end", "one that is read for ever")
        for step in steps:
            if isinstance(step, Assign):
                allowed = "none; split the table that is trained from"
                raise wrong("Stream.events", "a split", allowed)
            if isinstance(step, DropDuplicates):
                allowed = "steps whose memory does not grow with the rows"
                raise wrong("Stream.events", step.label, allowed)
        if not fspath(self.into):
            raise wrong("Stream.into", self.into, "the path or URL of a Delta table")
        for name in ("partition_by", "observe", "observed"):
            given = getattr(self, name)
            listed = (given,) if isinstance(given, str) else tuple(given)
            object.__setattr__(self, name, listed)
        object.__setattr__(self, "into", fspath(self.into))
        if self.dead is not None:
            object.__setattr__(self, "dead", fspath(self.dead))
            if self.dead == self.into:
                raise wrong("Stream.dead", self.dead, "another table than into")
        microseconds_of(self.every, "Stream.every")
        for name in ("messages", "bytes"):
            if getattr(self, name) < 1:
                raise wrong(f"Stream.{name}", getattr(self, name), "at least 1")
        for address in self.observe:
            if not address.startswith(("http://", "https://")):
                raise wrong("Stream.observe", address, "an address such as http://host:8080/…")

    @property
    def topic(self) -> Kafka:
        """Where its messages come from."""
        leaf, _ = self.events.chain()
        assert isinstance(leaf, Kafka)
        return leaf

    @property
    def digest(self) -> str:
        """SHA-256 of the declaration; where it reads and writes is no part of it."""
        return digest(describe(self))

    @property
    def seconds(self) -> float:
        """How long messages are gathered for one commit."""
        return microseconds_of(self.every, "Stream.every") / 1e6

    def check(self) -> Schema:
        """The columns that the table gets; the declaration held against the topic's columns.

        Raises:
            OSError: the topic is to be asked for its columns, and cannot be.
            ValueError: a step, or the partitioning, does not fit them.
        """
        from drivetrain.events.lake.parts import parts_of

        schema = self.events.schema
        for part in parts_of(self.partition_by):
            schema.field(part.time or part.name, "Stream.partition_by")
        return schema
