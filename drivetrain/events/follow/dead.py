"""The table of messages that do not fit: each of them there once, with the reason."""

from collections.abc import Mapping, Sequence

import pyarrow as pa

from drivetrain.core.schema import Field, Schema
from drivetrain.events.lake.lake import Lake
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


class DeadLetters:
    """The dead letters of one stream.

    They are committed before the rows of their batch, with positions of their own: a batch that is
    read again writes only those that are behind them.

    Args:
        path: of the table.
        writer: the stream's name.
        places: how positions are named.

    Raises:
        OSError: the table cannot be read.
        ValueError: it has other columns.
    """

    def __init__(self, path: str, writer: str, places: Places) -> None:
        self._lake = Lake.open(path, SCHEMA)
        self._writer, self._places = writer, places
        self._at = places.positions(self._lake.positions(writer))

    def bury(
        self, messages: Messages, refused: Sequence[Refused], behind: Mapping[int, int]
    ) -> int:
        """Write the refused ones of a batch; how many were not there yet.

        Args:
            messages: the batch.
            refused: which of them, and why.
            behind: the positions behind the batch.
        """
        new = [
            item
            for item in refused
            if (raw := messages.raw[item.message]).offset() >= self._at.get(raw.partition(), 0)
        ]
        if not new:
            return 0
        # A batch that is read again may have other borders, and end before what lies here already.
        past = {n: max(at, self._at.get(n, 0)) for n, at in behind.items()}
        self._lake.append(letters(messages, new), self._writer, self._places.kept(past))
        self._at |= past
        return len(new)


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
