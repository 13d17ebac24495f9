"""Bytes of an HTTP/2 connection into frames, and header blocks out of several of them.

Source: RFC 9113 §3.4, §4, §6.1, §6.2, §6.10.
"""

import math
from time import monotonic
from typing import TYPE_CHECKING

from drivetrain.serve.transport.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    FRAME_SIZE_ERROR,
    HEAD,
    HEAD_BYTES,
    HEADERS,
    PADDED,
    PREFACE,
    PRIORITIZED,
    PROTOCOL_ERROR,
    SETTINGS,
    STREAM_MOST,
    ConnectionFaultError,
    StreamFaultError,
    unpadded,
)
from drivetrain.serve.transport.http2_control import TAKE

if TYPE_CHECKING:
    from drivetrain.serve.transport.http2 import Connection

FRAME_MOST = 1 << 16
"""The longest payload that is taken."""
_CONTINUATIONS = 32
_PLAIN_HEADERS = END_HEADERS | PADDED | PRIORITIZED


class FrameReader:
    """Reads what a client sends, and gives it to its connection frame by frame.

    Args:
        connection: takes it.
        header_bytes: the bytes of the headers of a request; four times as many compressed ones
            may come before it is enough (CVE-2024-27316).

    Attributes:
        greeted: whether the preface has come.
        partial_since: ``time.monotonic()`` from which a frame or a header block is incomplete;
            inf if none is.
    """

    def __init__(self, connection: "Connection", header_bytes: int) -> None:
        self.greeted = False
        self.partial_since = math.inf
        self._connection = connection
        self._rest = bytearray()
        self._need = len(PREFACE)
        self._expected: int | None = SETTINGS
        self._block = bytearray()
        self._block_of = (0, 0)
        self._block_frames = 0
        self._block_most = 4 * header_bytes

    @property
    def partial(self) -> bool:
        """Whether a frame or a header block is incomplete."""
        return self.partial_since < math.inf

    def _joined(self, data: bytes) -> bytes:
        """What came before and was no whole frame, and this; empty until it is one."""
        rest = self._rest
        rest += data
        if not self.greeted:
            if not PREFACE.startswith(rest[: len(PREFACE)]):
                raise ConnectionFaultError(PROTOCOL_ERROR, "the preface is not that of HTTP/2")
            if len(rest) < len(PREFACE):
                return b""
            self.greeted = True
            del rest[: len(PREFACE)]
        elif len(rest) < self._need:
            return b""
        self._rest = bytearray()
        self._need = 0
        return bytes(rest)

    def feed(self, data: bytes) -> int:
        """Take what came.

        Returns:
            The bytes of content in it, padding included: what it used of the connection's window.

        Raises:
            ConnectionFaultError, HpackError: the connection must end.
        """
        if self._need:
            data = self._joined(data)
        pos, size, received = 0, len(data), 0
        need = HEAD_BYTES
        connection, unpack = self._connection, HEAD.unpack_from
        streams = connection.streams
        while size - pos >= HEAD_BYTES and not connection.ending:
            high, low, kind, flags, number = unpack(data, pos)
            start = pos + HEAD_BYTES
            length = high << 16 | low
            if length > FRAME_MOST:
                raise ConnectionFaultError(
                    FRAME_SIZE_ERROR, f"a frame of {length} bytes, allowed: {FRAME_MOST}"
                )
            end = start + length
            if end > size:
                need += length
                break
            pos = end
            number &= STREAM_MOST
            if self._expected is not None:
                self._check_expected(kind, flags, number)
            try:
                if kind == DATA:
                    received += length
                    stream = streams.get(number)
                    if flags & PADDED or stream is None or stream.ended or not length:
                        self._take_data(number, flags, data[start:end])
                    else:
                        stream.received(data[start:end], length, flags & END_STREAM != 0)
                elif kind == HEADERS:
                    if flags & _PLAIN_HEADERS == END_HEADERS:
                        connection.take_block(number, data[start:end], flags & END_STREAM != 0)
                    else:
                        self._take_headers(number, flags, data[start:end])
                elif kind == CONTINUATION and self._expected is not None:
                    self._take_continuation(number, flags, data[start:end])
                elif kind in TAKE:
                    TAKE[kind](connection, flags, number, data[start:end])
                else:
                    connection.spend(1)  # a kind that is not known is passed over (§4.1)
            except StreamFaultError as fault:
                connection.end_stream(number, fault.code)
        self._keep(data, pos, need)
        return received

    def _keep(self, data: bytes, pos: int, need: int) -> None:
        """Keep what is no whole frame yet."""
        if pos < len(data):
            self._rest += data[pos:]
            self._need = need
        if not self._need and self._expected is None:
            self.partial_since = math.inf
        elif self.partial_since == math.inf or (pos and self._expected is None):
            self.partial_since = monotonic()

    def _check_expected(self, kind: int, flags: int, number: int) -> None:
        """See that the frame is the one that must come next (§3.4, §6.2)."""
        if self._expected == SETTINGS:
            if kind != SETTINGS or flags & ACK:
                raise ConnectionFaultError(PROTOCOL_ERROR, "the first frame is not SETTINGS")
            self._expected = None
        elif kind != CONTINUATION or number != self._block_of[0]:
            raise ConnectionFaultError(PROTOCOL_ERROR, "a frame between HEADERS and CONTINUATION")

    def _take_data(self, number: int, flags: int, payload: bytes) -> None:
        """DATA that is padded, or for which there is no open stream."""
        content = unpadded(payload) if flags & PADDED else payload
        if not content and not flags & END_STREAM:
            self._connection.spend(1)
        stream = self._connection.streams.get(number)
        if stream is None or stream.ended:
            self._connection.check_closed(number)
        else:
            stream.received(content, len(payload), flags & END_STREAM != 0)

    def _take_headers(self, number: int, flags: int, payload: bytes) -> None:
        if flags & PADDED:
            payload = unpadded(payload)
        if flags & PRIORITIZED:
            if len(payload) < 5:
                raise ConnectionFaultError(FRAME_SIZE_ERROR, "HEADERS without their priority")
            payload = payload[5:]
        if flags & END_HEADERS:
            self._connection.take_block(number, payload, flags & END_STREAM != 0)
            return
        self._expected = CONTINUATION
        self._block_of = (number, flags)
        self._block_frames = 0
        self._block = bytearray(payload)

    def _take_continuation(self, number: int, flags: int, payload: bytes) -> None:
        self._block_frames += 1
        self._block += payload
        if len(self._block) > self._block_most or self._block_frames > _CONTINUATIONS:
            raise ConnectionFaultError(ENHANCE_YOUR_CALM, "headers that do not end")
        if flags & END_HEADERS:
            self._expected = None
            block, self._block = bytes(self._block), bytearray()
            self._connection.take_block(number, block, self._block_of[1] & END_STREAM != 0)
