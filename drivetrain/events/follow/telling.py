"""Tells a server's alias the rows that a stream has committed, each once.

The server says how far it was told each source, and ignores what it has. So it is asked before it
is told, and where it lacks more than the newest batch, because it or this process was away, the
messages between are read again. What is told is always what begins where the server stands.
"""

import base64
import http.client
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa

from drivetrain.core.batch import Array
from drivetrain.core.errors import wrong
from drivetrain.events.duckdb import Engine, Limits
from drivetrain.events.follow.cleaning import Cleaning
from drivetrain.events.plan import compile_plan
from drivetrain.events.stream import Stream
from drivetrain.events.topic.messages import Reading
from drivetrain.events.topic.places import Places
from drivetrain.events.topic.topic import Topic

ROWS = 1_000
"""Rows in one post, more only where one message has more."""

SECONDS = 30.0
"""How long a server may take to answer."""


class Server:
    """One address that is told of observations.

    Args:
        address: such as ``http://127.0.0.1:8080/observe/flights``.
        token: what it asks its clients for, if anything.
    """

    def __init__(self, address: str, token: str | None = None) -> None:
        self.address = address
        parts = urlsplit(address)
        kind = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        self._connection = kind(parts.netloc, timeout=SECONDS)
        self._path = parts.path or "/"
        self._headers = {"Content-Type": "application/json"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"

    def state(self) -> tuple[dict[str, int], tuple[str, ...]]:
        """How far it was told each source, and the columns that it observes.

        Raises:
            ConnectionError: it does not answer.
            ValueError: it refuses.
        """
        found = self._ask("GET", None)
        positions = {str(source): int(at) for source, at in found["positions"].items()}
        return positions, tuple(found["columns"])

    def tell(self, rows: Sequence[Mapping[str, Any]], source: str, offset: int) -> None:
        """Tell it rows, and the position behind them; raises as :meth:`state` does."""
        self._ask("POST", {"rows": rows, "source": source, "offset": offset})

    def _ask(self, method: str, body: Any) -> Any:
        data = None if body is None else json.dumps(body).encode()
        try:
            self._connection.request(method, self._path, data, self._headers)
            answer = self._connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise ConnectionError(f"{self.address} does not answer: {error}") from error
        if answer.status == 200:
            return json.loads(text)
        said = text.decode(errors="replace")[:500]
        if answer.status >= 500 or answer.status == 429:
            raise ConnectionError(f"{self.address} answers with status {answer.status}: {said}")
        raise wrong(f"observe {self.address}", f"status {answer.status}: {said}", "status 200")

    def close(self) -> None:
        """Let go of the connection."""
        self._connection.close()


@dataclass(frozen=True)
class Batch:
    """Rows that were just committed.

    Attributes:
        table: the rows.
        partitions: int64 ``[rows]``: of the message of each.
        offsets: int64 ``[rows]``: the same; within a partition they ascend.
        begun: where each partition of the batch began.
    """

    table: pa.Table
    partitions: Array
    offsets: Array
    begun: Mapping[int, int]


@dataclass
class Told:
    """What is known of one server.

    Attributes:
        server: itself.
        confirmed: of each source, the position that it said it has.
        done: of each source, the position before which it lacks no row.
        away: whether it did not answer last time.
        columns: that it is told; none before it has answered.
        reading: makes rows of messages that are read again.
        cleaning: runs the steps that these columns need.
    """

    server: Server
    confirmed: dict[str, int | None] = field(default_factory=dict[str, "int | None"])
    done: dict[str, int] = field(default_factory=dict[str, int])
    away: bool = False
    columns: tuple[str, ...] = ()
    reading: Reading | None = None
    cleaning: Cleaning | None = None


class Telling:
    """Keeps servers told.

    Args:
        stream: names the servers and the columns.
        running: runs the plan for rows that are read again.
        token: what the servers ask for.
        say: hears that one is away, and back.

    Raises:
        ValueError: a column is not in the table, or is a window.
    """

    def __init__(
        self, stream: Stream, running: Engine, token: str | None, say: Callable[[str], None]
    ) -> None:
        self._stream, self._say = stream, say
        self._servers = [Told(Server(address, token)) for address in stream.observe]
        self._running = running
        self._topic: Topic | None = None
        self._schema = stream.events.schema
        self._schema.select(stream.observed, "Stream.observed")
        for told in self._servers if stream.observed else ():
            self._ready(told, stream.observed)

    def _ready(self, told: Told, columns: Sequence[str]) -> None:
        """Learn which columns a server is told, and compile what gives them."""
        told.columns = tuple(name for name in columns if name in self._schema)
        events, limits = self._stream.events, Limits()
        if not told.columns:
            raise wrong(f"observe {told.server.address}", columns, "a column of the table")
        # A message that fails in a step of another column is not in the table either. Steps that
        # remember are left out if they can be: a server has windows of its own.
        plan = compile_plan(events, self._schema.names, self._running, limits, split=False)
        if plan.stateful:
            plan = compile_plan(events, told.columns, self._running, limits, split=False)
        if plan.stateful:
            allowed = "columns that are no windows: a server has windows of its own"
            raise wrong("Stream.observed", told.columns, allowed)
        told.reading = Reading(self._stream.topic, plan.reads)
        told.cleaning = Cleaning(plan, aside=True)

    def close(self) -> None:
        """Let go of all connections."""
        for each in self._servers:
            each.server.close()
        if self._topic is not None:
            self._topic.close()

    def tell(self, places: Places, at: Mapping[int, int], batch: Batch | None = None) -> bool:
        """Tell each server what it lacks, some of it if that is much; one that is away is left.

        Args:
            places: how sources are named.
            at: the positions that the table has.
            batch: what was just committed, if anything.

        Returns:
            Whether none that answers lacks anything now.
        """
        whole = True
        for told in self._servers:
            try:
                whole &= self._one(told, places, at, batch)
            except ConnectionError as error:
                if not told.away:
                    self._say(f"{error}: waiting for it; rows go on to the table")
                told.away = True
            else:
                if told.away:
                    self._say(f"{told.server.address} answers again")
                told.away = False
        return whole

    def _one(self, told: Told, places: Places, at: Mapping[int, int], batch: Batch | None) -> bool:
        known, columns = told.server.state()
        if not told.columns:
            self._ready(told, columns)
        for partition, end in at.items():
            source = places.source(partition)
            held = known.get(source)
            if source not in told.done or held != told.confirmed.get(source):
                told.done[source] = self._start(partition) if held is None else held
                told.confirmed[source] = held
            begin = told.done[source]
            if begin >= end:
                continue
            if batch is not None and batch.begun.get(partition) == begin:
                mine = np.flatnonzero(batch.partitions == partition)
                table, offsets = batch.table.take(pa.array(mine)), batch.offsets[mine]
            else:
                table, offsets, end = self._again(told, partition, begin, end)
            self._post(told, source, table, offsets, end)
            told.done[source] = end
        return all(told.done[places.source(n)] >= end for n, end in at.items())

    def _post(self, told: Told, source: str, table: pa.Table, offsets: Array, end: int) -> None:
        """Tell a server rows, the rows of one message always together."""
        rows = [*map(_plain, table.select(list(told.columns)).to_pylist())]
        start = 0
        while start < len(rows):
            stop = min(start + ROWS, len(rows))
            stop = int(np.searchsorted(offsets, offsets[stop - 1], "right"))
            offset = end if stop == len(rows) else int(offsets[stop - 1]) + 1
            told.server.tell(rows[start:stop], source, offset)
            told.confirmed[source] = offset
            start = stop

    def _start(self, partition: int) -> int:
        topic = self._reader()
        return max(topic.starts([partition])[partition], topic.bounds(partition)[0])

    def _again(
        self, told: Told, partition: int, begin: int, end: int
    ) -> tuple[pa.Table, Array, int]:
        """Rows of messages that were committed before, and the position behind them."""
        for messages in self._reader().within(partition, begin, end, self._stream.messages):
            assert told.reading is not None
            assert told.cleaning is not None
            found = told.cleaning(told.reading(messages))
            return found.table, messages.offsets[found.origin], messages.behind[partition]
        return pa.table({name: [] for name in told.columns}), np.empty(0, np.int64), end

    def _reader(self) -> Topic:
        if self._topic is None:
            self._topic = Topic(self._stream.topic)
        return self._topic


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _value(value) for name, value in row.items()}


def _value(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return None if isinstance(value, float) and not math.isfinite(value) else value
