"""A topic as a table: its columns, where it begins and ends, and the rows between."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from drivetrain.core.errors import wrong
from drivetrain.core.schema import Field, Schema
from drivetrain.events.kafka import Avro, Kafka
from drivetrain.events.topic.avro import Schemas, columns_of
from drivetrain.events.topic.decode import told, told_by_stream
from drivetrain.events.topic.messages import Reading, place_fields
from drivetrain.events.topic.topic import Topic

SAMPLE = 1 << 20
"""Bytes of values from which the columns of JSON are told."""


def extent(leaf: Kafka) -> tuple[str, dict[int, tuple[int, int]]]:
    """What the brokers call a topic, and the first offset and the end of each partition now.

    Raises:
        OSError: no broker answers, or there is no such topic.
    """
    with Topic(leaf) as topic:
        partitions = topic.partitions()
        starts = topic.starts(partitions)
        ends = {n: topic.bounds(n)[1] for n in partitions}
        if leaf.end is not None:
            declared = dict(leaf.end)
            ends = {n: min(declared.get(n, 0), end) for n, end in ends.items()}
        bounds = {n: (min(starts[n], ends[n]), ends[n]) for n in partitions}
        return topic.identity(), bounds


def schema_of(leaf: Kafka) -> Schema:
    """The columns of a topic: the declared ones, those of its schema, or what its head shows.

    Raises:
        OSError: no broker answers, there is no such topic, or a schema cannot be read.
        ValueError: the topic has no message that would show its columns.
    """
    named: tuple[Any, ...] = tuple(leaf.types or ())
    declared = Schema(tuple(Field(name, kind) for name, kind in named))
    if isinstance(leaf.format, Avro):
        found = columns_of(Schemas(leaf.format, leaf.topic).read)
        kinds = dict(named)
        fields = tuple(Field(f.name, kinds.get(f.name, f.dtype), f.shape) for f in found)
        found = Schema(fields)
    elif len(declared):
        found = declared
    else:
        found = _told(leaf, declared)
    found = Schema((*found, *place_fields(leaf)))
    if leaf.time is not None:
        found.field(leaf.time, "Kafka time")
    return found


def _told(leaf: Kafka, declared: Schema) -> Schema:
    where = f"topic {leaf.topic!r}"
    values: list[bytes] = []
    _, bounds = extent(leaf)
    with Topic(leaf) as topic:
        for partition, (low, high) in bounds.items():
            for messages in topic.within(partition, low, high, 1_000):
                values += filter(None, messages.values)
                if sum(map(len, values)) >= SAMPLE or (values and leaf.format == "arrow"):
                    break
            if values:
                break
    if leaf.format == "arrow" and values:
        try:
            return told_by_stream(values[0])
        except (pa.ArrowException, OSError) as error:
            raise wrong(where, str(error), "values that are Arrow IPC streams") from None
    return told(values, declared, where)


def read(leaf: Kafka, schema: Schema, rows: int) -> Iterator[pa.Table]:
    """The rows that a topic has now, in order of partition and offset.

    Args:
        leaf: the topic.
        schema: which columns, and their types.
        rows: at most so many rows a table.

    Raises:
        OSError: no broker answers, or there is no such topic.
        ValueError: a message does not fit; names topic, partition and offset.
    """
    reading = Reading(leaf, schema)
    _, bounds = extent(leaf)
    with Topic(leaf) as topic:
        for partition, (low, high) in bounds.items():
            for messages in topic.within(partition, low, high, rows):
                found = reading(messages)
                if found.refused:
                    first = found.refused[0]
                    raise misfit(leaf, messages.raw[first.message], first.reason)
                for start in range(0, len(found.table), rows):
                    yield found.table.slice(start, rows)


def misfit(leaf: Kafka, message: Any, reason: str) -> ValueError:
    """The error for a message that does not fit."""
    place = f"partition {message.partition()}, offset {message.offset()}"
    return ValueError(f"topic {leaf.topic!r}, {place}: {reason}")
