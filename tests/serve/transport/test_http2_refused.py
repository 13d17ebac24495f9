"""HTTP/2: what no client should send, and that it ends its stream or its connection."""

import json

import pytest
from http2_peer import (
    BLOCK,
    END,
    HELLO,
    OPENED,
    POST,
    Fields,
    echo,
    goaways,
    later,
    of,
    request,
    resets,
    setting,
    window,
)

from drivetrain.serve.transport.exchange import Exchange
from drivetrain.serve.transport.frames import (
    ACK,
    COMPRESSION_ERROR,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    GOAWAY,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    NO_ERROR,
    PADDED,
    PING,
    PREFACE,
    PRIORITIZED,
    PRIORITY,
    PROTOCOL_ERROR,
    PUSH_PROMISE,
    REFUSED_STREAM,
    RST_STREAM,
    SETTINGS,
    STREAM_CLOSED,
    WINDOW_UPDATE,
    frame,
)
from drivetrain.serve.transport.hpack import encode

# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ([*POST, (b"content-length", b"9999")], 413),
        ([*POST, (b"content-encoding", b"br")], 415),
        ([*POST, (b"content-type", b"application/grpc+json")], 415),
        ([*POST, (b"expect", b"a miracle")], 417),
        ([*POST, (b"x-request-id", b"1"), (b"x-request-id", b"2")], 400),
        ([*POST, *[(b"a", b"b")] * 100], 431),
        ([*POST, (b"a", b"b" * 9000)], 431),
        ([(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/" + b"a" * 4096)], 414),
        ([(b":method", b"CONNECT"), (b":authority", b"x:1")], 405),
    ],
)
def test_a_client_error_is_answered_with_its_status(peer, fields, status):
    client = peer(body_bytes=1000, header_bytes=8192)
    found = client.send(HELLO, frame(HEADERS, END_HEADERS, 1, encode(fields)))
    assert client.statuses(found) == [status]
    assert "found" in json.loads(of(DATA, found)[0][3])["error"]
    assert resets(found) == [(1, NO_ERROR)]
    assert client.refusals == [status]
    assert client.statuses(client.send(frame(DATA, END_STREAM, 1, b"late"), request(3))) == [200]


def test_a_body_that_grows_too_long_is_refused_before_its_end(peer):
    client = peer(body_bytes=1000)
    found = client.send(
        HELLO, frame(HEADERS, END_HEADERS, 1, encode(POST)), frame(DATA, 0, 1, b"x" * 1001)
    )
    assert client.statuses(found) == [413]
    assert client.asked == []
    assert client.http.buffered == 0


def test_what_all_clients_hold_is_bounded(peer):
    client = peer(buffered_bytes=1000)
    opened = [frame(HEADERS, END_HEADERS, n, encode(POST)) for n in (1, 3)]
    found = client.send(
        HELLO, *opened, frame(DATA, 0, 1, b"x" * 900), frame(DATA, 0, 3, b"y" * 101)
    )
    head = client.fields(found)[0]
    assert (head[b":status"], head[b"retry-after"]) == (b"503", b"1")
    assert client.http.buffered == 900
    assert client.statuses(client.send(frame(DATA, END_STREAM, 1, b""))) == [200]
    assert client.http.buffered == 0


def test_more_streams_than_allowed_are_refused_and_may_come_again(peer):
    client = peer(later, streams=2)
    found = client.send(HELLO, *(request(number) for number in (1, 3, 5)))
    assert resets(found) == [(5, REFUSED_STREAM)]
    client.do(lambda: echo(client.asked[0]))
    client.send(request(7))
    assert len(client.asked) == 3


def test_an_application_that_fails_costs_its_own_request_only(peer, caplog):
    def fail(exchange: Exchange) -> None:
        if exchange.body == b"bad":
            raise RuntimeError("by the test")
        echo(exchange)

    client = peer(fail)
    found = client.send(HELLO, request(1, body=b"bad"), request(3))
    assert client.statuses(found) == [500, 200]
    assert "by the test" in caplog.text


MALFORMED: dict[str, Fields] = {
    "upper case": [*POST, (b"X-A", b"b")],
    "no name": [*POST, (b"", b"b")],
    "space in a name": [*POST, (b"a b", b"c")],
    "colon in a name": [*POST, (b"a:b", b"c")],
    "byte above ASCII in a name": [*POST, (b"\xe4", b"c")],
    "line end in a value": [*POST, (b"a", b"b\r\nc: d")],
    "nothing in a value": [*POST, (b"a", b"b\0c")],
    "space before a value": [*POST, (b"a", b" b")],
    "tab behind a value": [*POST, (b"a", b"b\t")],
    "connection": [*POST, (b"connection", b"close")],
    "keep-alive": [*POST, (b"keep-alive", b"1")],
    "proxy-connection": [*POST, (b"proxy-connection", b"close")],
    "transfer-encoding": [*POST, (b"transfer-encoding", b"chunked")],
    "upgrade": [*POST, (b"upgrade", b"h2c")],
    "te": [*POST, (b"te", b"gzip")],
    "unknown pseudo-header": [*POST, (b":a", b"b")],
    "pseudo-header of an answer": [*POST, (b":status", b"200")],
    "pseudo-header behind a header": [*POST[:3], (b"a", b"b"), POST[3]],
    "method twice": [*POST, (b":method", b"POST")],
    "path twice": [*POST, (b":path", b"/b")],
    "no method": POST[1:],
    "no scheme": [POST[0], *POST[2:]],
    "no path": [*POST[:2], POST[3]],
    "empty path": [*POST[:2], (b":path", b"")],
    "no path but a star": [*POST[:2], (b":path", b"*")],
    "space in a path": [*POST[:2], (b":path", b"/a b")],
    "user in an authority": [*POST[:3], (b":authority", b"me@x")],
    "another host": [*POST, (b"host", b"y")],
    "content-length twice over": [*POST, (b"content-length", b"5, 5")],
    "negative content-length": [*POST, (b"content-length", b"-1")],
    "CONNECT with a path": [(b":method", b"CONNECT"), *POST[1:]],
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_request_is_reset_and_no_other(peer, name):
    client = peer()
    block = frame(HEADERS, END_HEADERS, 1, encode(MALFORMED[name]))
    found = client.send(HELLO, block, frame(DATA, END_STREAM, 1, b"late"), request(3))
    assert resets(found) == [(1, PROTOCOL_ERROR)]
    assert client.statuses(found) == [200]
    assert client.refusals == [400]
    assert len(client.asked) == 1


LENGTH = frame(HEADERS, END_HEADERS, 1, encode([*POST, (b"content-length", b"5")]))
STREAM_ERRORS = {
    "less than announced": (LENGTH + frame(DATA, END_STREAM, 1, b"four"), PROTOCOL_ERROR),
    "more than announced": (LENGTH + frame(DATA, 0, 1, b"sixsix"), PROTOCOL_ERROR),
    "nothing of what was announced": (
        frame(HEADERS, END, 1, encode([*POST, (b"content-length", b"5")])),
        PROTOCOL_ERROR,
    ),
    "trailers that do not end": (
        OPENED + frame(HEADERS, END_HEADERS, 1, encode([(b"a", b"b")])),
        PROTOCOL_ERROR,
    ),
    "pseudo-header in trailers": (
        OPENED + frame(HEADERS, END, 1, encode([(b":path", b"/")])),
        PROTOCOL_ERROR,
    ),
    "window by nothing": (OPENED + window(1, 0), PROTOCOL_ERROR),
    "window too large": (OPENED + window(1, (1 << 31) - 1), FLOW_CONTROL_ERROR),
    "priority of another size": (OPENED + frame(PRIORITY, 0, 1, b"1234"), FRAME_SIZE_ERROR),
}


@pytest.mark.parametrize("name", STREAM_ERRORS)
def test_a_stream_error_ends_its_stream_and_no_other(peer, name):
    data, code = STREAM_ERRORS[name]
    client = peer()
    found = client.send(HELLO, data, request(3))
    assert resets(found) == [(1, code)]
    assert client.statuses(found) == [200]
    assert not client.wire.ended


def test_content_behind_the_end_is_a_stream_error(peer):
    client = peer(later)
    found = client.send(HELLO, request(1), frame(DATA, 0, 1, b"more"), request(3))
    assert resets(found) == [(1, STREAM_CLOSED)]
    assert goaways(found) == []


CONNECTION_ERRORS = {
    "not the preface": (b"GET / HTTP/1.1\r\n\r\n", PROTOCOL_ERROR),
    "half the preface": (PREFACE[:20] + b"\0" * 20, PROTOCOL_ERROR),
    "no settings first": (PREFACE + frame(PING, 0, 0, b"12345678"), PROTOCOL_ERROR),
    "an acknowledgement first": (PREFACE + frame(SETTINGS, ACK, 0), PROTOCOL_ERROR),
    "a frame too long": (HELLO + b"\x01\0\x01\0\0\0\0\0\1", FRAME_SIZE_ERROR),
    "content on no stream": (HELLO + frame(DATA, 0, 0, b"x"), PROTOCOL_ERROR),
    "content on an idle stream": (HELLO + frame(DATA, 0, 1, b"x"), PROTOCOL_ERROR),
    "content on a closed stream": (HELLO + request(1) + frame(DATA, 0, 1, b"x"), STREAM_CLOSED),
    "headers on a closed stream": (HELLO + request(1) + request(1), STREAM_CLOSED),
    "headers on no stream": (HELLO + frame(HEADERS, END, 0, BLOCK), PROTOCOL_ERROR),
    "headers on a server's stream": (HELLO + frame(HEADERS, END, 2, BLOCK), PROTOCOL_ERROR),
    "an earlier stream": (HELLO + request(5) + request(3), STREAM_CLOSED),
    "more padding than content": (
        HELLO + OPENED + frame(DATA, PADDED, 1, b"\5abc"), PROTOCOL_ERROR
    ),
    "padding and nothing": (HELLO + OPENED + frame(DATA, PADDED, 1, b""), PROTOCOL_ERROR),
    "more padding than headers": (
        HELLO + frame(HEADERS, END | PADDED, 1, b"\xff" + BLOCK), PROTOCOL_ERROR
    ),
    "headers without their priority": (
        HELLO + frame(HEADERS, END | PRIORITIZED, 1, b"abc"), FRAME_SIZE_ERROR
    ),
    "a damaged block": (HELLO + frame(HEADERS, END, 1, b"\x80"), COMPRESSION_ERROR),
    "damaged trailers": (HELLO + OPENED + frame(HEADERS, END, 1, b"\xbe"), COMPRESSION_ERROR),
    "a damaged block on a closed stream": (
        HELLO + request(1) + frame(HEADERS, END, 1, b"\xbe"), COMPRESSION_ERROR
    ),
    "continuation of nothing": (HELLO + frame(CONTINUATION, END, 1, BLOCK), PROTOCOL_ERROR),
    "a frame amid a block": (
        HELLO + frame(HEADERS, 0, 1, BLOCK) + frame(PING, 0, 0, b"12345678"), PROTOCOL_ERROR
    ),
    "an unknown frame amid a block": (
        HELLO + frame(HEADERS, 0, 1, BLOCK) + frame(0xBB, 0, 1, b""), PROTOCOL_ERROR
    ),
    "another stream's continuation": (
        HELLO + frame(HEADERS, 0, 1, BLOCK) + frame(CONTINUATION, END_HEADERS, 3), PROTOCOL_ERROR
    ),
    "priority on no stream": (HELLO + frame(PRIORITY, 0, 0, b"12345"), PROTOCOL_ERROR),
    "priority of another size, idle": (HELLO + frame(PRIORITY, 0, 1, b"1"), FRAME_SIZE_ERROR),
    "reset on no stream": (HELLO + frame(RST_STREAM, 0, 0, b"1234"), PROTOCOL_ERROR),
    "reset on an idle stream": (HELLO + frame(RST_STREAM, 0, 1, b"1234"), PROTOCOL_ERROR),
    "reset of another size": (HELLO + OPENED + frame(RST_STREAM, 0, 1, b"123"), FRAME_SIZE_ERROR),
    "settings on a stream": (HELLO + frame(SETTINGS, 0, 1), PROTOCOL_ERROR),
    "settings of another size": (HELLO + frame(SETTINGS, 0, 0, b"12345"), FRAME_SIZE_ERROR),
    "an acknowledgement that says more": (
        HELLO + frame(SETTINGS, ACK, 0, b"123456"), FRAME_SIZE_ERROR
    ),
    "push above one": (HELLO + setting(2, 2), PROTOCOL_ERROR),
    "initial window too large": (HELLO + setting(4, 1 << 31), FLOW_CONTROL_ERROR),
    "frame size too small": (HELLO + setting(5, 16_383), PROTOCOL_ERROR),
    "frame size too large": (HELLO + setting(5, 1 << 24), PROTOCOL_ERROR),
    "initial window that overflows a stream's": (
        HELLO + OPENED + window(1, 1 << 30) + setting(4, (1 << 31) - 1), FLOW_CONTROL_ERROR
    ),
    "a push from a client": (HELLO + frame(PUSH_PROMISE, END, 1, b"\0\0\0\2"), PROTOCOL_ERROR),
    "ping on a stream": (HELLO + frame(PING, 0, 1, b"12345678"), PROTOCOL_ERROR),
    "ping of another size": (HELLO + frame(PING, 0, 0, b"1234567"), FRAME_SIZE_ERROR),
    "goaway on a stream": (HELLO + frame(GOAWAY, 0, 1, b"12345678"), PROTOCOL_ERROR),
    "goaway too short": (HELLO + frame(GOAWAY, 0, 0, b"1234567"), FRAME_SIZE_ERROR),
    "window on an idle stream": (HELLO + window(1, 5), PROTOCOL_ERROR),
    "window by nothing": (HELLO + window(0, 0), PROTOCOL_ERROR),
    "window by nothing, closed": (HELLO + request(1) + window(1, 0), PROTOCOL_ERROR),
    "priority of another size, closed": (
        HELLO + request(1) + frame(PRIORITY, 0, 1, b"1"), FRAME_SIZE_ERROR
    ),
    "window too large": (HELLO + window(0, (1 << 31) - 1), FLOW_CONTROL_ERROR),
    "window of another size": (HELLO + frame(WINDOW_UPDATE, 0, 0, b"123"), FRAME_SIZE_ERROR),
}  # fmt: skip


@pytest.mark.parametrize("name", CONNECTION_ERRORS)
def test_a_connection_error_is_told_and_ends_it(peer, name):
    data, code = CONNECTION_ERRORS[name]
    client = peer()
    found = client.send(data)
    assert [given for _, given in goaways(found)] == [code]
    assert found[-1][0] == GOAWAY
    assert client.wire.ended
    assert client.send(request(99)) == []
    assert client.connection.ending


def test_what_was_under_way_when_a_stream_was_reset_is_passed_over(peer):
    client = peer(later)
    found = client.send(
        HELLO, OPENED, frame(RST_STREAM, 0, 1, b"\0\0\0\x08"), frame(RST_STREAM, 0, 1, b"1234"),
        window(1, 5), frame(PRIORITY, 0, 1, b"12345"), request(3),
    )  # fmt: skip
    assert goaways(found) == resets(found) == []
    assert len(client.asked) == 1


def test_what_was_refused_is_not_answered_again_when_its_content_comes(peer):
    client = peer()
    fields = [*POST, (b"content-encoding", b"br")]
    opened = frame(HEADERS, END_HEADERS, 1, encode(fields))
    found = client.send(HELLO, setting(INITIAL_WINDOW_SIZE, 0), opened)
    assert client.statuses(found) == [415]
    found = client.send(frame(DATA, 0, 1, b"some"), frame(DATA, END_STREAM, 1, b" more"))
    assert not of(HEADERS, found)
    assert not client.asked
    assert client.http.buffered == 0
    found = client.send(window(1, 1000))
    assert [flags for _, flags, _, _ in of(DATA, found)] == [END_STREAM]
    assert not client.connection.streams


def test_an_answer_without_content_needs_no_window(peer):
    client = peer(lambda exchange: exchange.respond(200, b""))
    opened = frame(HEADERS, END_HEADERS, 1, BLOCK)
    client.send(HELLO, opened)
    client.do(lambda: client.connection.streams[1].widen(-100_000))
    found = client.send(frame(DATA, END_STREAM, 1, b"x"))
    assert [(kind, flags) for kind, flags, *_ in found] == [(HEADERS, END)]
