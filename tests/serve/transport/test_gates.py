"""Who is sent away is told so by the head alone, and not more often than is allowed."""

import asyncio

import pytest
from http2_peer import HELLO, OPENED, POST, resets
from wire import Wire

from drivetrain.serve.transport import gates as module
from drivetrain.serve.transport.exchange import RefusedError
from drivetrain.serve.transport.frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    NO_ERROR,
    frame,
)
from drivetrain.serve.transport.gates import Gate, Gates
from drivetrain.serve.transport.hpack import encode
from drivetrain.serve.transport.http import Http, HttpLimits
from drivetrain.serve.transport.http1 import Connection


class Site:
    """Connections before one gate; what came through it and who was sent away."""

    def __init__(self, **limits):
        self.asked, self.away = [], []
        self.gates = Gates()
        self.gate = Gate(self.gates, b"/p", self.away.append)
        self.http = Http(self.asked.append, HttpLimits(**limits), gates=self.gates)

    def connect(self):
        connection, transport = Connection(self.http), Wire()
        connection.connection_made(transport)
        return connection, transport


def post(body=b"body", target=b"/p", more=b""):
    length = b"Content-Length: %d\r\n" % len(body)
    return b"POST %b HTTP/1.1\r\nHost: h\r\n%b%b\r\n%b" % (target, length, more, body)


def statuses(data):
    return [int(part[:3]) for part in data.split(b"HTTP/1.1 ")[1:]]


@pytest.mark.parametrize("cut", [0, 20, 60])
def test_a_closed_target_answers_503_at_once_keeps_no_byte_and_the_connection(cut):
    site = Site()
    connection, transport = site.connect()
    site.gate.close("the queue is full.")
    for _ in range(3):
        request = post(b"x" * 1000)
        for part in (request[:cut], request[cut:500], request[500:]):
            if part:
                connection.data_received(part)
            assert site.http.buffered == 0
    assert statuses(transport.data) == [503] * 3
    assert transport.data.count(b"Retry-After: 1\r\n") == 3
    assert b'{"error":"the queue is full."}' in transport.data
    assert (site.asked, len(site.away)) == ([], 3)
    site.gate.open()
    connection.data_received(post())
    assert [bytes(exchange.body) for exchange in site.asked] == [b"body"]


def test_other_targets_stay_open_and_answers_keep_their_order():
    site = Site()
    connection, transport = site.connect()
    site.gate.close("full.")
    connection.data_received(post(target=b"/other") + post() + post(target=b"/other"))
    assert transport.data == b""
    for exchange in site.asked:
        exchange.respond(200)
    assert statuses(transport.data) == [200, 503, 200]


def test_a_body_beyond_the_limit_is_413_before_a_closed_target_too():
    site = Site(body_bytes=10)
    site.gate.close("full.")
    for requests in ([post(b"x" * 11)], [post(b"x"), post(b"x" * 11)]):
        connection, transport = site.connect()
        for request in requests:
            connection.data_received(request)
        assert statuses(transport.data)[-1] == 413
    connection, transport = site.connect()
    chunked = b"POST /p HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    connection.data_received(chunked + b"b\r\nxxxxxxxxxxx\r\n0\r\n\r\n")
    assert statuses(transport.data) == [413]


def test_who_waits_for_a_word_to_go_on_is_told_to_stay_away():
    site = Site()
    connection, transport = site.connect()
    site.gate.close("full.")
    connection.data_received(post(more=b"Expect: 100-continue\r\n").removesuffix(b"body"))
    assert statuses(transport.data) == [503]


def test_beyond_so_many_refusals_a_connection_is_left_unread_until_its_turn(monkeypatch):
    monkeypatch.setattr(module, "REFUSALS_A_SECOND", 8.0)  # two of them at once
    now = 100.0
    monkeypatch.setattr(module, "monotonic", lambda: now)
    site = Site()
    peers = [site.connect() for _ in range(5)]
    site.gate.close("full.")
    for connection, _ in peers:
        connection.data_received(post())
    assert [statuses(transport.data) for _, transport in peers] == [[503]] * 5
    assert [transport.paused for _, transport in peers] == [False, *[True] * 4]
    now += 0.25
    site.gates.tick()
    assert [transport.paused for _, transport in peers] == [False, False, False, True, True]


def test_an_open_target_lets_in_first_who_was_left_unread_a_few_at_a_time(monkeypatch):
    monkeypatch.setattr(module, "REFUSALS_A_SECOND", 0.0)
    site = Site()
    peers = [site.connect() for _ in range(40)]

    def unread():
        return sum(transport.paused for _, transport in peers)

    async def main():
        site.gate.close("full.")
        for connection, _ in peers:
            connection.data_received(post())
        assert unread() == 40
        site.gate.open()
        assert unread() == 24
        site.gate.close("full again.")
        await asyncio.sleep(0)
        assert unread() == 24
        site.gate.open()
        while unread():
            await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(main(), 10))


def test_a_server_that_ends_reads_everybody_on(monkeypatch):
    monkeypatch.setattr(module, "REFUSALS_A_SECOND", 0.0)
    site = Site()
    connection, transport = site.connect()
    site.gate.close("full.")
    connection.data_received(post())
    assert transport.paused
    site.http.drain()
    assert not transport.paused
    connection.data_received(post())
    assert statuses(transport.data) == [503, 503]
    assert not transport.paused
    assert b"Connection: close" in transport.data


def test_a_connection_that_went_while_it_was_left_unread_is_no_matter(monkeypatch):
    monkeypatch.setattr(module, "REFUSALS_A_SECOND", 0.0)
    site = Site()
    connection, transport = site.connect()
    site.gate.close("full.")
    connection.data_received(post())
    transport.close()
    connection.connection_lost(None)
    site.gates.let_all_in()
    assert transport.paused


BIG = b"Content-Length: 16000000\r\n"


@pytest.mark.parametrize("framing", [BIG, BIG + b"Content-Encoding: gzip\r\n",
                                     b"Transfer-Encoding: chunked\r\n",
                                     BIG + b"Expect: 100-continue\r\n"])  # fmt: skip
def test_without_the_token_no_byte_of_a_body_is_awaited(serve, framing):
    client = serve(token="sesam")
    head = b"POST /predict/tiny HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer no\r\n"
    data = client.raw(head + framing + b"\r\n")  # whose answer ends the connection
    assert statuses(data) == [401]
    assert b"WWW-Authenticate: Bearer\r\n" in data


def test_without_the_token_a_request_that_has_no_body_leaves_the_connection_open(serve):
    client = serve(token="sesam")
    ask = b"GET /metrics HTTP/1.1\r\nHost: h\r\n%b\r\n"
    live = b"GET /v2/health/live HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    known = ask % b"Authorization: bearer  sesam\r\n"
    assert statuses(client.raw(ask % b"" + known + ask % b"" + live)) == [401, 200, 401, 200]


def test_of_a_refused_request_nothing_is_kept_and_a_right_one_needs_its_own_token(monkeypatch):
    asked = []

    def judge(method, target, headers, managed):
        return None if headers.get(b"authorization") == b"yes" else RefusedError(401, "no.")

    http = Http(asked.append, HttpLimits(), judge=judge)
    connection, wire = Connection(http), Wire()
    connection.connection_made(wire)
    right = post(more=b"Authorization: yes\r\n")
    for request in (right, right, post(more=b"Authorization: not\r\n")):
        connection.data_received(request)
        if asked and not asked[-1].answered:
            asked[-1].respond(200)
    assert statuses(wire.data) == [200, 200, 401]
    assert http.buffered == 0
    assert wire.ended


def test_over_http2_a_stream_without_the_token_is_refused_at_its_head(peer):
    refusal = RefusedError(401, "no token.")
    client = peer()
    client.http.judge = lambda method, target, headers, managed: (
        None if headers.get(b"authorization") == b"yes" else refusal
    )
    found = client.send(HELLO, OPENED)  # whose content is to come
    assert client.statuses(found) == [401]
    assert resets(found) == [(1, NO_ERROR)]
    assert client.http.buffered == 0
    call = encode([*POST, (b"content-type", b"application/grpc"), (b"te", b"trailers")])
    found = client.send(frame(HEADERS, END_HEADERS, 3, call))
    assert client.fields(found)[-1][b"grpc-status"] == b"16"
    allowed = encode([*POST, (b"authorization", b"yes")])
    client.send(frame(HEADERS, END_HEADERS, 5, allowed))
    assert client.statuses(client.send(frame(DATA, END_STREAM, 5, b"x"))) == [200]


def test_over_http2_a_closed_target_is_refused_at_its_head(peer):
    client = peer()
    gate = Gate(client.http.gates, b"/a", lambda transport: None)
    gate.close("full.")
    found = client.send(HELLO, OPENED)
    assert client.statuses(found) == [503]
    assert client.fields(found)[-1][b"retry-after"] == b"1"
    assert client.http.buffered == 0
    gate.open()
    client.send(frame(HEADERS, END_HEADERS, 3, encode(POST)))
    assert client.statuses(client.send(frame(DATA, END_STREAM, 3, b"x"))) == [200]
