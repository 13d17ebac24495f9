"""The table of messages that do not fit: each of them there once, with the reason."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from drivetrain.core.schema import Field, Schema
from drivetrain.events.lake.lake import Lake
from drivetrain.events.lake.snapshot import Snapshot
from drivetrain.events.reading.arrow import arrow_schema
from drivetrain.events.topic.messages import Messages, Refused, micros
from drivetrain.events.topic.places import Places

SCHEMA = Schema(
    (
        Field("topic", "string"),
        Field("partition", "int64"),
        Field("offset", "int64"),
        Field("timestamp", "timestamp"),
        Field("key", "bytes"),
        Field("value", "bytes"),
        Field("reason", "string"),
    )
)


Mark = tuple[int, int, int, bytes | None]
"""A message, of whichever topic of that name: partition, offset, time, SHA-256 of the value."""

CHUNK = 10_000
"""Dead letters that are looked at at a time."""


@dataclass
class Buried:
    """Which messages lie in a table of dead letters already.

    What lies behind its positions is new. Of a batch that is read again the rest is looked for in
    the table, since steps that were changed meanwhile may refuse other messages.

    Attributes:
        path: of the table.
        ends: its positions.
        since: where the table of rows stands; no message before that is read again.
    """

    path: str
    ends: Mapping[int, int]
    since: Mapping[int, int] = field(default_factory=dict[int, int])
    _marks: set[Mark] | None = field(default=None, repr=False)

    def lacks(self, message: Any) -> bool:
        """Whether it has not got a message.

        Raises:
            OSError: the table cannot be read.
        """
        partition, offset, value = message.partition(), message.offset(), message.value()
        if offset >= self.ends.get(partition, 0):
            return True
        if self._marks is None:
            self._marks = self._read(message.topic())
        return _mark(partition, offset, micros(message), value) not in self._marks

    def past(self, behind: Mapping[int, int]) -> dict[int, int]:
        """The positions behind a batch as the table is to keep them.

        A batch that is read again may have other borders, and end before what lies here already.
        """
        return {n: at for n, at in behind.items() if at > self.ends.get(n, 0)}

    def add(self, rows: pa.Table, past: Mapping[int, int]) -> None:
        """Know of rows that were written, with the positions that went with them."""
        self.ends = {**self.ends, **past}
        if self._marks is not None:
            self._marks |= _marks(rows)

    def _read(self, topic: str) -> set[Mark]:
        """What lies in the table of the messages that may be read again."""
        snapshot = Snapshot.open(self.path)
        found: set[Mark] = set()
        columns = SCHEMA.select(("topic", "partition", "offset", "timestamp", "value"))
        for chunk in snapshot.chunks(columns, CHUNK):
            partitions, offsets = chunk["partition"].to_numpy(), chunk["offset"].to_numpy()
            mine = np.zeros(len(chunk), bool)
            for partition, end in self.ends.items():
                within = (offsets >= self.since.get(partition, 0)) & (offsets < end)
                mine |= (partitions == partition) & within
            kept = chunk.filter(pa.array(mine))
            found |= _marks(kept.filter(pa.array([t == topic for t in kept["topic"].to_pylist()])))
        return found


class DeadLetters:
    """The dead letters of one stream, committed before the rows of their batch.

    Args:
        path: of the table.
        writer: the stream's name.
        places: how positions are named.
        since: where the table of rows stands; no message before that is read again.

    Raises:
        OSError: the table cannot be read.
        ValueError: it has other columns.
    """

    def __init__(
        self, path: str, writer: str, places: Places, since: Mapping[int, int] | None = None
    ) -> None:
        self._lake = Lake.open(path, SCHEMA)
        self._writer, self._places = writer, places
        ends = places.positions(self._lake.positions(writer))
        self.buried = Buried(path, ends, dict(since or {}))

    def bury(
        self, messages: Messages, refused: Sequence[Refused], behind: Mapping[int, int]
    ) -> int:
        """Write the refused ones of a batch; how many were not there yet.

        Args:
            messages: the batch.
            refused: which of them, and why.
            behind: the positions behind the batch.
        """
        new = [item for item in refused if self.buried.lacks(messages.raw[item.message])]
        if not new:
            return 0
        found, past = letters(messages, new), self.buried.past(behind)
        self._lake.append(found, self._writer, self._places.kept(past))
        self.buried.add(found, past)
        return len(new)


def _marks(rows: pa.Table) -> set[Mark]:
    columns = (rows[name].to_pylist() for name in ("partition", "offset"))
    times = rows["timestamp"].cast(pa.int64()).fill_null(-1).to_pylist()
    return set(map(_mark, *columns, times, rows["value"].to_pylist()))


def _mark(partition: int, offset: int, time: int, value: bytes | str | None) -> Mark:
    data = _bytes(value)
    return partition, offset, time, None if data is None else hashlib.sha256(data).digest()


def letters(messages: Messages, refused: Sequence[Refused]) -> pa.Table:
    """The rows of :data:`SCHEMA` of those messages that are refused."""
    raw = [messages.raw[item.message] for item in refused]
    times = [time if time >= 0 else None for time in map(micros, raw)]
    columns = [
        [m.topic() for m in raw],
        [m.partition() for m in raw],
        [m.offset() for m in raw],
        pa.array(times, pa.int64()).cast(pa.timestamp("us")),
        [_bytes(m.key()) for m in raw],
        [_bytes(m.value()) for m in raw],
        [item.reason for item in refused],
    ]
    schema = arrow_schema(SCHEMA)
    return pa.table(
        [
            pa.array(c, f.type) if isinstance(c, list) else c
            for c, f in zip(columns, schema, strict=True)
        ],
        schema=schema,
    )


def _bytes(value: bytes | str | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value
