"""gRPC over HTTP/2: statuses, messages in their frames, and calls with one message each way.

A unary call comes to the application as an :class:`GrpcExchange`, like any other request: its
``target`` is ``/package.Service/Method``, its ``body`` the message, and
``respond(200, message)`` answers it. A method that streams is answered by whoever takes its
:class:`drivetrain.serve.transport.grpc_stream.GrpcStream`.

Source: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md and, for which status an
error of the transport has, doc/statuscodes.md beside it.
"""

import re
from enum import IntEnum
from functools import cache
from typing import TYPE_CHECKING

from drivetrain.serve.transport.coding import check_coding, inflate
from drivetrain.serve.transport.exchange import Exchange, RefusedError
from drivetrain.serve.transport.hpack import encode, line_fields, name_prefix, plain_string

if TYPE_CHECKING:
    from drivetrain.serve.transport.http2_request import Request

GRPC = b"application/grpc"
PREFIX_BYTES = 5
"""Before each message: whether it is compressed, and its length in four bytes."""


class GrpcStatus(IntEnum):
    """How a call ended."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


_OF_HTTP = {
    200: GrpcStatus.OK,
    400: GrpcStatus.INVALID_ARGUMENT,
    401: GrpcStatus.UNAUTHENTICATED,
    403: GrpcStatus.PERMISSION_DENIED,
    404: GrpcStatus.NOT_FOUND,
    405: GrpcStatus.UNIMPLEMENTED,
    408: GrpcStatus.DEADLINE_EXCEEDED,
    409: GrpcStatus.FAILED_PRECONDITION,
    412: GrpcStatus.FAILED_PRECONDITION,
    413: GrpcStatus.RESOURCE_EXHAUSTED,
    414: GrpcStatus.INVALID_ARGUMENT,
    415: GrpcStatus.UNIMPLEMENTED,
    417: GrpcStatus.INVALID_ARGUMENT,
    422: GrpcStatus.INVALID_ARGUMENT,
    429: GrpcStatus.UNAVAILABLE,
    431: GrpcStatus.RESOURCE_EXHAUSTED,
    499: GrpcStatus.CANCELLED,
    500: GrpcStatus.INTERNAL,
    501: GrpcStatus.UNIMPLEMENTED,
    503: GrpcStatus.UNAVAILABLE,
    504: GrpcStatus.DEADLINE_EXCEEDED,
}
_MESSAGE_BYTES = 2048
"""Of an error's text: clients take 8 KiB of headers in all."""
_ESCAPED = re.compile(rb"[^\x20-\x24\x26-\x7e]")

HEADERS = encode([(b":status", b"200"), (b"content-type", GRPC)])
_TRAILERS_OK = encode([(b"grpc-status", b"0")])
_ACCEPTED = encode([(b"grpc-accept-encoding", b"identity,gzip,deflate")])
_MESSAGE = name_prefix(b"grpc-message")
_PUSHBACK = name_prefix(b"grpc-retry-pushback-ms")
_RETRY = re.compile(rb"(?:^|\r\n)retry-after: ([0-9]{1,6})\r\n", re.IGNORECASE)


class GrpcExchange(Exchange):
    """A call of a unary method.

    ``body`` is the message. ``deadline`` is what the client's ``grpc-timeout`` makes. Of the
    metadata ``headers`` has what means something to the server, ``x-request-id`` among it.

    ``respond(200, message, extra=lines)`` answers OK; the lines become initial metadata.
    ``respond`` or ``refuse`` with another status of HTTP ends the call with the status of gRPC
    that :func:`of_http` gives; ``fail`` names that directly. ``on_gone`` is called when the
    client has cancelled the call or has gone.
    """

    __slots__ = ("_stream", "_transport", "_was_answered")

    missing = 501
    """It is the method that is not there; 404 is for what a method did not find."""

    def __init__(self, stream: "Request") -> None:
        assert stream.connection is not None
        head = stream.head
        super().__init__(head.method, head.target, head.headers, stream.connection.managed)
        self._stream = stream
        self._transport = stream.connection.transport  # the stream forgets it with its answer
        self._was_answered = False
        if head.timeout is not None:
            self.deadline = stream.opened + head.timeout

    def unframe(self, content: bytes | bytearray, most: int) -> None:
        """Take the one message out of the stream's content.

        Args:
            content: all of it.
            most: the bytes that a message may have.

        Raises:
            RefusedError: it is not one message, or one that cannot be decompressed.
        """
        size = len(content) - PREFIX_BYTES
        if size < 0 or size != int.from_bytes(content[1:5], "big"):
            raise RefusedError(400, f"messages: found {count(content)}, allowed: 1.")
        coding = self.headers.get(b"grpc-encoding", b"identity")
        if content[0]:
            self.body = decompress(content[0], content[PREFIX_BYTES:], coding, most)
        elif type(content) is bytearray:
            del content[:PREFIX_BYTES]  # moves no bytes
            self.body = content
        else:
            self.body = content[PREFIX_BYTES:]

    def respond(
        self, status: int, body: bytes = b"", kind: bytes = GRPC, extra: bytes = b""
    ) -> None:
        if status != 200:
            self.fail(of_http(status), body.decode("utf-8", "replace"), extra)
            return
        assert not self._was_answered, "an exchange has one answer"
        self._was_answered = True
        self.on_gone = None  # it refers to who answers, and that to this: no work for the collector
        block = HEADERS + line_fields(extra) if extra else HEADERS
        self._stream.answer(block, framed(body), _TRAILERS_OK)

    def refuse(self, status: int, message: str, extra: bytes = b"") -> int:
        self.fail(of_http(status), message, extra)
        return 0

    def fail(self, status: int, message: str, extra: bytes = b"") -> None:
        """End the call with an error.

        Args:
            status: a :class:`GrpcStatus`.
            message: what went wrong.
            extra: metadata, as header lines each with its CRLF.
        """
        assert not self._was_answered, "an exchange has one answer"
        self._was_answered = True
        self.on_gone = None  # it refers to who answers, and that to this: no work for the collector
        self._stream.answer(HEADERS + trailers(status, message, extra), b"")

    @property
    def client(self) -> str:
        return self._stream.client

    @property
    def answered(self) -> bool:
        return self._was_answered


def of_http(status: int) -> GrpcStatus:
    """The status of gRPC that says what a status of HTTP says."""
    return _OF_HTTP.get(status, GrpcStatus.UNKNOWN)


def framed(message: bytes) -> bytes:
    """A message as it goes into a stream."""
    return b"\0%b%b" % (len(message).to_bytes(4, "big"), message)


def trailers(status: int, message: str = "", extra: bytes = b"") -> bytes:
    """The block of fields that ends a call."""
    if status == GrpcStatus.OK and not extra:
        return _TRAILERS_OK
    block = _status(status)
    if message:
        # Cut before it is escaped, so that no escape is: a byte becomes three at most.
        text = message.encode("utf-8", "replace")[: _MESSAGE_BYTES // 3]
        text = text.decode("utf-8", "ignore").encode()  # less the character that was cut
        block += _MESSAGE + plain_string(_ESCAPED.sub(lambda m: b"%%%02X" % m[0][0], text))
    if extra:
        block += line_fields(extra)
        retry = _RETRY.search(extra)
        if retry is not None:
            block += _PUSHBACK + plain_string(retry[1] + b"000")
    if status == GrpcStatus.UNIMPLEMENTED:
        block += _ACCEPTED
    return block


@cache
def _status(status: int) -> bytes:
    return encode([(b"grpc-status", b"%d" % status)])


def decompress(flag: int, message: bytes | bytearray, coding: bytes, most: int) -> bytes:
    """A message that was compressed.

    Args:
        flag: the byte before its length, which says that it was.
        message: what was received.
        coding: what ``grpc-encoding`` says.
        most: the bytes that the message may have.

    Raises:
        RefusedError: the coding is none or unknown, the message is damaged or too long.
    """
    if flag != 1:
        raise RefusedError(400, f"message: found the compression flag {flag}, allowed: 0 and 1.")
    if coding.lower() == b"identity":
        raise RefusedError(400, "message: found it compressed, and no grpc-encoding.")
    check_coding("grpc-encoding", coding)
    return bytes(inflate("message", message, coding, most))


def count(content: bytes | bytearray) -> str:
    """How many messages there are, in words for an error."""
    if not content:
        return "none"
    pos = PREFIX_BYTES + int.from_bytes(content[1:5], "big")
    return "more than one" if 5 <= pos < len(content) else "a part of one"
