"""Frames of HTTP/2 (RFC 9113 §4, §6, §7): their kinds, flags, error codes, and their bytes."""

from struct import Struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

(
    DATA,
    HEADERS,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    PUSH_PROMISE,
    PING,
    GOAWAY,
    WINDOW_UPDATE,
    CONTINUATION,
) = range(10)

END_STREAM = ACK = 0x01
END_HEADERS = 0x04
PADDED = 0x08
PRIORITIZED = 0x20

(
    NO_ERROR,
    PROTOCOL_ERROR,
    INTERNAL_ERROR,
    FLOW_CONTROL_ERROR,
    SETTINGS_TIMEOUT,
    STREAM_CLOSED,
    FRAME_SIZE_ERROR,
    REFUSED_STREAM,
    CANCEL,
    COMPRESSION_ERROR,
    CONNECT_ERROR,
    ENHANCE_YOUR_CALM,
) = range(12)

HEADER_TABLE_SIZE = 1
ENABLE_PUSH = 2
MAX_CONCURRENT_STREAMS = 3
INITIAL_WINDOW_SIZE = 4
MAX_FRAME_SIZE = 5
MAX_HEADER_LIST_SIZE = 6
NO_RFC7540_PRIORITIES = 9

HEAD_BYTES = 9
FRAME_BYTES = 1 << 14
"""The longest frame that every peer takes."""
WINDOW_BYTES = (1 << 16) - 1
"""A window before anything was said of it."""
WINDOW_MOST = (1 << 31) - 1
STREAM_MOST = (1 << 31) - 1

HEAD = Struct(">BHBBL")
"""Length in two parts, kind, flags, stream."""
LONG = Struct(">L")
SETTING = Struct(">HL")
HEAD_OF_GOAWAY = Struct(">LL")


class ConnectionFaultError(Exception):
    """A peer's error that ends the connection (RFC 9113 §5.4.1)."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class StreamFaultError(Exception):
    """A peer's error that ends one stream (RFC 9113 §5.4.2)."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    size = len(payload)
    return HEAD.pack(size >> 16, size & 0xFFFF, kind, flags, stream) + payload


def unpadded(payload: bytes) -> bytes:
    """What lies between the length of the padding and the padding (§6.1).

    Raises:
        ConnectionFaultError: there is more padding than payload.
    """
    if not payload or payload[0] >= len(payload):
        raise ConnectionFaultError(PROTOCOL_ERROR, "a frame has more padding than payload")
    return payload[1 : len(payload) - payload[0]]
