"""A Spark source of the raw records of a Kafka topic: each partition of it is one of Spark's.

Where the stream stands is not Spark's to keep: the table that the rows go into knows it, and a
query begins there. So this source keeps nothing, and its offsets live as long as the query.
"""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyspark.sql.datasource import DataSource, DataSourceStreamReader, InputPartition
from pyspark.sql.streaming.datasource import (
    ReadAllAvailable,
    ReadLimit,
    ReadMaxRows,
    SupportsTriggerAvailableNow,
)

from drivetrain.events.kafka import Kafka
from drivetrain.events.topic.messages import Messages
from drivetrain.events.topic.topic import LOOK, Topic

Offsets = dict[str, int]
"""The next offset of each partition, which JSON names by a text."""

NAME = "drivetrain-kafka"
COLUMNS = "partition INT, offset BIGINT, timestamp BIGINT, key BINARY, value BINARY"
"""A record as it lies in Kafka; ``timestamp`` in microseconds since 1970, -1 for none."""

RECORDS = pa.schema(
    [
        ("partition", pa.int32()),
        ("offset", pa.int64()),
        ("timestamp", pa.int64()),
        ("key", pa.binary()),
        ("value", pa.binary()),
    ]
)

AT_ONCE = 20_000
"""So many records make an Arrow batch at most."""

BYTES = 16 << 20
"""So many bytes of values begin a new one."""

SILENCE = 30.0
"""Seconds after which a broker that has records and gives none is gone."""


@dataclass
class Range(InputPartition):
    """The records of one partition from ``start`` and before ``end``."""

    number: int
    start: int
    end: int


class KafkaSource(DataSource):
    """A topic, by the options ``servers``, ``topic``, ``properties``, ``positions`` and ``rows``.

    ``positions`` is JSON: where to begin, by partition; one that it does not name begins with its
    oldest record. ``rows`` bounds what a micro-batch takes; 0 is no bound.
    """

    @classmethod
    def name(cls) -> str:
        return NAME

    def schema(self) -> str:
        return COLUMNS

    def streamReader(self, schema: Any) -> "Reader":  # noqa: N802 - Spark's name
        return Reader(dict(self.options))


class Reader(DataSourceStreamReader, SupportsTriggerAvailableNow):
    """Plans micro-batches beside the driver and reads their ranges on the executors."""

    def __init__(self, options: Mapping[str, str]) -> None:
        self.options = options
        self.until: Offsets | None = None

    # -- beside the driver -----------------------------------------------------------------------

    def initialOffset(self) -> Offsets:  # noqa: N802 - Spark's name
        known: Offsets = json.loads(self.options["positions"])
        topic = _held(self.options).topic
        there = topic.partitions()
        for number, at in known.items():
            if int(number) not in there:
                raise topic.absent(int(number), at, 0, 0)
        return {str(n): known.get(str(n), topic.bounds(n)[0]) for n in there}

    def getDefaultReadLimit(self) -> ReadLimit:  # noqa: N802 - Spark's name
        rows = int(self.options["rows"])
        return ReadMaxRows(rows) if rows else ReadAllAvailable()

    def prepareForTriggerAvailableNow(self) -> None:  # noqa: N802 - Spark's name
        topic = _held(self.options).topic
        self.until = {str(n): topic.bounds(n)[1] for n in topic.partitions()}

    def latestOffset(self, start: Offsets, limit: ReadLimit) -> Offsets:  # noqa: N802
        topic = _held(self.options).topic
        ends: Offsets = {}
        for partition in topic.partitions():
            number, (low, high) = str(partition), topic.bounds(partition)
            if number not in start:  # a new one: an empty range says where it begins
                ends[number] = low
                continue
            if not low <= start[number] <= high:
                raise topic.absent(partition, start[number], low, high)
            high = high if self.until is None else min(high, self.until.get(number, low))
            ends[number] = max(start[number], high)
        if isinstance(limit, ReadMaxRows):
            ends = shared(start, ends, limit.max_rows)
        return {**start, **ends}

    def partitions(self, start: Offsets, end: Offsets) -> list[Range]:
        return [
            Range(int(number), start[number], last)
            for number, last in sorted(end.items(), key=lambda item: int(item[0]))
            if number in start and start[number] < last
        ]

    # -- on an executor --------------------------------------------------------------------------

    def read(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, partition: Range
    ) -> Iterator[pa.RecordBatch]:
        return records(self.options, partition)


def shared(start: Offsets, ends: Offsets, rows: int) -> Offsets:
    """Ends that take about ``rows`` records in all, of each partition by what waits there."""
    waiting = {number: end - start.get(number, end) for number, end in ends.items()}
    total = sum(waiting.values())
    if total <= rows:
        return ends
    # Rounded up, so that no partition waits for ever.
    return {
        number: start[number] - (-waiting[number] * rows // total) if waiting[number] else end
        for number, end in ends.items()
    }


@dataclass
class _Held:
    """A connection that outlives a range, and the record that it would give next."""

    topic: Topic
    at: tuple[int, int] | None = None


_HELD: dict[str, _Held] = {}
"""Of this process: Spark's workers live through many micro-batches."""


def _held(options: Mapping[str, str]) -> _Held:
    servers, topic, properties = (options[name] for name in ("servers", "topic", "properties"))
    key = json.dumps([servers, topic, properties])
    if key not in _HELD:
        _HELD[key] = _Held(Topic(Kafka(topic, servers=servers, properties=properties)))
    return _HELD[key]


def records(options: Mapping[str, str], span: Range) -> Iterator[pa.RecordBatch]:
    """The records of a range, in order, as :data:`RECORDS`.

    Raises:
        ConnectionError: the brokers fall silent before the end of the range.
        ValueError: the topic does not have the range, as one that was made anew.
    """
    held = _held(options)
    topic, at, heard = held.topic, span.start, time.monotonic()
    if held.at != (span.number, span.start):  # else what was fetched ahead is taken
        topic.assign({span.number: span.start})
    held.at = None
    while at < span.end:
        try:
            taken = topic.take(min(AT_ONCE, span.end - at), BYTES, LOOK)
        except LookupError:
            raise topic.absent(span.number, at, *topic.bounds(span.number)) from None
        at = taken.behind.get(span.number, at)
        inside = taken if at <= span.end else taken.before(span.number, span.end)
        if inside:
            yield batch_of(inside)
        if taken:
            heard = time.monotonic()
        elif topic.ends.get(span.number, -1) >= span.end:
            break  # what lies between is no message: marks of transactions, or compacted away
        elif time.monotonic() - heard > SILENCE:
            raise ConnectionError(
                f"topic {options['topic']!r}, partition {span.number}: found no message for "
                f"{SILENCE:.0f} s, allowed: those from {at} to {span.end}, which it had."
            )
    held.at = (span.number, at) if at == span.end else None


def batch_of(messages: Messages) -> pa.RecordBatch:
    """Messages as columns."""
    return pa.RecordBatch.from_arrays(
        [
            pa.array(messages.partitions, pa.int32()),
            pa.array(messages.offsets, pa.int64()),
            pa.array(messages.times(), pa.int64()),
            pa.array([m.key() for m in messages.raw], pa.binary()),
            pa.array(messages.values, pa.binary()),
        ],
        schema=RECORDS,
    )
