"""Connections: framing, order, limits, time-outs, and bytes that nobody should send."""

import gc
import http.client
import json
import time
import weakref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire import Wire

from drivetrain.serve.transport.http import Http, HttpLimits
from drivetrain.serve.transport.http1 import Connection

ROW = json.dumps({"carrier": "AA", "distance": 1.0, "hour": 7}).encode()
HOST = b"Host: x\r\n"


def post(body: bytes = ROW, headers: bytes = b"", target: bytes = b"/predict/tiny") -> bytes:
    length = b"Content-Length: %d\r\n" % len(body)
    return b"POST %b HTTP/1.1\r\n%b%b%b\r\n%b" % (target, HOST, length, headers, body)


CLOSE = b"Connection: close\r\n"


def statuses(data: bytes) -> list[int]:
    return [int(part[:3]) for part in data.split(b"HTTP/1.1 ")[1:]]


def error(data: bytes) -> str:
    return json.loads(data.rpartition(b"\r\n\r\n")[2])["error"]


def test_a_connection_is_kept_for_further_requests(client):
    connection = client.connection()
    for _ in range(3):
        assert client.post("/predict/tiny", ROW, over=connection).status == 200
    local = connection.sock.getsockname()
    assert client.get("/v2", over=connection).status == 200
    assert connection.sock.getsockname() == local
    connection.close()


def test_pipelined_requests_are_answered_in_order(client):
    slow = post(b'{"rows":[%b]}' % b",".join([ROW] * 50), b"X-Request-Id: 0\r\n")
    rest = [post(headers=b"X-Request-Id: %d\r\n" % n) for n in range(1, 30)]
    health = b"GET /v2/health/live HTTP/1.1\r\n" + HOST + b"\r\n"
    data = client.raw(slow + b"".join(rest) + health + post(headers=CLOSE))
    ids = [
        line.partition(b": ")[2] for line in data.split(b"\r\n") if line.startswith(b"x-request-id")
    ]
    assert statuses(data) == [200] * 32
    assert ids[:30] == [b"%d" % n for n in range(30)]
    assert data.index(b'{"live":true}') > data.index(b"x-request-id: 29")


def test_more_pipelined_requests_than_may_wait_are_all_answered(serve):
    client = serve(limits=HttpLimits(pipeline=4))
    data = client.raw(post() * 100 + post(headers=CLOSE))
    assert statuses(data) == [200] * 101


def test_a_chunked_body_is_read_whole(client):
    head = b"POST /predict/tiny HTTP/1.1\r\n" + HOST + CLOSE + b"Transfer-Encoding: chunked\r\n\r\n"
    chunks = b"".join(b"1;note=x\r\n%c\r\n" % byte for byte in ROW)
    data = client.raw(head + chunks + b"0\r\nX-Trailer: ignored\r\n\r\n")
    assert statuses(data) == [200]


def test_a_request_may_come_byte_by_byte(client):
    with client.socket() as peer:
        for byte in post(headers=CLOSE):
            peer.sendall(bytes([byte]))
        data = b"".join(iter(lambda: peer.recv(4096), b""))
    assert statuses(data) == [200]


def test_a_client_may_close_its_side_and_still_read_the_answer(client):
    with client.socket() as peer:
        peer.sendall(post())
        peer.shutdown(1)
        data = b"".join(iter(lambda: peer.recv(4096), b""))
    assert statuses(data) == [200]


def test_http_1_0_knows_no_100_continue(client):
    """RFC 9110 §10.1.1: its clients would take it for the answer."""
    head = b"POST /predict/tiny HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    assert client.raw(head % len(ROW) + ROW).startswith(b"HTTP/1.1 200 OK\r\n")


def test_http_1_0_is_answered_and_closed(client):
    data = client.raw(b"GET /v2/health/live HTTP/1.0\r\n\r\n")
    assert statuses(data) == [200]
    assert b"Connection: close" in data


def test_head_has_the_length_and_no_body(client):
    whole = client.get("/v2/models/tiny")
    head = client.ask("HEAD", "/v2/models/tiny")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == str(len(whole.body))
    assert "date" in head.headers


def test_an_upgrade_is_ignored_as_javas_client_expects(client):
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n"
    data = client.raw(post(headers=upgrade) + post(headers=CLOSE))
    assert statuses(data) == [200, 200]


def test_an_upgrade_hides_no_second_request(client):
    upgrade = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
    inner = b"GET /v2/health/live HTTP/1.1\r\n" + HOST + b"\r\n"
    data = client.raw(post(inner, upgrade + b"Expect: 100-continue\r\n") + post(headers=CLOSE))
    assert statuses(data) == [100, 400, 200]


def test_connect_is_refused(client):
    assert statuses(client.raw(b"CONNECT a:1 HTTP/1.1\r\n" + HOST + b"\r\n")) == [405]


def test_expect_100_continue_is_answered_before_the_body_and_in_order(client):
    with client.socket() as peer:
        first = post()
        second = post(headers=b"Expect: 100-continue\r\n" + CLOSE)
        head, _, body = second.partition(b"\r\n\r\n")
        peer.sendall(first + head + b"\r\n\r\n")
        data = b""
        while b"100 Continue" not in data:
            data += peer.recv(4096)
        assert statuses(data) == [200, 100]
        peer.sendall(body)
        rest = b"".join(iter(lambda: peer.recv(4096), b""))
    assert statuses(rest) == [200]


def test_another_expectation_is_417(client):
    data = client.raw(post(headers=b"Expect: the-moon\r\n"))
    assert statuses(data) == [417]
    assert "header 'expect': found 'the-moon', allowed: 100-continue." in error(data)


def test_a_body_beyond_the_limit_is_413_before_it_is_sent(serve):
    client = serve(limits=HttpLimits(body_bytes=1000))
    head = post(b"").replace(b"Content-Length: 0", b"Content-Length: 10000000000")
    data = client.raw(head)
    assert statuses(data) == [413]
    assert error(data) == "body: found 10000000000 bytes, allowed: 1000."


def test_the_refusal_of_a_body_reaches_a_client_that_goes_on_sending(serve):
    client = serve(limits=HttpLimits(body_bytes=1000))
    data = client.raw(post(b"x" * 200_000))
    assert statuses(data) == [413]


def test_a_chunked_body_beyond_the_limit_is_413(serve):
    client = serve(limits=HttpLimits(body_bytes=1000))
    head = b"POST /predict/tiny HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
    data = client.raw(head + b"1f4\r\n" + b"x" * 500 + b"\r\n" + b"1f5\r\n" + b"x" * 501 + b"\r\n")
    assert statuses(data) == [413]


def test_bodies_of_all_connections_together_are_bounded(serve):
    client = serve(limits=HttpLimits(buffered_bytes=1000))
    with client.socket() as other:
        other.sendall(post(b"x" * 5000)[:900])
        time.sleep(0.05)
        data = client.raw(post(b"x" * 5000)[:900])
    assert statuses(data) == [503]
    assert b"Retry-After: 1" in data
    assert client.post("/predict/tiny", ROW).status == 200


def connected(server: Http) -> tuple[Connection, Wire]:
    connection, transport = Connection(server), Wire()
    connection.connection_made(transport)
    return connection, transport


def test_a_request_and_who_answers_it_do_not_hold_each_other():
    """Bodies are large, and a collector that counts objects would come late."""
    held = []

    def answer(exchange):
        exchange.on_gone = lambda: exchange
        held.append(weakref.ref(exchange.on_gone))
        exchange.respond(400)

    connection, _ = connected(Http(answer, HttpLimits()))
    gc.disable()
    try:
        connection.data_received(post() * 3)
        assert [ref() for ref in held] == [None] * 3
    finally:
        gc.enable()


@pytest.mark.parametrize("eof", [False, True])
def test_a_last_answer_has_as_long_as_any_to_be_taken(monkeypatch, eof):
    monkeypatch.setattr("drivetrain.serve.transport.http._LINGER_SECONDS", 0.01)
    held = []
    server = Http(held.append, HttpLimits(body_seconds=0.1))
    connection, transport = connected(server)
    connection.data_received(post(headers=b"" if eof else CLOSE))
    if eof:
        connection.eof_received()
    transport.unsent = 1000
    held[0].respond(200)
    time.sleep(0.03)
    server.tick()
    assert (transport.closing, transport.aborted) == (eof, False)
    time.sleep(0.1)
    server.tick()
    assert transport.aborted


def test_a_stream_of_requests_that_no_read_ends_with_is_answered_whole():
    """Each read ends within a request, so the connection is never found between two."""
    connection, transport = connected(Http(lambda e: e.respond(200, b"{}"), HttpLimits()))
    stream = post(b"x" * 100) * 6000
    size = 1 << 16
    for start in range(0, len(stream), size):
        connection.data_received(stream[start : start + size])
    assert len(stream) > 2 * (256 << 10)
    assert statuses(transport.data) == [200] * 6000


def test_a_request_that_the_server_does_not_read_on_is_not_called_slow():
    held = []
    server = Http(held.append, HttpLimits(pipeline=1, header_seconds=0.01))
    connection, transport = connected(server)
    connection.data_received(post() + post()[:20])
    time.sleep(0.02)
    server.tick()
    assert transport.data == b""
    held[0].respond(200)
    connection.data_received(post()[20:])
    held[1].respond(200)
    assert statuses(transport.data) == [200, 200]


def test_a_body_counts_until_its_request_is_answered_even_if_the_client_has_gone():
    held = []
    server = Http(held.append, HttpLimits(buffered_bytes=100))
    one, _ = connected(server)
    one.data_received(post(b"x" * 60))
    other, refused = connected(server)
    other.data_received(post(b"x" * 60))
    assert statuses(refused.data) == [503]
    one.connection_lost(None)
    assert server.buffered == 60
    held[0].respond(200)
    assert server.buffered == 0
    third, _ = connected(server)
    third.data_received(post(b"x" * 60))
    assert len(held) == 2


@pytest.mark.parametrize(
    ("headers", "status", "part"),
    [
        (b"Content-Length: 5\r\nContent-Length: 5\r\n", 400, "Content-Length"),
        (b"Content-Length: 5\r\nContent-Length: 6\r\n", 400, "Content-Length"),
        (b"Content-Length: 5, 5\r\n", 400, "Content-Length"),
        (b"Content-Length: +5\r\n", 400, "Content-Length"),
        (b"Content-Length: -5\r\n", 400, "Content-Length"),
        (b"Content-Length: 0x5\r\n", 400, "Content-Length"),
        (b"Content-Length: 99999999999999999999999\r\n", 400, "Content-Length"),
        (b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", 400, "Transfer-Encoding"),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", 400, "Content-Length"),
        (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", 400, "Transfer-Encoding"),
        (b"Transfer-Encoding: gzip, chunked\r\n", 501, "found 'gzip, chunked', allowed: chunked"),
        (b"Transfer-Encoding: identity\r\n", 501, "found 'identity', allowed: chunked"),
        (b"Transfer-Encoding: xchunked\r\n", 501, "found 'xchunked', allowed: chunked"),
        (b"Transfer-Encoding : chunked\r\n", 400, "not HTTP/1.1"),
        (b"X-Fold: a\r\n b\r\n", 400, "not HTTP/1.1"),
        (b"X-Nul: a\0b\r\n", 400, "not HTTP/1.1"),
        (b"X-Return: a\rb\r\n", 400, "not HTTP/1.1"),
        (b"Host: other\r\n", 400, "header 'host': found twice"),
        (b"Content-Encoding: br\r\nContent-Length: 5\r\n", 415, "'content-encoding'"),
    ],
)
def test_framing_that_a_proxy_might_read_otherwise_is_refused_and_closed(
    client, headers, status, part
):
    smuggled = b"0\r\n\r\nGET /v2 HTTP/1.1\r\nHost: x\r\n\r\n"
    head = b"POST /predict/tiny HTTP/1.1\r\n" + HOST + headers + b"\r\n"
    data = client.raw(head + smuggled)
    assert statuses(data) == [status]
    assert part in error(data)
    assert b"Connection: close" in data


@pytest.mark.parametrize(
    "chunk", [b"0x5\r\nhello\r\n", b"5\nhello\r\n", b"5\r\nhelloXX\r\n", b"f" * 17 + b"\r\nhello"]
)
def test_chunks_that_lie_are_refused(client, chunk):
    head = b"POST /predict/tiny HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
    assert statuses(client.raw(head + chunk + b"0\r\n\r\n")) == [400]


def test_a_chunk_as_long_as_a_number_can_be_hides_no_request_behind_it():
    """2^64 - 1 bytes may come, 2^64 are no number: neither may wrap into a small one."""
    head = b"POST /a HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
    hidden = b"\r\nx\r\n0\r\n\r\nGET /hidden HTTP/1.1\r\n" + HOST + b"\r\n"
    for size, status in ((b"f" * 16, 413), (b"1" + b"0" * 16, 400), (b"f" * 17, 400)):
        taken = []
        connection, wire = connected(Http(taken.append, HttpLimits(body_bytes=1000)))
        connection.data_received(head + size + hidden)
        connection.data_received(b"x" * 1000)
        assert (statuses(wire.data), taken) == ([status], [])


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET /v2 HTTP/2.0", 505),
        (b"GET /v2 HTTP/1.2", 400),
        (b"GET /" + b"a" * 5000 + b" HTTP/1.1", 414),
        (b"NONSENSE /v2 HTTP/1.1", 400),
        (b"PRI * HTTP/2.0", 400),
    ],
)
def test_a_request_line_of_another_kind_is_refused(client, request_line, status):
    data = client.raw(request_line + b"\r\n" + HOST + b"\r\n")
    assert statuses(data)[0] == status


def test_a_request_without_host_is_refused(client):
    data = client.raw(b"GET /v2 HTTP/1.1\r\n\r\n")
    assert statuses(data) == [400]
    assert error(data) == "header 'host': found none, allowed: one."


@pytest.mark.parametrize("line", [b"X-Long: " + b"a" * 20_000, b"\r\n".join([b"X: y"] * 200)])
def test_headers_beyond_the_limit_are_431(client, line):
    assert statuses(client.raw(b"GET /v2 HTTP/1.1\r\n" + HOST + line + b"\r\n\r\n")) == [431]


def test_a_header_that_never_ends_is_cut_off_before_it_fills_the_memory(client):
    data = client.raw(b"GET /v2 HTTP/1.1\r\nX-Endless: " + b"a" * 2_000_000)
    assert statuses(data) == [431]


def test_chunk_extensions_that_never_end_are_cut_off(client):
    head = b"POST /predict/tiny HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
    assert statuses(client.raw(head + b"1;" + b"a" * 2_000_000)) == [400]


@pytest.mark.parametrize(
    ("part", "named"),
    [(b"GET /v2 HTTP/1.1\r\nHost", "headers"), (post()[:-4], "body")],
)
def test_a_request_that_comes_too_slowly_is_408(serve, part, named):
    client = serve(limits=HttpLimits(header_seconds=0.2, body_seconds=0.2))
    data = client.raw(part)
    assert statuses(data) == [408]
    assert error(data) == f"{named}: found no end within 0.2 s."


def test_dripping_bytes_does_not_prolong_the_headers(serve):
    client = serve(limits=HttpLimits(header_seconds=0.3))
    with client.socket() as peer:
        started = time.monotonic()
        data = b""
        peer.settimeout(0.05)
        peer.sendall(b"GET /v2 HTTP/1.1\r\nX: ")
        while not data and time.monotonic() - started < 5:
            peer.sendall(b"a")
            try:
                data = peer.recv(4096)
            except TimeoutError:
                continue
    assert statuses(data) == [408]


def test_an_idle_connection_is_closed_without_a_word(serve):
    client = serve(limits=HttpLimits(header_seconds=0.2, idle_seconds=0.2))
    assert client.raw(b"") == b""
    assert statuses(client.raw(post())) == [200]


def test_a_client_that_does_not_read_is_cut_off(serve):
    client = serve(limits=HttpLimits(body_seconds=0.3))
    with client.socket() as peer:
        peer.settimeout(0.1)
        request = b"GET /metrics HTTP/1.1\r\n" + HOST + b"\r\n"
        cut = False
        deadline = time.monotonic() + 60  # it is cut off after a third of a second
        while not cut and time.monotonic() < deadline:
            try:
                peer.sendall(request * 200)
            except TimeoutError:
                continue
            except ConnectionError:
                cut = True
    assert cut


def test_the_longest_idle_connection_makes_way_for_a_new_one(serve):
    client = serve(limits=HttpLimits(connections=2))
    first, second = client.connection(), client.connection()
    assert client.get("/v2", over=first).status == 200
    assert client.get("/v2", over=second).status == 200
    assert client.get("/v2").status == 200
    assert first.sock.recv(1) == b""
    first.close()
    second.close()


def test_a_connection_too_many_is_503_while_all_are_busy(serve):
    client = serve(limits=HttpLimits(connections=1))
    with client.socket() as busy:
        busy.sendall(post()[:-1])
        time.sleep(0.05)
        data = client.raw(b"")
    assert statuses(data) == [503]
    assert b"Retry-After" in data


@settings(derandomize=True, deadline=None, max_examples=150)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=60),
            st.sampled_from(
                [
                    *(b"GET ", b"POST ", b"/predict/tiny", b"/v2", b" HTTP/1.1\r\n", b"\r\n"),
                    *(HOST, b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"),
                    *(b"5\r\nhello\r\n", b"0\r\n\r\n", b"Expect: 100-continue\r\n", post()),
                    *(b"Connection: close\r\n", b"Upgrade: h2c\r\nConnection: Upgrade\r\n"),
                ]
            ),
        ),
        max_size=12,
    )
)
def test_any_bytes_leave_the_server_whole(client, parts):
    with client.socket() as peer:
        try:
            for part in parts:
                peer.sendall(part)
            peer.shutdown(1)
            data = b"".join(iter(lambda: peer.recv(65536), b""))
        except ConnectionError:
            data = b""
    assert 500 not in statuses(data)
    connection = http.client.HTTPConnection(*client.address, timeout=5)
    assert client.get("/v2/health/ready", over=connection).status == 200
    connection.close()


def test_what_fails_behind_an_answer_takes_no_other_with_it(serve, monkeypatch, tmp_path):
    def offer(*_, **__):
        raise TypeError("cannot be kept")

    monkeypatch.setattr("drivetrain.serve.telemetry.feedback.Feedback.offer", offer)
    client = serve(feedback=tmp_path)
    assert statuses(client.raw(post() * 5 + post(headers=CLOSE))) == [200] * 6


def test_who_has_just_come_does_not_make_way_for_the_next():
    def answer(exchange):
        exchange.respond(200, b"{}")

    server = Http(answer, HttpLimits(connections=2))
    old, kept = connected(server)
    old.data_received(post())
    _, fresh = connected(server)  # has said nothing yet
    connected(server)
    assert (kept.closing, fresh.closing) == (True, False)
