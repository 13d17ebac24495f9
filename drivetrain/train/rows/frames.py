"""The messages between workers and the servers of rows: a header, checked lengths, arrays.

A frame is a header of 24 bytes, little-endian: ``DTPS``, its kind, how many tables it speaks of,
the bytes that follow, and a number. Ids travel as places in the server's shard, values and
gradients as float32. There is no pickle, and whoever connects shows a token first.
"""

import socket
import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from drivetrain.train.rows.spread import Ids, Rows

HELLO, PULL, PEEK, PUSH, ROWS, ERROR = range(1, 7)
TOKEN_BYTES = 16
MOST_BYTES = 1 << 30
"""Of one frame."""

_HEADER = struct.Struct("<4sHHqq")
_MAGIC = b"DTPS"
_RATE = struct.Struct("<d")
_TIME = struct.Struct("@ll")
"""The system's ``timeval``: seconds and microseconds."""


class Frame(NamedTuple):
    """A header that was read.

    Attributes:
        kind: one of this module's.
        tables: how many it speaks of.
        length: of what follows, in bytes.
        number: the rank that says hello, the updates that a pull needs, the update of a push.
    """

    kind: int
    tables: int
    length: int
    number: int


def prepare(connection: socket.socket, seconds: float | None) -> None:
    """Send at once, and wait for the other side no longer than so; None waits for ever.

    The kernel bounds the waits. Python's own time-out asks it before each call whether that would
    wait, which doubles the calls.
    """
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    most = _TIME.pack(*divmod(round((seconds or 0) * 1e6), 1_000_000))
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        connection.setsockopt(socket.SOL_SOCKET, option, most)


class Reader:
    """Reads frames from a socket, whatever has come with one call of the system.

    Args:
        connection: as :func:`prepare` leaves it.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._header = memoryview(bytearray(_HEADER.size))
        self._body = bytearray(1 << 16)
        self._come = memoryview(bytearray(1 << 16))
        self._at = self._end = 0

    def frame(self) -> Frame:
        """The next header.

        Raises:
            ConnectionError: the other side has gone, or speaks something else.
            TimeoutError: nothing came in time.
        """
        self.into(self._header)
        magic, kind, tables, length, number = _HEADER.unpack(self._header)
        if magic != _MAGIC or not HELLO <= kind <= ERROR or not 0 <= length <= MOST_BYTES:
            raise ConnectionError(f"no frame of rows: {bytes(self._header)!r}")
        return Frame(kind, tables, length, number)

    def body(self, length: int) -> memoryview:
        """So many bytes, which stand until the next call."""
        if len(self._body) < length:
            self._body = bytearray(length)
        view = memoryview(self._body)[:length]
        self.into(view)
        return view

    def into(self, view: memoryview) -> None:
        """Fill all of ``view``."""
        at, size = 0, len(view)
        while True:
            count = min(self._end - self._at, size - at)
            view[at : at + count] = self._come[self._at : self._at + count]
            self._at += count
            at += count
            if at == size:
                return
            if size - at < len(self._come):  # what comes behind it is kept
                self._at, self._end = 0, self._receive(self._come)
            else:
                at += self._receive(view[at:])

    def _receive(self, view: memoryview) -> int:
        try:
            count = self._connection.recv_into(view)
        except BlockingIOError:
            raise TimeoutError("nothing came in time") from None
        if not count:
            raise ConnectionError("the other side closed the connection")
        return count


def send(
    connection: socket.socket,
    kind: int,
    number: int,
    parts: Sequence[bytes | Ids | Rows],
    tables: int = 0,
) -> None:
    """Send a frame, in one call of the system where it fits.

    Raises:
        ConnectionError: the other side has gone.
        TimeoutError: it does not read.
        ValueError: more than :data:`MOST_BYTES`.
    """
    views = [
        (memoryview(part) if isinstance(part, bytes) else part.data).cast("B")
        for part in parts
        if len(part)
    ]
    length = sum(map(len, views))
    if length > MOST_BYTES:
        raise ValueError(f"a frame of rows: found {length} bytes, allowed: {MOST_BYTES}.")
    waiting = [memoryview(_HEADER.pack(_MAGIC, kind, tables, length, number)), *views]
    sent = _sent(connection, waiting)
    if sent == _HEADER.size + length:
        return
    while True:
        while waiting and sent >= len(waiting[0]):
            sent -= len(waiting.pop(0))
        if not waiting:
            return
        waiting[0] = waiting[0][sent:]
        sent = _sent(connection, waiting)


def _sent(connection: socket.socket, waiting: list[memoryview]) -> int:
    try:
        return connection.sendmsg(waiting)
    except BlockingIOError:
        raise TimeoutError("the other side does not read") from None


def request(places: Sequence[Ids]) -> list[bytes | Ids | Rows]:
    """The body of a pull: how many places of each table, and the places."""
    return [np.array([len(p) for p in places], np.int64), *places]


def read_request(body: memoryview, tables: int) -> list[Ids]:
    """The places of each table.

    Raises:
        ConnectionError: the lengths do not add up.
    """
    places, end = _places(body, tables)
    if end != len(body):
        raise ConnectionError(f"a pull of {len(body)} bytes, of which {end} are places")
    return places


def update(places: Sequence[Ids], gradients: Sequence[Rows], lr: float) -> list[bytes | Ids | Rows]:
    """The body of a push: the learning rate, a pull's body, and a gradient for each place."""
    return [_RATE.pack(lr), *request(places), *gradients]


def read_update(body: memoryview, dims: Sequence[int]) -> tuple[float, list[Ids], list[Rows]]:
    """The learning rate, the places and the gradients of each table, in memory of their own.

    Raises:
        ConnectionError: the lengths do not add up.
    """
    if len(body) < _RATE.size:
        raise ConnectionError(f"a push of {len(body)} bytes")
    (lr,) = _RATE.unpack_from(body)
    places, end = _places(body[_RATE.size :], len(dims))
    end += _RATE.size
    cells = [len(ids) * dim for ids, dim in zip(places, dims, strict=True)]
    if end + 4 * sum(cells) != len(body):
        raise ConnectionError(f"a push of {len(body)} bytes, of which {end} are places")
    gradients: list[Rows] = []
    for count, dim in zip(cells, dims, strict=True):
        flat = np.frombuffer(body, np.float32, count, end)
        gradients.append(flat.reshape(-1, dim).copy())
        end += flat.nbytes
    return lr, [ids.copy() for ids in places], gradients


def _places(body: memoryview, tables: int) -> tuple[list[Ids], int]:
    """The places of each table, and where they end."""
    if len(body) < 8 * tables:
        raise ConnectionError(f"{len(body)} bytes for {tables} tables")
    counts = np.frombuffer(body, np.int64, tables).tolist()
    most = len(body) // 8 - tables
    if not all(0 <= count <= most for count in counts) or sum(counts) > most:
        raise ConnectionError(f"{len(body)} bytes for {counts} places")
    found: list[Ids] = []
    at = 8 * tables
    for count in counts:
        found.append(np.frombuffer(body, np.int64, count, at))
        at += 8 * count
    return found, at
