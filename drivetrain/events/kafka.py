"""A Kafka topic as rows: read up to its end for training, or followed for ever by a stream."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast, get_args

from drivetrain.core.errors import unknown, wrong
from drivetrain.core.schema import Schema
from drivetrain.events.files import Types, declared_types
from drivetrain.events.table import Leaf

if TYPE_CHECKING:
    import pyarrow as pa

Offsets: TypeAlias = Mapping[int, int] | tuple[tuple[int, int], ...]
"""For each partition an offset."""
Tombstones = Literal["refuse", "skip"]
PLACES = ("key", "timestamp", "partition", "offset")
"""What of a message, beside its value, may become a column."""


def _content(schema: str) -> str:
    """An Avro schema itself, where only the path of its file was given."""
    return schema if schema.lstrip()[:1] in ("", "{", "[", '"') else Path(schema).read_text()


@dataclass(frozen=True)
class Avro:
    """Values in Apache Avro's binary encoding (specification 1.11), one datum a message.

    Attributes:
        schema: of what is read: JSON, or the path of a file of it. It may be left out where a
            registry knows the topic's.
        registry: the address of a Confluent schema registry. Values then begin with a zero byte
            and the number of the schema that they were written with (four bytes, big-endian).
    """

    schema: str = field(default="", metadata={"as": _content})
    registry: str = field(default="", metadata={"declared": False})

    def __post_init__(self) -> None:
        if not self.schema and not self.registry:
            raise wrong("Avro", "neither", "a schema, or the address of a registry")

    @property
    def text(self) -> str:
        """The schema as JSON; empty where the registry is to be asked.

        Raises:
            OSError: its file cannot be read.
        """
        return _content(self.schema)


Format: TypeAlias = Literal["json", "arrow"] | Avro


@dataclass(frozen=True, eq=False)
class Kafka(Leaf):
    """Rows that lie in a Kafka topic, in order of partition and offset.

    Read as a table, it gives what there is when reading begins, and no more. A message that does
    not fit is then an error that names topic, partition and offset; a ``Stream`` may lay it aside.
    The clock of a message's timestamp is its producer's: what happened when is for a column of the
    value to say.

    Attributes:
        topic: its name.
        servers: ``host:port`` of one broker or several; where a topic lies is not what it is, so
            this is in no digest and no bundle.
        format: of the values: ``json`` (an object a message), ``arrow`` (an IPC stream of any
            number of rows) or ``Avro(…)``.
        types: of columns by name. For JSON a column that is not named is told from the first
            messages; with ``types`` for all that is needed nothing is guessed.
        key: names the column, if any, that gets the message's key as text.
        timestamp: the same for its timestamp, as its producer's or broker's clock had it.
        partition: the same for its partition.
        offset: the same for its offset.
        tombstones: what a message without a value is, as compacted topics have them: ``refuse``
            treats it as one that does not parse, ``skip`` leaves it out.
        start: the first offset of each partition (0 of one that is not named), or a time in
            ISO 8601 (UTC) from which on messages are read; None reads from the oldest.
        end: the offset of each partition before which reading stops; None reads to its end.
        properties: the path of a file of librdkafka's properties (``key=value`` a line), such as
            the secrets of SASL; in no digest and no bundle.
    """

    topic: str
    _: KW_ONLY
    servers: str | Sequence[str] = field(metadata={"declared": False})
    format: Format = "json"
    types: Types = None
    key: str | None = None
    timestamp: str | None = None
    partition: str | None = None
    offset: str | None = None
    tombstones: Tombstones = "refuse"
    start: Offsets | str | None = None
    end: Offsets | None = None
    properties: str = field(default="", metadata={"declared": False})

    def __post_init__(self) -> None:
        where = f"Kafka({self.topic!r})"
        if not self.topic:
            raise wrong("Kafka topic", self.topic, "the name of a topic")
        servers = (self.servers,) if isinstance(self.servers, str) else tuple(self.servers)
        if not servers or not all(servers):
            raise wrong(f"{where} servers", self.servers, "'host:port' of at least one broker")
        object.__setattr__(self, "servers", servers)
        if not isinstance(self.format, Avro) and self.format not in ("json", "arrow"):
            raise wrong(f"{where} format", self.format, "'json', 'arrow' or Avro(…)")
        if self.tombstones not in get_args(Tombstones):
            allowed = get_args(Tombstones)
            raise unknown("rule", str(self.tombstones), allowed, f"{where} tombstones")
        object.__setattr__(self, "types", declared_types(self.types, where))
        if isinstance(self.start, str):
            _moment(self.start, where)
        elif self.start is not None:
            object.__setattr__(self, "start", _offsets(self.start, f"{where} start"))
        if self.end is not None:
            object.__setattr__(self, "end", _offsets(self.end, f"{where} end"))
        named = [*self.places, *dict(self.types or ())]
        twice = sorted({name for name in named if named.count(name) > 1})
        if twice:
            raise wrong(f"{where} column", twice[0], "each name once")

    @property
    def brokers(self) -> str:
        """The servers as librdkafka writes them."""
        return ",".join(self.servers)

    @property
    def places(self) -> dict[str, str]:
        """The columns that say where a message was: by their names, which of :data:`PLACES`."""
        return {name: place for place in PLACES if (name := getattr(self, place)) is not None}

    @property
    def since_us(self) -> int | None:
        """The time that reading starts from, in microseconds since 1970, if it is one."""
        return _moment(self.start, "start") if isinstance(self.start, str) else None

    @property
    def first_offsets(self) -> dict[int, int]:
        """The first offset of each partition that has one of its own."""
        return {} if isinstance(self.start, str) else dict(self.start or ())

    @property
    def schema(self) -> Schema:
        from drivetrain.events.topic.bounded import schema_of

        return schema_of(self)

    def chunks(self, schema: Schema, rows: int) -> "Iterator[pa.Table]":
        from drivetrain.events.topic.bounded import read

        return read(self, schema, rows)

    def stamps(self) -> Sequence[tuple[str, str]]:
        held = cast("Kafka", self.pinned())
        found = held.lineage()
        return [
            (f"{self.topic}/{partition}", f"{found['id']}:{first}-{behind}")
            for partition, (first, behind) in found["offsets"].items()
        ]

    def pinned(self) -> "Leaf":
        if isinstance(self, Pinned):
            return self
        from drivetrain.events.topic.bounded import extent

        identity, bounds = extent(self)
        start = {partition: low for partition, (low, _) in bounds.items()}
        end = {partition: high for partition, (_, high) in bounds.items()}
        given = {name: getattr(self, name) for name in type(self).__dataclass_fields__}
        return Pinned(**{**given, "start": start, "end": end, "identity": identity})

    def bounded(self, start: Mapping[int, int], end: Mapping[int, int]) -> "Kafka":
        """The same topic from and to these offsets."""
        return replace(self, start=start, end=end)


@dataclass(frozen=True, eq=False)
class Pinned(Kafka):
    """A topic held to the messages that it had at one moment.

    Attributes:
        identity: what the broker calls this very topic, which one made anew under its name does
            not have; empty where it has no word for it.
    """

    _: KW_ONLY
    identity: str = ""

    def lineage(self) -> Mapping[str, Any]:
        start, end = dict(cast("Any", self.start)), dict(cast("Any", self.end))
        offsets = {str(partition): [start[partition], end[partition]] for partition in sorted(end)}
        return {"topic": self.topic, "id": self.identity, "offsets": offsets}


def _offsets(given: Offsets, where: str) -> tuple[tuple[int, int], ...]:
    found = tuple(
        sorted((int(partition), int(offset)) for partition, offset in dict(given).items())
    )
    for partition, offset in found:
        if partition < 0 or offset < 0:
            raise wrong(where, {partition: offset}, "partitions and offsets from 0")
    return found


def _moment(text: str, where: str) -> int:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        allowed = "offsets of partitions, or a time in ISO 8601 such as '2026-10-01T06:30'"
        raise wrong(f"{where} start", text, allowed) from None
    found = found.replace(tzinfo=UTC) if found.tzinfo is None else found
    return round(found.timestamp() * 1_000_000)
