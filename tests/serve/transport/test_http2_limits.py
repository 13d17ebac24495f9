"""HTTP/2: what would wear a server out, and what takes too long."""

import pytest
from http2_peer import (
    BLOCK,
    END,
    GET,
    HELLO,
    OPENED,
    POST,
    goaways,
    later,
    of,
    request,
    resets,
    setting,
    wait,
    window,
)

from drivetrain.serve.transport.frames import (
    ACK,
    CANCEL,
    CONTINUATION,
    DATA,
    ENHANCE_YOUR_CALM,
    HEADERS,
    NO_ERROR,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    frame,
)
from drivetrain.serve.transport.hpack import encode

# -- what would wear the server out ----------------------------------------------------------------


def test_streams_that_are_opened_and_reset_at_once_are_bounded(peer):
    """CVE-2023-44487."""
    client = peer(later)
    gone: list[int] = []
    client.send(HELLO)
    for number in range(1, 10_001, 2):
        cancel = frame(RST_STREAM, 0, number, b"\0\0\0\x08")
        found = client.send(request(number), cancel)
        if goaways(found):
            break
        client.asked[-1].on_gone = lambda: gone.append(1)
    assert [code for _, code in goaways(found)] == [ENHANCE_YOUR_CALM]
    assert 900 < len(client.asked) < 3000


def test_streams_that_the_server_must_reset_are_bounded(peer):
    """CVE-2025-8671."""
    client = peer(later)
    client.send(HELLO)
    for number in range(1, 10_001, 2):
        found = client.send(request(number), window(number, 0))
        if goaways(found):
            break
    assert [code for _, code in goaways(found)] == [ENHANCE_YOUR_CALM]
    assert 900 < len(client.asked) < 3000


FLOODS = {
    "ping": frame(PING, 0, 0, b"12345678"),
    "settings": frame(SETTINGS, 0, 0),
    "priority": frame(PRIORITY, 0, 1, b"12345"),
    "unknown": frame(0xBB, 0, 0),
    "empty content": frame(DATA, 0, 1),
    "empty content with padding": frame(DATA, PADDED, 1, b"\0"),
    "small windows": window(1, 1),
    "reset of a stream that is closed": frame(RST_STREAM, 0, 1, b"1234"),
}


@pytest.mark.parametrize("name", FLOODS)
def test_frames_that_bring_nothing_are_bounded(peer, name):
    client = peer()
    client.send(HELLO, request(1) if "closed" in name else OPENED)
    for _ in range(40):
        found = client.send(FLOODS[name] * 1000)
        if goaways(found):
            break
    assert [code for _, code in goaways(found)] == [ENHANCE_YOUR_CALM]


def test_windows_that_let_each_answer_go_byte_by_byte_are_bounded(peer):
    """CVE-2019-9511: one setting makes as many frames as there are streams."""
    client = peer(lambda exchange: exchange.respond(200, b"x" * 5000))
    client.send(HELLO, setting(4, 0), *(request(number) for number in range(1, 401, 2)))
    sent = 0
    for size in range(1, 1001):
        found = client.send(setting(4, size))
        sent += len(of(DATA, found))
        if goaways(found):
            break
    assert [code for _, code in goaways(found)] == [ENHANCE_YOUR_CALM]
    assert sent < 30_000


def test_a_client_may_ping_as_often_as_it_asks(peer):
    client = peer()
    client.send(HELLO)
    ping = frame(PING, 0, 0, b"12345678")
    for number in range(1, 30_001, 2):
        client.connection.data_received(ping + request(number, GET, None))
    assert not client.connection.ending
    assert len(client.asked) == 15_000


def test_headers_that_do_not_end_are_bounded(peer):
    """CVE-2024-27316, with bytes and with none."""
    for part in (b"", b"\x04\x01/"):
        client = peer()
        more = frame(CONTINUATION, 0, 1, part)
        found = client.send(HELLO, frame(HEADERS, 0, 1, BLOCK), more * 40)
        assert [code for _, code in goaways(found)] == [ENHANCE_YOUR_CALM]
    client = peer(header_bytes=1000)
    more = frame(CONTINUATION, 0, 1, b"\x04\x7f\x81\x03" + b"/" * 512)
    found = client.send(HELLO, frame(HEADERS, 0, 1, BLOCK), more * 31)
    assert [code for _, code in goaways(found)] == [ENHANCE_YOUR_CALM]


def test_a_block_that_grows_on_decoding_is_refused_and_the_table_kept(peer):
    client = peer(header_bytes=8192)
    bomb = encode(POST) + b"\x40\x01a\x7f\x81\x1d" + b"x" * 3840 + b"\xbe" * 10_000
    found = client.send(HELLO, frame(HEADERS, END, 1, bomb), request(3))
    assert client.statuses(found) == [431, 200]


def test_reading_stops_while_the_client_does_not_take_its_answers(peer):
    client = peer()
    client.do(client.connection.pause_writing)
    assert client.wire.paused
    client.do(client.connection.resume_writing)
    assert not client.wire.paused


# -- time ------------------------------------------------------------------------------------------


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is looked for every second is looked for at each tick."""
    monkeypatch.setattr("drivetrain.serve.transport.http2._WATCH_SECONDS", 0.01)


def test_a_client_that_says_nothing_is_let_go(peer):
    client = peer(header_seconds=0.05)
    wait(client, 0.1)
    assert client.connection.ending


@pytest.mark.parametrize("part", [PREFACE[:5], PREFACE, HELLO + b"\0", HELLO + OPENED[:12]])
def test_a_frame_that_does_not_end_is_let_go(peer, part):
    client = peer(header_seconds=0.05)
    client.send(part)
    found = wait(client, 0.1)
    assert len(goaways(found)) == 1
    assert client.connection.ending


def test_a_header_block_that_does_not_end_is_let_go_whatever_comes(peer):
    client = peer(header_seconds=0.05)
    client.send(HELLO, frame(HEADERS, 0, 1, BLOCK))
    for _ in range(10):
        if client.connection.ending:
            break
        client.send(frame(CONTINUATION, 0, 1, b""))
        wait(client, 0.02)
    assert client.connection.ending


def test_a_body_that_does_not_end_is_answered_408(peer, soon):
    client = peer(body_seconds=0.05)
    client.send(HELLO, OPENED, frame(DATA, 0, 1, b"x"), request(3))
    found = wait(client, 0.15)
    assert client.statuses(found) == [408]
    assert resets(found) == [(1, NO_ERROR)]
    assert not client.connection.ending


def test_an_answer_that_is_not_taken_is_reset(peer, soon):
    client = peer(body_seconds=0.05)
    client.send(HELLO, setting(4, 1), request(1))
    assert resets(wait(client, 0.15)) == [(1, CANCEL)]
    assert client.http.buffered == 0


def test_a_client_that_does_not_read_is_cut_off(peer):
    client = peer(body_seconds=0.05)
    client.do(client.connection.pause_writing)
    wait(client, 0.1)
    assert client.wire.closing


def test_an_idle_client_is_let_go_and_told(peer):
    client = peer(idle_seconds=0.05)
    client.send(HELLO, request(1))
    assert goaways(wait(client, 0.1)) == [(1, NO_ERROR)]
    assert client.connection.ending


def test_pings_do_not_keep_an_idle_client(peer):
    client = peer(idle_seconds=0.05)
    client.send(HELLO, request(1))
    for _ in range(10):
        if client.connection.ending:
            break
        client.send(frame(PING, 0, 0, b"12345678"))
        wait(client, 0.02)
    assert client.connection.ending


def test_a_client_with_requests_is_asked_whether_it_is_there(peer, soon):
    client = peer(later, idle_seconds=0.05, header_seconds=0.1)
    client.send(HELLO, request(1))
    assert of(PING, wait(client, 0.1)) != []
    client.send(frame(PING, ACK, 0, bytes(8)))
    wait(client, 0.05)
    assert not client.wire.closing
    wait(client, 0.25)
    assert client.wire.closing
