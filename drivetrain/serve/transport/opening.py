"""The first bytes of a connection: whether it speaks HTTP/2 or HTTP/1.1."""

import asyncio
import math
from time import monotonic
from typing import Any

from drivetrain.serve.transport import http1, http2
from drivetrain.serve.transport.frames import PREFACE
from drivetrain.serve.transport.http import Http


class Opening(asyncio.Protocol):
    """A connection until it is known what it speaks; then that protocol has it.

    Over TLS the client has said so in the handshake (ALPN, RFC 7301). Without it, one that speaks
    HTTP/2 starts with its preface (RFC 9113 §3.3: with prior knowledge), which no request of
    HTTP/1.1 can be.

    Args:
        http: what all connections share.
        managed: whether it came in where managing is allowed.
    """

    idle = True
    ending = False
    write_deadline = math.inf

    def __init__(self, http: Http, managed: bool = False) -> None:
        self.http = http
        self.managed = managed
        self.transport: Any = None
        self.idle_since = monotonic()
        self.deadline = math.inf
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.deadline = monotonic() + self.http.limits.header_seconds
        protocol = negotiated(transport)
        if protocol == "h2":
            self._hand_over(http2.Connection(self.http, self.managed))
        elif protocol is not None or not self.http.admit(self):
            # One more than may be is told so by HTTP/1.1: it cannot be waited for what it speaks.
            self._hand_over(http1.Connection(self.http, self.managed))

    def connection_lost(self, exc: Exception | None) -> None:
        self.http.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        data = self._data + data if self._data else data
        if data.startswith(PREFACE):
            self._hand_over(http2.Connection(self.http, self.managed), data)
        elif PREFACE.startswith(data):
            self._data = data
        else:
            self._hand_over(http1.Connection(self.http, self.managed), data)

    def _hand_over(
        self, connection: http1.Connection | http2.Connection, data: bytes = b""
    ) -> None:
        self.http.connections.discard(self)
        self.transport.set_protocol(connection)
        connection.connection_made(self.transport)
        if data:
            connection.data_received(data)

    def eof_received(self) -> bool:
        return False

    def expire(self) -> None:
        """Nothing, or no whole preface, came in time."""
        self.transport.close()

    def drain(self) -> None:
        """Nobody is there yet to be told."""

    def close(self) -> None:
        """Close after what is written has gone out."""
        self.transport.close()

    def abort(self) -> None:
        """Close at once."""
        self.transport.abort()


def negotiated(transport: asyncio.BaseTransport) -> str | None:
    """What a client has chosen in its TLS handshake, such as ``h2``; None without TLS or choice."""
    tls = transport.get_extra_info("ssl_object")
    return None if tls is None else tls.selected_alpn_protocol()
