"""Frames of HTTP/2 that carry no request, what each may be, and how many are too many."""

from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING

from drivetrain.serve.transport import frames
from drivetrain.serve.transport.frames import (
    ACK,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    LONG,
    PROTOCOL_ERROR,
    WINDOW_MOST,
    ConnectionFaultError,
    StreamFaultError,
    frame,
)

if TYPE_CHECKING:
    from drivetrain.serve.transport.http2 import Connection

DRAIN_PING = b"draining"
"""Goes out with the first GOAWAY; its answer shows that the client has read that."""

_YOUNG_SECONDS = 0.01
"""A client that gives a stream up sooner has not waited for its answer."""
_SMALL_WINDOW = 256
_FUTILE = 10_000
_FUTILE_PER_SECOND = 1000
_FUTILE_PER_REQUEST = 4
FAULT_COST = 10


class Futile:
    """What a client may make a server do for nothing, before the connection is ended.

    Frames that bring no request on cost 1; a stream that is reset as soon as it was opened, or
    for its faults, costs 10 (CVE-2019-9512, -9514, -9515, -9518, CVE-2023-44487, CVE-2025-8671).
    Time earns it back, and so do requests, for clients ping while they call.
    """

    __slots__ = ("_left", "_requests", "_since")

    def __init__(self) -> None:
        self._left = _FUTILE
        self._since = monotonic()
        self._requests = 0

    def spend(self, cost: int, last: int) -> None:
        """Take from it.

        Args:
            cost: how much.
            last: the number of the newest stream; every second number is a request.

        Raises:
            ConnectionFaultError: there is nothing left.
        """
        self._left -= cost
        if self._left >= 0:
            return
        now, requests = monotonic(), last // 2
        seconds = now - self._since
        earned = seconds * _FUTILE_PER_SECOND + (requests - self._requests) * _FUTILE_PER_REQUEST
        self._since, self._requests = now, requests
        self._left = min(_FUTILE, self._left + int(earned))
        if self._left < 0:
            raise ConnectionFaultError(
                frames.ENHANCE_YOUR_CALM, "the connection brings too much that is not a request"
            )


def _of_connection(number: int, what: str) -> None:
    if number:
        raise ConnectionFaultError(PROTOCOL_ERROR, f"{what} on a stream")


def _sized(payload: bytes, size: int, what: str) -> None:
    if len(payload) != size:
        raise ConnectionFaultError(
            FRAME_SIZE_ERROR, f"{what} of {len(payload)} bytes, allowed: {size}"
        )


def take_priority(connection: "Connection", flags: int, number: int, payload: bytes) -> None:
    """PRIORITY: means nothing any more (RFC 9113 §5.3.2)."""
    if not number:
        raise ConnectionFaultError(PROTOCOL_ERROR, "PRIORITY on no stream")
    if len(payload) != 5:
        if connection.idle_number(number):
            raise ConnectionFaultError(FRAME_SIZE_ERROR, "PRIORITY of another size than 5")
        raise StreamFaultError(FRAME_SIZE_ERROR)
    connection.spend(1)


def take_reset(connection: "Connection", flags: int, number: int, payload: bytes) -> None:
    """RST_STREAM."""
    _sized(payload, 4, "RST_STREAM")
    if connection.idle_number(number):
        raise ConnectionFaultError(PROTOCOL_ERROR, "RST_STREAM on a stream that is idle")
    stream = connection.streams.get(number)
    if stream is None:
        connection.spend(1)
        return
    stream.lost()
    connection.spend(FAULT_COST if monotonic() - stream.opened < _YOUNG_SECONDS else 1)


def take_settings(connection: "Connection", flags: int, number: int, payload: bytes) -> None:
    """SETTINGS."""
    _of_connection(number, "SETTINGS")
    connection.spend(1)
    if flags & ACK:
        _sized(payload, 0, "an acknowledgement of SETTINGS")
        return
    if len(payload) % 6:
        raise ConnectionFaultError(FRAME_SIZE_ERROR, "SETTINGS of no whole number of settings")
    window = connection.initial_window
    for name, value in frames.SETTING.iter_unpack(payload):
        if name == frames.INITIAL_WINDOW_SIZE:
            if value > WINDOW_MOST:
                raise ConnectionFaultError(FLOW_CONTROL_ERROR, "an initial window above 2^31 - 1")
            window = value
        elif name == frames.MAX_FRAME_SIZE:
            if not frames.FRAME_BYTES <= value < 1 << 24:
                raise ConnectionFaultError(PROTOCOL_ERROR, "a frame size that is not allowed")
            connection.frame_bytes = value
        elif name == frames.ENABLE_PUSH and value > 1:
            raise ConnectionFaultError(PROTOCOL_ERROR, "SETTINGS_ENABLE_PUSH above 1")
        elif name == frames.HEADER_TABLE_SIZE:
            connection.resized = True
    if window != connection.initial_window:
        connection.spend(len(connection.streams))  # each may get a frame of a byte (CVE-2019-9511)
    connection.write(frame(frames.SETTINGS, ACK, 0))
    # Behind it: what a wider window lets go is too much for a client that has not heard yet that
    # its window is taken for the wider one.
    connection.set_initial_window(window)


def take_push(connection: "Connection", flags: int, number: int, payload: bytes) -> None:
    """PUSH_PROMISE: no client may send it."""
    raise ConnectionFaultError(PROTOCOL_ERROR, "PUSH_PROMISE from a client")


def take_ping(connection: "Connection", flags: int, number: int, payload: bytes) -> None:
    """PING."""
    _of_connection(number, "PING")
    _sized(payload, 8, "PING")
    connection.spend(1)
    if not flags & ACK:
        connection.write(frame(frames.PING, ACK, 0, payload))
    elif payload == DRAIN_PING:
        connection.finalise()


def take_goaway(connection: "Connection", flags: int, number: int, payload: bytes) -> None:
    """GOAWAY: the client goes when it has its answers."""
    _of_connection(number, "GOAWAY")
    if len(payload) < 8:
        raise ConnectionFaultError(FRAME_SIZE_ERROR, "GOAWAY of less than 8 bytes")
    connection.spend(1)
    connection.depart()


def take_window(connection: "Connection", flags: int, number: int, payload: bytes) -> None:
    """WINDOW_UPDATE."""
    _sized(payload, 4, "WINDOW_UPDATE")
    size = LONG.unpack(payload)[0] & WINDOW_MOST
    stream = connection.streams.get(number)
    if size < _SMALL_WINDOW or (number and stream is None):
        connection.spend(1)  # else what is sent could be drawn out byte by byte
    if number:
        if connection.idle_number(number):
            raise ConnectionFaultError(PROTOCOL_ERROR, "WINDOW_UPDATE on a stream that is idle")
        if not size:
            raise StreamFaultError(PROTOCOL_ERROR)
        if stream is not None:
            stream.widen(size)
        return
    if not size:
        raise ConnectionFaultError(PROTOCOL_ERROR, "WINDOW_UPDATE by nothing")
    connection.window += size
    if connection.window > WINDOW_MOST:
        raise ConnectionFaultError(FLOW_CONTROL_ERROR, "a window above 2^31 - 1")
    connection.pump()


def take_stray_continuation(
    connection: "Connection", flags: int, number: int, payload: bytes
) -> None:
    """CONTINUATION where there is nothing to continue."""
    raise ConnectionFaultError(PROTOCOL_ERROR, "CONTINUATION without HEADERS")


TAKE: dict[int, Callable[["Connection", int, int, bytes], None]] = {
    frames.PRIORITY: take_priority,
    frames.RST_STREAM: take_reset,
    frames.SETTINGS: take_settings,
    frames.PUSH_PROMISE: take_push,
    frames.PING: take_ping,
    frames.GOAWAY: take_goaway,
    frames.WINDOW_UPDATE: take_window,
    frames.CONTINUATION: take_stray_continuation,
}
"""What is done with each kind of frame but HEADERS and DATA."""
