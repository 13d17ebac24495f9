"""Messages of a topic, and the rows that they become."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from drivetrain.core.batch import Array
from drivetrain.core.schema import Field, Schema
from drivetrain.events.kafka import Avro, Kafka
from drivetrain.events.reading.arrow import arrow_schema, arrow_type
from drivetrain.events.topic.avro import AvroValues, Schemas, columns_of
from drivetrain.events.topic.decode import ArrowStreams, Decode, Json

PLACE_TYPES = {"key": "string", "timestamp": "timestamp", "partition": "int64", "offset": "int64"}
"""The types of the columns that say where a message was."""

BEYOND = 253_402_300_800_000
"""Milliseconds from 1970 to the year 10000: a clock that is so late counts something else."""


@dataclass(frozen=True)
class Messages:
    """Messages that were taken together.

    Attributes:
        raw: as the client gives them, those of a partition in order.
        values: of each; None is a tombstone.
        behind: for each partition among them the offset behind its last one.
        size: bytes of their values.
        ends: of each partition whose end was seen by then, the offset of that.
    """

    raw: Sequence[Any] = ()
    values: Sequence[bytes | None] = ()
    behind: Mapping[int, int] = field(default_factory=dict[int, int])
    size: int = 0
    ends: Mapping[int, int] = field(default_factory=dict[int, int])

    def __len__(self) -> int:
        return len(self.raw)

    def before(self, partition: int, end: int) -> "Messages":
        """Those of one partition whose offsets are below ``end``."""
        raw = [m for m in self.raw if m.partition() == partition and m.offset() < end]
        behind = {partition: end} if raw else {}
        return Messages(raw, [message.value() for message in raw], behind, self.size, self.ends)

    @cached_property
    def partitions(self) -> Array:
        """int64 ``[messages]``."""
        return np.fromiter((m.partition() for m in self.raw), np.int64, len(self.raw))

    @cached_property
    def offsets(self) -> Array:
        """int64 ``[messages]``."""
        return np.fromiter((m.offset() for m in self.raw), np.int64, len(self.raw))

    def times(self, step: int = 1) -> Array:
        """What the clock of every ``step``-th message said, in microseconds; -1 where unknown."""
        raw = self.raw[::step]
        return np.fromiter(map(micros, raw), np.int64, len(raw))


def micros(message: Any) -> int:
    """What the clock of a message said, in microseconds since 1970; -1 where it says no time."""
    kind, at = message.timestamp()
    return at * 1000 if kind and 0 <= at < BEYOND else -1


@dataclass(frozen=True)
class Refused:
    """A message that does not fit, and why."""

    message: int
    reason: str


@dataclass(frozen=True)
class Rows:
    """What messages became.

    Attributes:
        table: the rows, in order of their messages.
        origin: int64 ``[rows]``: the message that each came from.
        refused: the messages that did not fit.
    """

    table: pa.Table
    origin: Array
    refused: tuple[Refused, ...] = ()


class Reading:
    """Makes rows of a topic's messages.

    Args:
        leaf: the topic as it was declared.
        schema: the columns that are wanted, those of :attr:`Kafka.places` among them if any.

    Raises:
        ImportError: ``fastavro`` is not installed, and the values need it.
        ValueError: a column is not in the declared schema of the values.
    """

    def __init__(self, leaf: Kafka, schema: Schema) -> None:
        self._leaf, self._schema = leaf, schema
        payload = Schema(tuple(f for f in schema if f.name not in leaf.places))
        self._payload = payload if len(payload) else payload_schema(leaf, schema)
        self._decode = _decoder(leaf, self._payload)

    def __call__(self, messages: Messages) -> Rows:
        """The rows of messages."""
        values: Any = messages.values
        refused: list[Refused] = []
        places: Array | None = None
        if None in values:
            kept = [number for number, value in enumerate(values) if value is not None]
            if self._leaf.tombstones == "refuse":
                missing = sorted({*range(len(values))} - {*kept})
                refused += [
                    Refused(n, "found no value (a tombstone), allowed: one") for n in missing
                ]
            places, values = np.array(kept, np.int64), [values[number] for number in kept]
        found = self._decode(values)
        origin = found.origin if places is None else places[found.origin]
        at = range(len(values)) if places is None else places
        refused += [Refused(int(at[place]), why) for place, why in sorted(found.refused.items())]
        table, origin, unfit = self._placed(found.rows, origin, messages)
        refused = sorted([*refused, *unfit], key=lambda item: item.message)
        return Rows(table.select(list(self._schema.names)), origin, tuple(refused))

    def _placed(
        self, rows: pa.Table, origin: Array, messages: Messages
    ) -> tuple[pa.Table, Array, list[Refused]]:
        """The rows with the columns that say where their messages were."""
        unfit: list[Refused] = []
        for name, place in self._leaf.places.items():
            if name not in self._schema:
                continue
            if place == "key":
                texts, wrong = _keys([messages.raw[number] for number in origin])
                if wrong:
                    why = "found a key that is not UTF-8, allowed: text"
                    unfit += [Refused(n, why) for n in sorted({int(origin[i]) for i in wrong})]
                column = pa.array(texts, pa.string())
            elif place == "timestamp":
                times = messages.times()[origin]
                column = pa.array(times, pa.int64(), mask=times < 0).cast(pa.timestamp("us"))
            else:
                column = pa.array(getattr(messages, f"{place}s")[origin], pa.int64())
            rows = rows.append_column(pa.field(name, arrow_type(self._schema.field(name))), column)
        if unfit:
            keep = ~np.isin(origin, [item.message for item in unfit])
            rows, origin = rows.filter(pa.array(keep)), origin[keep]
        return rows, origin, unfit


def _keys(raw: Sequence[Any]) -> tuple[list[str | None], list[int]]:
    """Keys as texts, and the places of those that are none."""
    texts: list[str | None] = []
    wrong: list[int] = []
    for place, message in enumerate(raw):
        key = message.key()
        try:
            texts.append(key if key is None or isinstance(key, str) else key.decode())
        except UnicodeDecodeError:
            texts.append(None)
            wrong.append(place)
    return texts, wrong


def _decoder(leaf: Kafka, payload: Schema) -> Decode:
    where = f"topic {leaf.topic!r}"
    if isinstance(leaf.format, Avro):
        return AvroValues(payload, Schemas(leaf.format, leaf.topic), where)
    return Json(payload, where) if leaf.format == "json" else ArrowStreams(payload, where)


def payload_schema(leaf: Kafka, schema: Schema) -> Schema:
    """One column of the values, to read where none is wanted: a value must fit all the same."""
    for name, kind in dict(leaf.types or ()).items():
        return Schema((Field(name, kind),))
    if isinstance(leaf.format, Avro):
        return Schema(columns_of(Schemas(leaf.format, leaf.topic).read).fields[:1])
    return Schema(tuple(f for f in leaf.schema if f.name not in leaf.places)[:1])


def place_fields(leaf: Kafka) -> Iterator[Field]:
    """The columns that say where a message was."""
    for name, place in leaf.places.items():
        yield Field(name, PLACE_TYPES[place])  # pyright: ignore[reportArgumentType]


def empty(schema: Schema) -> pa.Table:
    """No rows of these columns."""
    return arrow_schema(schema).empty_table()
