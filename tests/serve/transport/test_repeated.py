"""A head that is known by its bytes means what the parser made of it, and nothing else is known."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire import Wire

from drivetrain.serve.transport.http import Http, HttpLimits
from drivetrain.serve.transport.http1 import Connection
from drivetrain.serve.transport.repeated import RepeatedHead


class Site:
    """A connection whose requests are noted, and answered with what they brought."""

    def __init__(self, **limits):
        self.seen = []
        self.http = Http(self.answer, HttpLimits(**limits))
        self.connect()

    def connect(self, managed=False):
        """From now on requests come over another connection."""
        self.transport = Wire()
        self.connection = Connection(self.http, managed)
        self.connection.connection_made(self.transport)

    def answer(self, exchange):
        headers = dict(exchange.headers)
        self.seen.append((exchange.method, exchange.target, headers, bytes(exchange.body)))
        exchange.respond(200, b"%d" % len(exchange.body))

    def take(self, *parts):
        for part in parts:
            if self.connection.stage < 3:  # it still reads
                self.connection.data_received(part)


def post(body, head=b"POST /p HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n"):
    return head % len(body) + body


HEADS = (
    b"POST /p HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n",
    b"POST /p HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\nX-Request-Id: a\r\n\r\n",
    b"POST /p HTTP/1.1\r\ncontent-length:%d\r\nHost: h\r\nContent-Encoding: identity\r\n\r\n",
    b"POST /q HTTP/1.1\r\nHost: h\r\nX-Note: content-length: 3\r\nContent-Length: %d\r\n\r\n",
    b"POST /p HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: %d\r\n\r\n",
    b"POST /p HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n",
    b"POST /p HTTP/1.1\r\nHost: h\r\nContent-Length: 0%d\r\n\r\n",
    b"POST /p HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\nContent-Length: 1\r\n\r\n",
)
bodies = st.sampled_from((b"", b"1", b"\r\n", b"\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"x" * 40))
requests = st.builds(lambda head, body: head % len(body) + body, st.sampled_from(HEADS), bodies)
wild = st.builds(
    lambda data, at, byte: data[: at % len(data)] + byte + data[at % len(data) + 1 :],
    requests,
    st.integers(0, 200),
    st.binary(max_size=2),
)
lines = st.lists(requests | requests | wild, min_size=1, max_size=6)


@given(lines, st.integers(0, 2))
def test_what_comes_out_is_what_the_parser_alone_makes_of_it(requests, chop):
    known, plain = Site(), Site()
    for request in requests:
        parts = [request[:chop], request[chop:]] if chop else [request]
        known.take(*parts)
        plain.connection._reader._repeated = None
        plain.http.heads.clear()
        plain.take(*parts)
    assert known.seen == plain.seen
    assert known.transport.data == plain.transport.data
    assert known.connection.stage == plain.connection.stage
    assert known.http.buffered == plain.http.buffered


@given(st.lists(st.tuples(lines, st.booleans()), min_size=1, max_size=4))
def test_a_connection_is_read_as_if_there_were_no_other(connections):
    known, plain = Site(), Site()
    for requests, managed in connections:
        for site in (known, plain):
            site.connect(managed)
        for request in requests:
            known.take(request)
            plain.connection._reader._repeated = None
            plain.http.heads.clear()
            plain.take(request)
        assert known.seen == plain.seen
        assert known.transport.data == plain.transport.data
        assert known.connection.stage == plain.connection.stage


def test_what_one_client_sends_is_known_of_the_next_that_comes_in_where_it_did():
    site = Site()
    site.take(post(b"first"))
    head = site.connection._reader._repeated
    for managed, known in ((False, head), (True, None)):
        site.connect(managed)
        reader = site.connection._reader
        site.take(post(b"other"))
        assert (reader._repeated is head) == (reader._parser is None) == (known is head)
    assert [body for *_, body in site.seen] == [b"first", b"other", b"other"]


@pytest.mark.parametrize(
    "name", [b"Authorization", b"proxy-authorization", b"Cookie", b"X-Api-Key", b"x-auth-token"]
)
@pytest.mark.parametrize("first", [True, False])
def test_a_head_with_a_secret_is_known_of_its_own_client_only(name, first):
    lines = [b"Host: h", b"Content-Length: %d", name + b": s3cret"]
    lines = lines if first else [lines[2], *lines[:2]]
    head = b"POST /p HTTP/1.1\r\n" + b"\r\n".join(lines) + b"\r\n\r\n"
    site = Site()
    site.take(post(b"one", head))
    assert site.connection._reader._repeated is not None
    assert not site.http.heads
    site.connect()
    site.take(post(b"two", head))
    assert site.connection._reader._parser is not None
    assert len(site.seen) == 2


def test_a_head_is_known_again_whatever_the_length_of_the_body():
    site = Site()
    site.take(post(b"first"), post(b"2"), post(b""), post(b"x" * 1000))
    assert [body for *_, body in site.seen] == [b"first", b"2", b"", b"x" * 1000]
    assert all(headers == {b"host": b"h"} for _, _, headers, _ in site.seen)
    head, other = site.connection._reader._repeated, post(b"other")
    assert head is not None
    assert other[head.end(other) :] == b"other"


@pytest.mark.parametrize(
    "data",
    [
        post(b"body")[:-1],
        post(b"body") + b"!",
        post(b"body") + post(b"body"),
        post(b"body").replace(b"Host: h", b"Host: i"),
        post(b"body").replace(b": 4", b": +4"),
        post(b"body").replace(b": 4", b": 4 "),
        post(b"body").replace(b": 4", b": "),
        post(b"body").replace(b": 4", b": 4, 4"),
        post(b"body").replace(b"\r\n\r\n", b"\r\nX: y\r\n\r\n"),
        post(b"body").replace(b"\r\n", b"\n"),
    ],
)
def test_anything_else_is_not_known(data):
    first = post(b"body")
    head = RepeatedHead.of(first, b"4", b"POST", b"/p", {})
    assert head is not None
    assert first[head.end(first) :] == b"body"
    assert head.end(data) == -1


@pytest.mark.parametrize("name", [b"transfer-encoding", b"expect", b"upgrade"])
def test_a_head_that_the_length_alone_does_not_frame_is_never_known(name):
    assert RepeatedHead.of(post(b""), b"0", b"POST", b"/p", {name: b"x"}) is None
    assert RepeatedHead.of(post(b""), None, b"POST", b"/p", {}) is None


def test_a_known_head_is_held_to_the_limits_of_bodies():
    site = Site(body_bytes=10)
    site.take(post(b"x" * 10), post(b"x" * 11))
    assert len(site.seen) == 1
    assert b"HTTP/1.1 413 " in site.transport.data
    site = Site(buffered_bytes=10)
    site.take(post(b"x" * 10), post(b"x" * 11))
    assert len(site.seen) == 1
    assert b"HTTP/1.1 503 " in site.transport.data
