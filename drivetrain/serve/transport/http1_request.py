"""Requests out of the bytes of an HTTP/1.1 connection, bounded in size at each step.

Sources: RFC 9110 (semantics) and RFC 9112 (messages). The grammar is llhttp's, strict, by way of
httptools; what it lets pass and a proxy might read otherwise is refused here.
"""

import re
from time import monotonic
from typing import TYPE_CHECKING, Any

import httptools

from drivetrain.serve.transport.coding import check_coding
from drivetrain.serve.transport.exchange import RefusedError
from drivetrain.serve.transport.gates import Gate
from drivetrain.serve.transport.repeated import RepeatedHead

if TYPE_CHECKING:
    from drivetrain.serve.transport.http1 import Connection

READY, HEAD, BODY, LAST, LINGER = range(5)
"""Stages of reading: between requests, in headers, in a body, after the last one, discarding."""
_KEPT = frozenset(
    {
        b"authorization",
        b"content-encoding",
        b"content-length",
        b"expect",
        b"host",
        b"inference-header-content-length",
        b"origin",
        b"traceparent",
        b"tracestate",
        b"transfer-encoding",
        b"upgrade",
        b"x-request-id",
        b"x-timeout-ms",
    }
)
"""The headers that mean something to this server."""
_MANY = frozenset({b"traceparent", b"tracestate"})
"""Those that may come more than once: W3C Trace Context has a request like this served."""
_ABSOLUTE = re.compile(rb"https?://[^/?#]+", re.IGNORECASE)
_HEADER_COUNT = 100
_TARGET_BYTES = 4096
_READ_BYTES = 256 << 10
"""What the transport reads at once."""


class RequestReader:
    """Reads what a client sends, and gives it to its connection request by request.

    Its methods named ``on_…`` are the parser's to call.

    Args:
        connection: takes each request, or the error that ends the reading.
    """

    def __init__(self, connection: "Connection") -> None:
        self._connection = connection
        self._http = connection.http
        self._parser: Any = None  # only for those who send what nobody has sent before
        self._method = b""
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._length: bytes | None = None
        self._head_bytes = 0
        self._head_count = 0
        self._body: bytes | bytearray = b""
        self._body_bytes = 0
        self._keep = True
        self._refusal: RefusedError | None = None
        self._gate: Gate | None = None
        self._repeated: RepeatedHead | None = None
        self._complete = 0
        self._upgrading = False
        self._wire_bytes = 0

    def feed(self, data: bytes) -> None:
        """Take what came."""
        connection, head = self._connection, self._repeated
        fresh = connection.stage is READY
        if fresh:
            if head is None:
                head = self._http.heads.get(connection.managed)
            if head is not None:
                start = head.end(data)
                if start >= 0 and self._repeat(head, data, start):
                    self._repeated = head
                    return
        if self._parser is None:
            self._parser = httptools.HttpRequestParser(self)
        complete = self._complete
        while connection.stage < LAST:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = self._without_upgrade() + data[upgrade.args[0] :]
                continue
            except httptools.HttpParserCallbackError as error:
                known = (self._method, self._target) if connection.stage is BODY else ()
                connection.fail(error.__context__, *known)
            except httptools.HttpParserError as error:
                if connection.stage < LAST:
                    connection.refuse(RefusedError(400, f"the request is not HTTP/1.1: {error}."))
            break
        if connection.stage is READY:
            self._wire_bytes = 0
            if fresh and self._complete == complete + 1 and self._refusal is None:
                read = (self._method, self._target, self._headers)
                head = self._repeated = RepeatedHead.of(data, self._length, *read)
                if head is not None and not head.secret:
                    self._http.heads[connection.managed] = head
        elif connection.stage < LAST:
            self._count(len(data))

    def drop(self) -> None:
        """Let go of what is there of a request that will not be whole."""
        self._http.buffered -= len(self._body)
        self._body = b""

    def _repeat(self, head: RepeatedHead, data: bytes, start: int) -> bool:
        """Take a whole request whose head is known; whether it is within the limits."""
        http = self._http
        size, limits, closed = len(data) - start, http.limits, http.gates.closed
        if size > limits.body_bytes:
            return False
        if closed and head.target in closed:
            self._connection.turn_away(head.method, head.target, closed[head.target], True)
            return True
        if http.buffered + size > limits.buffered_bytes:
            return False
        http.buffered += size
        self._connection.take(head.method, head.target, head.headers, data[start:], True)
        return True

    def _without_upgrade(self) -> bytes:
        """The present request's head again, less its wish to upgrade.

        RFC 9110 §7.8 lets a server ignore it. The parser stops behind such a head and would take
        the body for the next request, so a fresh one reads the request as if nothing was asked.
        """
        self._parser = httptools.HttpRequestParser(self)
        self._upgrading = False
        if not self._keep:
            self._headers[b"connection"] = b"close"
        lines = [b"%b: %b\r\n" % pair for pair in self._headers.items() if pair[0] != b"upgrade"]
        return b"%b %b HTTP/1.1\r\n%b\r\n" % (self._method, self._target, b"".join(lines))

    def _count(self, size: int) -> None:
        """Bound what is no body: half a header, chunk extensions, trailers."""
        self._wire_bytes += size
        most = self._http.limits.header_bytes
        if self._wire_bytes <= 16 * self._body_bytes + most + _READ_BYTES:
            return
        error = RefusedError(400, "body: found 16 bytes of chunk framing to each of content.")
        if self._connection.stage is HEAD:
            error = RefusedError(431, f"headers: found more than {most} bytes.")
        self._connection.refuse(error)

    # -- the parser's side ---------------------------------------------------------------------

    def on_message_begin(self) -> None:
        connection = self._connection
        if connection.stage >= LAST:
            raise RefusedError(400, "the connection is closing.")
        connection.stage = HEAD
        self._target = b""
        self._headers = {}
        self._head_bytes = self._head_count = self._wire_bytes = self._body_bytes = 0
        self._refusal = self._gate = None
        connection.deadline = monotonic() + self._http.limits.header_seconds

    def on_url(self, url: bytes) -> None:
        self._target += url
        if len(self._target) > _TARGET_BYTES:
            raise RefusedError(414, f"request target: found more than {_TARGET_BYTES} bytes.")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        self._head_count += 1
        most = self._http.limits.header_bytes
        if self._head_bytes > most or self._head_count > _HEADER_COUNT:
            raise RefusedError(
                431, f"headers: found more than {most} bytes or {_HEADER_COUNT} lines."
            )
        if self._connection.stage is not HEAD:
            return  # a trailer field: counted, and of no meaning to this server
        name = name.lower()
        if name in _KEPT:
            value = value.strip(b" \t")  # the parser leaves what is behind it
            if name in self._headers:
                if name not in _MANY:
                    raise RefusedError(
                        400, f"header {name.decode()!r}: found twice, allowed: once."
                    )
                value = self._headers[name] + b"," + value
            self._headers[name] = value

    def on_headers_complete(self) -> None:
        headers, parser = self._headers, self._parser
        self._keep = parser.should_keep_alive()
        self._method = parser.get_method()
        if self._method == b"CONNECT":
            raise RefusedError(405, "method: found CONNECT; this is no proxy.")
        version = parser.get_http_version()
        if version != "1.1":
            if version != "1.0":
                raise RefusedError(505, f"HTTP version: found {version}, allowed: 1.1 and 1.0.")
            if b"transfer-encoding" in headers:
                raise RefusedError(400, "header 'transfer-encoding': found in HTTP/1.0.")
            headers.pop(b"expect", None)  # its clients take 100 for the answer (RFC 9110 §10.1.1)
            self._keep = False  # they wait for the end unless an answer offers to go on
        elif b"host" not in headers:
            raise RefusedError(400, "header 'host': found none, allowed: one.")
        self._connection.stage = BODY
        if b"upgrade" in headers and parser.should_upgrade():
            self._upgrading = True
            return
        if not self._target.startswith(b"/"):
            self._target = _origin_form(self._target)
        self._check_body(headers)

    def _check_body(self, headers: dict[bytes, bytes]) -> None:
        """See whether the request is to be read on, before a byte of its body is kept."""
        connection, limits = self._connection, self._http.limits
        encoding = headers.get(b"transfer-encoding")
        if encoding is not None and encoding.lower() != b"chunked":
            raise RefusedError(
                501, f"header 'transfer-encoding': found {encoding.decode('latin-1')!r}, "
                "allowed: chunked."
            )  # fmt: skip
        self._length = headers.pop(b"content-length", None)  # nobody's matter beyond this place
        length = int(self._length or b"0")
        self._refusal = self._http.judge(self._method, self._target, headers, connection.managed)
        if self._refusal is not None and (encoding is not None or length):
            raise self._refusal
        if length > limits.body_bytes:
            raise RefusedError(413, f"body: found {length} bytes, allowed: {limits.body_bytes}.")
        check_coding("content-encoding", headers.get(b"content-encoding", b"identity"))
        if encoding is not None or length:
            connection.deadline = monotonic() + limits.body_seconds
        self._gate = self._http.gates.closed.get(self._target)
        expect = headers.get(b"expect")
        if expect is not None:
            if expect.lower() != b"100-continue":
                raise RefusedError(
                    417, f"header 'expect': found {expect.decode('latin-1')!r}, "
                    "allowed: 100-continue."
                )  # fmt: skip
            if self._gate is not None:
                raise RefusedError(503, str(self._gate.error))
            connection.go_on()

    def on_body(self, chunk: bytes) -> None:
        http = self._http
        self._body_bytes += len(chunk)
        if self._body_bytes > http.limits.body_bytes:
            raise RefusedError(
                413, f"body: found more than {http.limits.body_bytes} bytes, allowed: "
                f"{http.limits.body_bytes}."
            )  # fmt: skip
        if self._gate is not None:
            return  # it is sent away: nobody will read it
        # Chunks are joined as they come: a list of one-byte chunks would take 40 times its size.
        if not self._body:
            self._body = chunk
        else:
            if type(self._body) is bytes:
                self._body = bytearray(self._body)
            self._body += chunk
        http.buffered += len(chunk)
        if http.buffered > http.limits.buffered_bytes:
            raise RefusedError(
                503, "the server holds as many bytes of requests as it may; try again."
            )

    def on_message_complete(self) -> None:
        if self._upgrading:
            return
        self._complete += 1
        connection, body = self._connection, self._body
        self._body = b""
        if self._refusal is not None:
            connection.answer_error(self._method, self._target, self._refusal, self._keep)
        elif self._gate is not None:
            connection.turn_away(self._method, self._target, self._gate, self._keep)
        else:
            connection.take(self._method, self._target, self._headers, body, self._keep)


def _origin_form(target: bytes) -> bytes:
    """The path and query of an absolute target, which RFC 9112 §3.2.2 has every server take."""
    match = _ABSOLUTE.match(target)
    if match is None:
        return target
    rest = target[match.end() :]
    return rest if rest.startswith(b"/") else b"/" + rest
