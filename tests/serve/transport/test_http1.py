"""Connections: framing, order, and bytes that nobody should send."""

import gc
import http.client
import weakref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from requests_of_bytes import CLOSE, HOST, ROW, connected, error, post, statuses

from drivetrain.serve.transport.http import Http, HttpLimits


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


@pytest.mark.parametrize("asked", [b"", b"Connection: keep-alive\r\n"])
def test_http_1_0_is_answered_and_closed(client, asked):
    """It reads to the end where no answer says that the connection stays (RFC 9112 §9.3); what it
    sends behind its request has no meaning."""
    head = b"POST /predict/tiny HTTP/1.0\r\n%bContent-Length: %d\r\n\r\n" % (asked, len(ROW))
    for _ in range(2):  # a head that is known again would keep it open
        data = client.raw((head + ROW) * 2)
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


def test_a_stream_of_requests_that_no_read_ends_with_is_answered_whole():
    """Each read ends within a request, so the connection is never found between two."""
    connection, transport = connected(Http(lambda e: e.respond(200, b"{}"), HttpLimits()))
    stream = post(b"x" * 100) * 6000
    size = 1 << 16
    for start in range(0, len(stream), size):
        connection.data_received(stream[start : start + size])
    assert len(stream) > 2 * (256 << 10)
    assert statuses(transport.data) == [200] * 6000


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
