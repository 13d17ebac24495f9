"""Any bytes into an HTTP/1.1 connection, in any pieces: what it must do, held by a fuzzer.

Run it as ``python tests/fuzz/http1.py -max_total_time=20``; every option is libFuzzer's. An input
that breaks a rule is written to the present directory, and given back as an argument it is run
again alone.
"""

import random
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "serve"))

import h11
from fuzzing import cut, fuzz, methods
from wire import Wire

from drivetrain.serve.transport.exchange import Exchange
from drivetrain.serve.transport.http import Http, HttpLimits
from drivetrain.serve.transport.http1 import Connection
from drivetrain.serve.transport.http1_answer import Http1Exchange
from drivetrain.serve.transport.http1_request import RequestReader
from drivetrain.serve.transport.repeated import RepeatedHead

LIMITS = {"body_bytes": 200, "buffered_bytes": 500, "header_bytes": 400}
PLAN_BYTES = 4
"""The first bytes of an input say how the rest is fed: see :class:`Plan`."""

HOST = b"Host: x\r\n"
CHUNKED = b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
SEEDS = (
    b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n" * 3,
    b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello" * 2,
    CHUNKED + b"\r\n5\r\nhello\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
    CHUNKED + b"\r\n5;a=b\r\nhello\r\n0\r\nX-Trailer: y\r\n\r\n",
    CHUNKED + b"Content-Length: 5\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
    CHUNKED + b"Transfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    CHUNKED + b"\r\n-1\r\n\r\n" + b"f" * 17 + b"\r\nhello",
    b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    b"POST /a HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nok",
    b"POST /a HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n"
    b"Content-Length: 2\r\n\r\nokGET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
    b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" * 2,
    b"CONNECT a:1 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET http://x/a HTTP/1.1\r\nHost: x\r\n\r\nOPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nX-Fold: a\r\n b\r\n\r\n",
    b"GET / HTTP/1.1\nHost: x\n\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n\r\n" + b"x" * 300,
    b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 500 + b"\r\n\r\n",
)
WORDS = (
    *(
        "GET ",
        "POST ",
        "HEAD ",
        "CONNECT ",
        " HTTP/1.1",
        " HTTP/1.0",
        "Host: x",
        ": ",
        "\\x0d\\x0a",
    ),
    *("Content-Length: ", "Transfer-Encoding: ", "chunked", "identity", "gzip, chunked", ";a=b"),
    *("Connection: close", "Connection: keep-alive", "Connection: Upgrade", "Upgrade: h2c"),
    *("Expect: 100-continue", "0\\x0d\\x0a\\x0d\\x0a", "\\x0d\\x0a ", "\\x09", "\\x0b", "\\x00"),
)


@dataclass(frozen=True)
class Plan:
    """How an input's bytes reach the connection, read from its first four bytes.

    Attributes:
        seed: of the places where it is cut and of the turns at which is answered.
        whole: it comes in one piece.
        late: answers wait for a later turn; else each comes within the call.
        backward: the latest request is answered first.
        ends: the client closes its side behind the bytes.
        lost: the connection is lost behind the bytes, before what waits is answered.
        drains: the server begins to end when half of the bytes are there.
        pipeline: how many requests may wait.
    """

    seed: int
    whole: bool = False
    late: bool = False
    backward: bool = False
    ends: bool = False
    lost: bool = False
    drains: bool = False
    pipeline: int = 4

    @classmethod
    def of(cls, data: bytes) -> "Plan":
        flags = data[2] if len(data) > 2 else 0
        bits = [bool(flags >> bit & 1) for bit in range(6)]
        pipeline = 1 + (data[3] % 4 if len(data) > 3 else 3)
        return cls(int.from_bytes(data[:2]), *bits, pipeline)


@dataclass(frozen=True)
class Taken:
    """A request as a parser took it; of the headers those that are told of and frame it or name
    its host. The length is not told: the body has it."""

    method: bytes
    target: bytes
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()


_COMPARED = (b"host", b"transfer-encoding")


@dataclass
class Server:
    """A connection, the application behind it, and what both did."""

    plan: Plan
    taken: list[Taken] = field(default_factory=list)
    waiting: list[tuple[int, Exchange]] = field(default_factory=list)
    refusals: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        limits = HttpLimits(**LIMITS, pipeline=self.plan.pipeline)
        self.http = Http(self._asked, limits, lambda status, *_: self.refusals.append(status))
        self.connection, self.wire = Connection(self.http), Wire()
        self.connection.connection_made(self.wire)

    def _asked(self, exchange: Exchange) -> None:
        headers = exchange.headers
        kept = tuple((name, headers[name].lower()) for name in _COMPARED if name in headers)
        body = bytes(exchange.body)
        assert len(body) <= LIMITS["body_bytes"], "a body is no longer than its limit"
        self.waiting.append((len(self.taken), exchange))
        self.taken.append(Taken(exchange.method, exchange.target, body, kept))
        if not self.plan.late:
            self.answer()

    def answer(self) -> None:
        number, exchange = self.waiting.pop(-1 if self.plan.backward else 0)
        exchange.respond(200, b"%d" % number)

    def feed(self, stream: bytes) -> None:
        """All of the bytes, as long as the connection reads them, and then their end."""
        chance = random.Random(self.plan.seed)
        pieces = cut(stream, self.plan.whole, chance)
        for number, piece in enumerate(pieces):
            if self.plan.drains and number == len(pieces) // 2:
                self.http.draining = True
            while self.wire.paused and self.waiting:
                self.answer()
            if self.wire.closing:
                break
            assert not self.wire.paused, "what has no request waiting reads on"
            if piece:
                self.connection.data_received(piece)
            allowed = LIMITS["buffered_bytes"] + len(piece)
            assert 0 <= self.http.buffered <= allowed, "bodies are held within their limit"
            while self.waiting and chance.random() < 0.3:
                self.answer()
        self._end()

    def _end(self) -> None:
        if self.plan.ends and not self.wire.closing and not self.connection.eof_received():
            self.wire.close()
        if self.plan.lost:
            self.wire.closing = True
            self.connection.connection_lost(None)
        while self.waiting:
            self.answer()
        if not self.plan.lost:
            self.http.tick()
            self.connection.connection_lost(None)
        assert self.http.buffered == 0, "what is answered or gone is held no longer"
        assert not self.http.connections, "what is lost is forgotten"


_STATUS = re.compile(rb"HTTP/1\.1 ([1-5][0-9][0-9]) [A-Za-z -]+")
_LINE = re.compile(rb"([A-Za-z-]+): ([ -~]*)")


def answers(data: bytes, taken: list[Taken]) -> list[tuple[int, bytes, bool]]:
    """Status, body and whether the connection ends, of each answer; they must be well-formed."""
    found: list[tuple[int, bytes, bool]] = []
    while data:
        head, end, data = data.partition(b"\r\n\r\n")
        assert end, "a head has an end"
        first, *lines = head.split(b"\r\n")
        status = _STATUS.fullmatch(first)
        assert status, f"a status line, found {first!r}"
        matches = [_LINE.fullmatch(line) for line in lines]
        assert all(matches), f"header lines, found {lines!r}"
        headers = {match[1].lower(): match[2] for match in matches if match}
        assert len(headers) == len(lines), "no header comes twice"
        code = int(status[1])
        if code == 100:
            assert not lines
            continue
        last = headers.get(b"connection") == b"close"
        head_only = len(found) < len(taken) and taken[len(found)].method == b"HEAD"
        length = 0 if head_only else int(headers[b"content-length"])
        assert len(data) >= length, "a body is whole"
        found.append((code, data[:length], last))
        data = data[length:]
    return found


def check(data: bytes) -> None:
    """Hold the connection to its rules for one input.

    Raises:
        AssertionError: a rule is broken.
    """
    plan, stream = Plan.of(data), data[PLAN_BYTES:]
    server = Server(plan)
    server.feed(stream)
    found = answers(server.wire.data, server.taken)
    good = [body for status, body, _ in found if status == 200]
    expected = [b"" if t.method == b"HEAD" else b"%d" % n for n, t in enumerate(server.taken)]
    assert good == expected[: len(good)], "answers come in the order of the requests, one each"
    statuses = [status for status, _, _ in found]
    assert 500 not in statuses, "no bytes make the server fail"
    assert len(found) - len(good) <= 1, "a refusal is the last answer"
    assert all(status == 200 for status in statuses[:-1]), "a refusal is the last answer"
    assert not any(last for _, _, last in found[:-1]), "nothing follows the last answer"
    if len(found) > len(good):
        assert found[-1][2], "a refusal ends the connection"
        assert server.refusals == statuses[-1:], "a refusal is counted, once"
    if not plan.lost:
        assert len(good) == len(server.taken), "every request is answered"
    if not plan.drains:
        compare(server.taken, stream)
    if not plan.drains and not plan.late:  # else what is held, and so refused, may differ
        one = Server(replace(plan, whole=True))
        one.feed(stream)
        assert one.taken == server.taken, "where the bytes are cut makes no difference"


def compare(taken: list[Taken], stream: bytes) -> None:
    """What was taken is what h11 takes, whose grammar is another's: nothing is smuggled."""
    theirs, ended = reference(stream)
    for number, (ours, other) in enumerate(zip(taken, theirs, strict=False)):
        assert ours == other, f"request {number}: {ours} here, {other} for h11"
    if len(taken) > len(theirs):
        assert ended is not None, f"{taken[len(theirs)]} was taken out of what is no whole request"
        known = any(re.fullmatch(reason, ended) for reason in KNOWN)
        assert known, f"{taken[len(theirs)]} was taken; h11 says {ended}"


KNOWN = (
    "HTTP/1.0 is not kept alive",
    "no request line received",  # RFC 9112 §2.2 has empty lines before a request ignored
    # RFC 9112 §3 lets a recipient part a request line at runs of spaces; h11 does not. And llhttp
    # passes over every CR and LF before a request, where nothing stands that they could part.
    r"illegal request line: bytearray\(b['\"](\\r)*[A-Z-]+ +[!-~]+ +HTTP/1\.[01] *['\"]\)",
)
"""Why h11 may take fewer requests than we do, as regular expressions."""


def reference(stream: bytes) -> tuple[list[Taken], str | None]:
    """The requests that h11 takes out of a stream, and why it took no more."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    found: list[Taken] = []
    connection.receive_data(stream)
    try:
        while True:
            request = connection.next_event()
            if not isinstance(request, h11.Request):
                return found, None
            body = b""
            while isinstance(event := connection.next_event(), h11.Data):
                body += bytes(event.data)
            if not isinstance(event, h11.EndOfMessage):
                return found, None
            headers = dict(request.headers)
            kept = tuple((name, headers[name].lower()) for name in _COMPARED if name in headers)
            found.append(Taken(request.method, _origin(request.target), body, kept))
            old = request.http_version == b"1.0"
            if request.method == b"CONNECT":
                return found, "CONNECT makes a tunnel"
            connection.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
            connection.send(h11.EndOfMessage())
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                return found, "HTTP/1.0 is not kept alive" if old else "the connection ends"
            connection.start_next_cycle()
    except h11.RemoteProtocolError as error:
        return found, str(error)


def _origin(target: bytes) -> bytes:
    """What the application is to see of a request target."""
    scheme, found, rest = target.partition(b"://")
    if not found or scheme.lower() not in (b"http", b"https") or rest[:1] in b"/?#":
        return target
    place = next((n for n, byte in enumerate(rest) if byte in b"/?#"), len(rest))
    return rest[place:] if rest[place : place + 1] == b"/" else b"/" + rest[place:]


def inputs(stream: bytes) -> list[bytes]:
    """Inputs of the fuzzer for a stream, by the plans that differ most."""
    return [bytes((n, 7, flags, 3)) + stream for n, flags in enumerate((1, 0, 2, 6, 8, 18, 32))]


def main(arguments: list[str], run: Callable[[bytes], None] = check) -> None:
    """Fuzz until libFuzzer's options say that it is enough."""
    seeds = [data for stream in SEEDS for data in inputs(stream)]
    watched = methods(Connection, RequestReader, RepeatedHead, Http1Exchange, Http)
    fuzz(arguments, run, seeds, watched, WORDS)


if __name__ == "__main__":
    main(sys.argv)
