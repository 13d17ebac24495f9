"""What a connection may take: bodies, headers, time, and how many connections there may be."""

import time

import pytest
from requests_of_bytes import CLOSE, HOST, ROW, connected, error, post, statuses

from drivetrain.serve.transport.http import Http, HttpLimits


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


def test_who_has_just_come_does_not_make_way_for_the_next():
    def answer(exchange):
        exchange.respond(200, b"{}")

    server = Http(answer, HttpLimits(connections=2))
    old, kept = connected(server)
    old.data_received(post())
    _, fresh = connected(server)  # has said nothing yet
    connected(server)
    assert (kept.closing, fresh.closing) == (True, False)
