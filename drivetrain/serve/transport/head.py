"""The head of an HTTP/2 request: what its fields say, and what RFC 9113 §8 forbids them.

A head depends on its fields alone, so that one is read once for all requests that repeat it.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from drivetrain.serve.transport.coding import check_coding
from drivetrain.serve.transport.exchange import RefusedError
from drivetrain.serve.transport.hpack import Decoder, Fields

_KEPT = frozenset(
    {
        b"authorization",
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"expect",
        b"grpc-encoding",
        b"grpc-timeout",
        b"host",
        b"inference-header-content-length",
        b"origin",
        b"traceparent",
        b"tracestate",
        b"x-request-id",
        b"x-timeout-ms",
    }
)
"""The headers that mean something to this server."""
_MANY = frozenset({b"traceparent", b"tracestate"})
"""Those that may come more than once: W3C Trace Context has a request like this served."""
_FORBIDDEN = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)
"""What is said of a connection has no place in a stream (§8.2.2)."""
_PSEUDO = frozenset({b":authority", b":method", b":path", b":scheme"})
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_VALUE = re.compile(rb"(?:[^\0\r\n \t](?:[^\0\r\n]*[^\0\r\n \t])?)?")
_METHOD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_TARGET = re.compile(rb"/[\x21-\x7e\x80-\xff]*")
_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_SECONDS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_GRPC = re.compile(rb"application/grpc(\+[^;]*)?(?:;.*)?", re.DOTALL)
_HEADER_COUNT = 100
_CACHED = 64
_CACHED_BYTES = 1024
_TARGET_BYTES = 4096


class MalformedError(Exception):
    """A request that is none: a stream error of type PROTOCOL_ERROR (§8.1.1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A request without its content.

    Attributes:
        method: such as ``b"POST"``.
        target: path and query.
        headers: those that mean something to the server, names in lower case.
        length: the bytes of the content, where that was said.
        continues: whether the client waits for 100 (Continue) before it sends the content.
        grpc: whether it is a call of gRPC.
        timeout: seconds that a gRPC client waits; None is for ever.
        refusal: why the head alone makes the request refused; None if it does not.
        plain: whether nothing is to be done before the content comes.
    """

    method: bytes
    target: bytes
    headers: Mapping[bytes, bytes]
    length: int | None = None
    continues: bool = False
    grpc: bool = False
    timeout: float | None = None
    refusal: RefusedError | None = None
    plain: bool = False


TOO_LARGE = Head(
    method=b"",
    target=b"",
    headers={},
    refusal=RefusedError(431, "headers: found more bytes than SETTINGS_MAX_HEADER_LIST_SIZE."),
)
"""What stands for fields that were too many to keep."""


def read_head(fields: Fields) -> Head:
    """The head that the fields of a request make.

    Raises:
        MalformedError: they make none.
    """
    pseudo: dict[bytes, bytes] = {}
    headers: dict[bytes, bytes] = {}
    refusal: RefusedError | None = None
    regular = False
    for name, value in fields:
        if name[:1] == b":":
            if regular or name in pseudo or name not in _PSEUDO:
                raise MalformedError(f"pseudo-header {name!r}")
            pseudo[name] = value
            continue
        regular = True
        check_field(name, value)
        if name in _KEPT:
            if name in _MANY and name in headers:
                value = headers[name] + b"," + value
            elif name in headers:
                found = f"header {name.decode()!r}: found twice, allowed: once."
                refusal = RefusedError(400, found)
            headers[name] = value
    if len(fields) > _HEADER_COUNT:
        refusal = RefusedError(431, f"headers: found more than {_HEADER_COUNT} lines.")
    _check_pseudo(pseudo, headers)
    return _head(pseudo, headers, refusal)


def check_field(name: bytes, value: bytes) -> None:
    """Refuse what no field of a request may be, a trailer's included.

    Raises:
        MalformedError: it is such.
    """
    if _NAME.fullmatch(name) is None:
        raise MalformedError(f"field name {name!r}")
    if _VALUE.fullmatch(value) is None:
        raise MalformedError(f"value of the field {name!r}")
    if name in _FORBIDDEN or (name == b"te" and value.lower() != b"trailers"):
        raise MalformedError(f"field {name!r}")


def _check_pseudo(pseudo: dict[bytes, bytes], headers: dict[bytes, bytes]) -> None:
    method = pseudo.get(b":method", b"")
    if _METHOD.fullmatch(method) is None:
        raise MalformedError("no method")
    path, authority = pseudo.get(b":path"), pseudo.get(b":authority")
    if method == b"CONNECT":
        if authority is None or path is not None or b":scheme" in pseudo:
            raise MalformedError("CONNECT")
        return
    if not pseudo.get(b":scheme") or path is None:
        raise MalformedError("no scheme or no path")
    if _TARGET.fullmatch(path) is None and not (path == b"*" and method == b"OPTIONS"):
        raise MalformedError("path")
    if authority is not None:
        if _VALUE.fullmatch(authority) is None or b"@" in authority:
            raise MalformedError("authority")
        host = headers.get(b"host")
        if host is not None and host.lower() != authority.lower():
            raise MalformedError("host and authority differ")


def _head(
    pseudo: dict[bytes, bytes], headers: dict[bytes, bytes], refusal: RefusedError | None
) -> Head:
    length = headers.get(b"content-length")
    if length is not None and not (length.isdigit() and len(length) < 20):
        raise MalformedError("content-length")
    target = pseudo.get(b":path", b"*")
    call = _GRPC.fullmatch(headers.get(b"content-type", b""))
    grpc = call is not None and call[1] in (None, b"+proto")
    timeout = None
    if grpc and b"grpc-timeout" in headers:
        timeout = _timeout(headers[b"grpc-timeout"])
        if timeout is None:
            refusal = refusal or RefusedError(
                400,
                "header 'grpc-timeout': found no time, allowed: up to 8 digits and H, M, S, m, "
                "u or n.",
            )
    if call is not None and not grpc:
        refusal = refusal or RefusedError(
            415, "header 'content-type': found gRPC with other messages, allowed: "
            "application/grpc and application/grpc+proto."
        )  # fmt: skip
    if len(target) > _TARGET_BYTES:
        refusal = RefusedError(414, f"request target: found more than {_TARGET_BYTES} bytes.")
    expect = headers.get(b"expect", b"").lower()
    refusal = refusal or _refusal(pseudo[b":method"], headers, grpc)
    return Head(
        method=pseudo[b":method"],
        target=target,
        headers=headers,
        length=None if length is None else int(length),
        continues=expect == b"100-continue",
        grpc=grpc,
        timeout=timeout,
        refusal=refusal,
        plain=refusal is None and length is None and not expect,
    )


def _refusal(method: bytes, headers: dict[bytes, bytes], grpc: bool) -> RefusedError | None:
    if method == b"CONNECT":
        return RefusedError(405, "method: found CONNECT; this is no proxy.")
    coding = headers.get(b"content-encoding", b"identity")
    if grpc and coding.lower() != b"identity":  # its messages are compressed one by one
        return RefusedError(415, "header 'content-encoding': found one, allowed: grpc-encoding.")
    try:
        check_coding("content-encoding", coding)
    except RefusedError as error:
        return RefusedError(error.status, str(error))  # for good, and so without its frames
    expect = headers.get(b"expect", b"100-continue")
    if expect.lower() != b"100-continue":
        found = expect.decode("latin-1")
        return RefusedError(417, f"header 'expect': found {found!r}, allowed: 100-continue.")
    return None


def _timeout(value: bytes) -> float | None:
    match = _TIMEOUT.fullmatch(value)
    return None if match is None else int(match[1]) * _SECONDS[match[2]]


class Heads:
    """The header blocks of one connection, each decoded once while its meaning stays.

    Clients repeat the same few blocks. One that changed nothing in the decoder's table means the
    same until something does.

    Args:
        most: the bytes that the fields of a request may come to (RFC 9113 §6.5.2).
        judge: asked whether a request of this method, target and these headers is answered with
            an error, whatever its content.
    """

    __slots__ = ("_decoder", "_generation", "_judge", "_known", "_most")

    def __init__(
        self,
        most: int,
        judge: Callable[[bytes, bytes, Mapping[bytes, bytes]], RefusedError | None],
    ) -> None:
        self._most = most
        self._judge = judge
        self._decoder = Decoder()
        self._generation = 0
        self._known: dict[bytes, Head] = {}

    def read(self, block: bytes) -> Head:
        """The head that a block means.

        Raises:
            HpackError: the block is damaged, and the connection with it.
            MalformedError: its fields make no request.
        """
        decoder = self._decoder
        if self._generation == decoder.generation:
            head = self._known.get(block)
            if head is not None:
                return head
        else:
            self._known.clear()
            self._generation = decoder.generation
        fields = decoder.decode(block, self._most)
        if fields is None:
            return TOO_LARGE
        head = read_head(fields)
        judged = self._judge(head.method, head.target, head.headers)
        if judged is not None:
            head = replace(head, refusal=judged, plain=False)
        if decoder.generation == self._generation and len(block) <= _CACHED_BYTES:
            if len(self._known) >= _CACHED:
                self._known.clear()
            self._known[block] = head
        return head

    def skip(self, block: bytes) -> None:
        """Decode a block for what it does to the table: its request is not taken.

        Raises:
            HpackError: the block is damaged.
        """
        self._decoder.decode(block, 0)

    def read_trailers(self, block: bytes) -> None:
        """Check what follows a request's content; nothing in it means anything to the server.

        Raises:
            HpackError: the block is damaged.
            MalformedError: its fields are no trailers.
        """
        fields = self._decoder.decode(block, self._most)
        for name, value in fields or ():
            check_field(name, value)
