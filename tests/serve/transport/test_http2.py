"""HTTP/2: what a client that keeps to the protocol sees, from its preface to its end."""

import struct

import h2.config
import h2.connection
import h2.events
import h2.settings
from http2_peer import (
    END,
    GET,
    HELLO,
    POST,
    Wire,
    echo,
    goaways,
    later,
    of,
    request,
    setting,
    wait,
    window,
)

from drivetrain.serve.transport.exchange import Exchange
from drivetrain.serve.transport.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    NO_ERROR,
    PADDED,
    PING,
    PRIORITIZED,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    frame,
)
from drivetrain.serve.transport.hpack import encode
from drivetrain.serve.transport.http2 import Connection

# -- what a client should send ---------------------------------------------------------------------


def test_a_request_and_its_answer(browser):
    client = browser()
    number = client.ask([*POST, (b"x-request-id", b"7"), (b"accept", b"*/*")], b"hello")
    head = client.heads[number]
    assert (head[b":status"], head[b"content-type"]) == (b"200", b"text/plain")
    assert head[b"content-length"] == b"5"
    assert b"date" in head
    assert client.bodies[number] == b"hello"
    asked = client.peer.asked[0]
    assert (asked.method, asked.target) == (b"POST", b"/a")
    assert asked.headers == {b"x-request-id": b"7"}


def test_a_request_without_content(browser):
    client = browser()
    number = client.ask(GET)
    assert client.heads[number][b"content-length"] == b"0"
    assert number in client.ended


def test_head_has_the_length_and_no_content(browser):
    client = browser(lambda exchange: exchange.respond(200, b"12345"))
    number = client.ask([(b":method", b"HEAD"), *POST[1:]])
    assert client.heads[number][b"content-length"] == b"5"
    assert number not in client.bodies
    assert number in client.ended


def test_answers_may_come_in_another_order(browser):
    client = browser(later)
    numbers = [client.ask(POST, b"%d" % n) for n in range(5)]
    for exchange in reversed(client.peer.asked):
        client.peer.do(lambda one=exchange: echo(one))
        client.exchange()
    assert [client.bodies[number] for number in numbers] == [b"%d" % n for n in range(5)]


def test_answers_of_one_turn_go_out_in_one_write(peer):
    client = peer(later)
    client.send(HELLO, *(request(number) for number in range(1, 41, 2)))
    writes = len(client.wire.writes)
    client.do(lambda: [echo(exchange) for exchange in client.asked])
    assert len(client.wire.writes) == writes + 1
    assert len(of(DATA, client.frames())) == 20


def test_a_large_body_is_granted_as_it_is_read(browser):
    client = browser()
    body = bytes(range(256)) * (3 << 12)
    number = client.ask(POST, body)
    assert client.bodies[number] == body
    assert client.peer.http.buffered == 0


def test_a_large_answer_waits_for_the_windows(browser):
    body = bytes(range(256)) * 4096
    client = browser(lambda exchange: exchange.respond(200, body))
    client.takes = False
    number = client.ask(GET)
    assert len(client.bodies[number]) == 65_535
    assert not client.ended
    while number not in client.ended:
        client.h2.increment_flow_control_window(40_000)
        client.h2.increment_flow_control_window(50_000, number)
        client.exchange()
    assert client.bodies[number] == body


def test_the_window_of_the_connection_is_shared_by_age(browser):
    client = browser(lambda exchange: exchange.respond(200, b"x" * 60_000))
    client.takes = False
    first, second = client.ask(GET), client.ask(GET)
    assert first in client.ended
    assert len(client.bodies[second]) == 5535
    client.h2.increment_flow_control_window(60_000)
    client.exchange()
    assert second in client.ended


def test_windows_follow_the_settings_even_below_nothing(peer):
    client = peer(lambda exchange: exchange.respond(200, b"x" * 1000))
    found = client.send(HELLO, setting(4, 600), request(1, GET, None))
    assert [len(data) for *_, data in of(DATA, found)] == [600]
    assert of(DATA, client.send(setting(4, 100))) == []
    assert of(DATA, client.send(window(1, 500))) == []
    assert [len(data) for *_, data in of(DATA, client.send(window(1, 50)))] == [50]
    found = client.send(setting(4, 1000))
    assert [(flags, len(data)) for _, flags, _, data in of(DATA, found)] == [(END_STREAM, 350)]


def test_a_wider_window_is_acknowledged_before_it_is_used(peer):
    client = peer(lambda exchange: exchange.respond(200, b"x" * 1000))
    client.send(HELLO, setting(4, 600), request(1, GET, None))
    found = client.send(setting(4, 1000))
    assert [(kind, len(data)) for kind, _, _, data in found] == [(SETTINGS, 0), (DATA, 400)]


def test_an_answer_is_cut_to_the_frames_that_the_client_takes(peer):
    client = peer(lambda exchange: exchange.respond(200, b"x" * 50_000))
    found = client.send(HELLO, request(1, GET, None))
    assert [len(data) for *_, data in of(DATA, found)] == [16_384] * 3 + [848]
    found = client.send(setting(5, 40_000), window(0, 60_000), request(3, GET, None))
    assert [len(data) for *_, data in of(DATA, found)] == [40_000, 10_000]


def test_trailers_padding_priority_and_continuations_are_read(peer):
    client = peer()
    block = encode([*POST, (b"trailer", b"x")])
    found = client.send(
        HELLO,
        frame(PRIORITY, 0, 1, b"\0\0\0\0\x10"),
        frame(HEADERS, PADDED | PRIORITIZED, 1, b"\x02\0\0\0\0\x05" + block[:9] + b"\0\0"),
        frame(CONTINUATION, 0, 1, block[9:12]),
        frame(CONTINUATION, END_HEADERS, 1, block[12:]),
        frame(DATA, PADDED, 1, b"\x03hel\0\0\0"),
        frame(DATA, 0, 1, b"lo"),
        frame(HEADERS, END, 1, encode([(b"x", b"y")])),
    )
    assert client.statuses(found) == [200]
    assert of(DATA, found)[0][3] == b"hello"


def test_what_is_not_known_is_passed_over(peer):
    client = peer()
    found = client.send(HELLO, setting(0x99, 5), frame(0xBB, 0xFF, 7, b"?"), request(1))
    assert client.statuses(found) == [200]


def test_a_request_may_come_byte_by_byte(peer):
    client = peer()
    for byte in HELLO + request(1):
        client.send(bytes((byte,)))
    assert bytes(client.asked[0].body) == b"hello"
    assert client.connection.idle


def test_a_client_may_have_no_table_for_headers(browser):
    client = browser()
    client.h2.update_settings({h2.settings.SettingCodes.HEADER_TABLE_SIZE: 0})
    client.exchange()
    numbers = [client.ask(POST, b"a") for _ in range(3)]
    assert [client.heads[number][b":status"] for number in numbers] == [b"200"] * 3


def test_a_repeated_head_is_read_anew_when_the_table_has_changed(peer):
    client = peer(later)
    same = b"\x83\x86\x84\xbe"  # its last field is the newest entry of the table
    new = b"\x83\x86\x84\x40\x0cx-request-id\x01"
    blocks = [new + b"1", same, same, new + b"2", same]
    client.send(HELLO, *(frame(HEADERS, END, 2 * n + 1, block) for n, block in enumerate(blocks)))
    ids = [exchange.headers[b"x-request-id"] for exchange in client.asked]
    assert ids == [b"1", b"1", b"1", b"2", b"2"]


def test_a_ping_is_answered(peer):
    found = peer().send(HELLO, frame(PING, 0, 0, b"12345678"))
    assert of(PING, found) == [(PING, ACK, 0, b"12345678")]


def test_settings_are_acknowledged_and_given(peer):
    found = peer(streams=9, header_bytes=5000).send(HELLO)
    given = dict(struct.iter_unpack(">HL", of(SETTINGS, found)[0][3]))
    assert (given[3], given[6]) == (9, 5000)
    assert of(SETTINGS, found)[1] == (SETTINGS, ACK, 0, b"")


def test_expect_100_continue_is_answered_before_the_content(peer):
    client = peer()
    found = client.send(
        HELLO, frame(HEADERS, END_HEADERS, 1, encode([*POST, (b"expect", b"100-continue")]))
    )
    assert client.statuses(found) == [100]
    assert client.statuses(client.send(frame(DATA, END_STREAM, 1, b"x"))) == [200]


# -- the end ---------------------------------------------------------------------------------------


def test_a_client_that_gives_up_is_told_to_the_application(peer):
    gone: list[int] = []

    def note(exchange: Exchange) -> None:
        exchange.on_gone = lambda: gone.append(len(gone))

    client = peer(note)
    client.send(HELLO, request(1), request(3), frame(RST_STREAM, 0, 1, b"\0\0\0\x08"))
    assert gone == [0]
    client.do(lambda: client.connection.connection_lost(None))
    assert gone == [0, 1]
    client.do(lambda: [echo(exchange) for exchange in client.asked])
    assert client.frames() == []
    assert client.http.buffered == 0


def test_a_drain_answers_what_came_before_the_client_knew(peer):
    client = peer(later)
    client.send(HELLO, request(1))
    client.do(client.http.drain)
    found = client.frames()
    assert goaways(found) == [((1 << 31) - 1, NO_ERROR)]
    ping = of(PING, found)[0]
    assert goaways(client.send(request(3))) == []
    found = client.send(frame(PING, ACK, 0, ping[3]))
    assert goaways(found) == [(3, NO_ERROR)]
    client.send(request(5))
    assert len(client.asked) == 2
    assert client.http.unanswered == 1
    client.do(lambda: [echo(exchange) for exchange in client.asked])
    assert client.statuses(client.frames()) == [200, 200]
    assert client.wire.ended
    assert client.http.unanswered == 0


def test_a_drain_does_not_wait_for_a_client_that_does_not_answer(peer, monkeypatch):
    monkeypatch.setattr("drivetrain.serve.transport.http2._DRAIN_SECONDS", 0.03)
    client = peer()
    client.send(HELLO, request(1))
    client.do(client.http.drain)
    assert goaways(wait(client, 0.1)) == [((1 << 31) - 1, NO_ERROR), (1, NO_ERROR)]
    assert client.connection.ending


def test_a_connection_that_comes_during_a_drain_is_told_and_served(peer):
    client = peer(later)
    client.http.draining = True
    client.connection = client.do(lambda: Connection(client.http))
    client.do(lambda: client.connection.connection_made(client.wire))
    found = client.send(HELLO, request(1))
    assert goaways(found) == [((1 << 31) - 1, NO_ERROR)]
    assert len(client.asked) == 1


def test_a_client_that_goes_gets_its_answers(peer):
    client = peer(later)
    client.send(HELLO, request(1), frame(GOAWAY, 0, 0, bytes(8)))
    assert not client.wire.ended
    client.do(lambda: echo(client.asked[0]))
    assert client.statuses(client.frames()) == [200]
    wait(client, 0.02)
    assert client.wire.ended


def test_a_client_may_close_its_side_and_still_read_the_answer(peer):
    client = peer(later)
    client.send(HELLO, request(1), frame(HEADERS, END_HEADERS, 3, encode(POST)))
    assert client.connection.eof_received()
    client.do(lambda: echo(client.asked[0]))
    assert client.statuses(client.frames()) == [200]
    assert client.wire.closing


def test_one_connection_too_many_is_told_so(peer):
    client = peer(later, connections=1)
    client.send(HELLO, request(1))
    wire = Wire()
    more = client.do(lambda: Connection(client.http))
    client.do(lambda: more.connection_made(wire))
    assert b"more than 1 connections" in b"".join(wire.writes)
    assert wire.ended
