"""A second request that a proxy would not see, hidden in or behind the first, is never answered."""

import json

import pytest

HIDDEN = b"GET /v2/hidden HTTP/1.1\r\nHost: x\r\n\r\n"
HEAD = b"POST /predict/tiny HTTP/1.1\r\nHost: x\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
LAST = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
ROW = json.dumps({"carrier": "AA", "distance": 1.0, "hour": 7}).encode()


def statuses(data: bytes) -> list[int]:
    return [int(part[:3]) for part in data.split(b"HTTP/1.1 ")[1:]]


def refused(client, data: bytes) -> None:
    """One answer, an error, and nothing behind it."""
    answer = client.raw(data + HIDDEN + LAST)
    assert len(statuses(answer)) == 1, answer
    assert statuses(answer)[0] in (400, 501, 505), answer
    assert b"Connection: close" in answer
    assert b"hidden" not in answer


@pytest.mark.parametrize(
    "header",
    [
        b"Content-Length : 5\r\n",
        b"Content-Length: \r\n",
        b"Content-Length: 5 5\r\n",
        b"Content-Length: 5;5\r\n",
        b"Content-Length: 5\n",
        b"Content-Length: 0\r\ncontent-length: 5\r\n",
        b"Content-Length: 5\r\nTransfer-Encoding: Chunked\r\n",
        b"Transfer-Encoding: chunked, chunked\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding: identity, chunked\r\n",
        b"Transfer-Encoding: ,chunked\r\n",
        b"Transfer-Encoding: \r\n",
        b'Transfer-Encoding: "chunked"\r\n',
        b"Transfer-Encoding: chunked;q=1\r\n",
        b"Transfer-Encoding:\x0bchunked\r\n",
        b"Transfer-Encoding: chunked\x00\r\n",
        b"Transfer-Encoding:\r\n chunked\r\n",
        b"Transfer-Encoding: chunked\r\ntransfer-encoding: identity\r\n",
        b" Transfer-Encoding: chunked\r\n",
        b"X: a\r\n Transfer-Encoding: chunked\r\n",
        b"X: a\nTransfer-Encoding: chunked\r\n",
        b"X: a\rTransfer-Encoding: chunked\r\n",
        b"X\0: a\r\n",
        b"X: \0\r\n",
        b"X: \x01\r\n",
        b"X a: b\r\n",
        b": a\r\n",
        b"X\r\n",
    ],
)
def test_a_header_that_two_readers_may_frame_by_differently_is_refused(client, header: bytes):
    refused(client, HEAD + header + b"\r\n0\r\n\r\n")


@pytest.mark.parametrize(
    "chunk",
    [
        b"-1\r\n",
        b"+5\r\nhello\r\n",
        b" 5\r\nhello\r\n",
        b"5 \r\nhello\r\n",
        b"5\t\r\nhello\r\n",
        b"0x5\r\nhello\r\n",
        b"5_0\r\nhello\r\n",
        b"\r\nhello\r\n",
        b"10000000000000005\r\nhello\r\n",
        b"5;\r\nhello\r\n",
        b'5;a="\r\nhello\r\n',
        b"5;a\nhello\r\n",
        b"5;a\r5\r\nhello\r\n",
        b"5\nhello\r\n",
        b"5\rhello\r\n",
        b"5\r\nhello\n",
        b"5\r\nhello\r",
        b"5\r\nhello5\r\nworld\r\n",
        b"0\n\n",
        b"0\r\n\n",
        b"0\r\nX: y\n\r\n",
        b"0\r\nX : y\r\n\r\n",
        b"0\r\nContent-Length: 5\r\n\r\n",
        b"0\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
)
def test_a_chunk_that_two_readers_may_end_differently_is_refused(client, chunk: bytes):
    refused(client, CHUNKED + chunk + b"0\r\n\r\n")


@pytest.mark.parametrize(
    "head",
    [
        b"GET /v2 HTTP/1.1\nHost: x\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nHost: x\r\n\n",
        b"GET /v2 HTTP/1.1\r\nHost: x\n\n",
        b"GET /v2 HTTP/1.1\rHost: x\r\r",
        b"GET /v2 HTTP/1.1 \r\nHost: x\r\n\r\n",
        b"GET /v2\tHTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v2 x HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v2\0 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v2\x80 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET v2 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"get /v2 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /v2 http/1.1\r\nHost: x\r\n\r\n",
        b"GET /v2 HTTP/1.10\r\nHost: x\r\n\r\n",
        b"GET /v2 HTTP/01.1\r\nHost: x\r\n\r\n",
        b"GET /v2\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    ],
)
def test_a_request_line_that_two_readers_may_part_differently_is_refused(client, head: bytes):
    refused(client, head)


@pytest.mark.parametrize("bad", [b"\0", b"GET /\r\n", CHUNKED + b"x", HEAD + b"Content-Length: x"])
def test_nothing_behind_a_bad_request_is_read_and_all_before_it_is_answered(client, bad: bytes):
    good = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
    answer = client.raw(good * 3 + bad + b"\r\n\r\n" + HIDDEN + LAST)
    assert statuses(answer)[:3] == [200] * 3
    assert statuses(answer)[3:] in ([400], [505])
    assert b"hidden" not in answer


@pytest.mark.parametrize(
    "header",
    [
        b"Transfer-Encoding: Chunked\r\n",
        b"Transfer-Encoding: chunked \r\n",
        b"transfer-encoding:chunked\r\n",
    ],
)
def test_a_body_in_chunks_ends_where_its_last_chunk_does(client, header: bytes):
    body = b'%x;note="a\\"b"\r\n%b\r\n000\r\nX-Trailer: y\r\n\r\n' % (len(ROW), ROW)
    assert statuses(client.raw(HEAD + header + b"\r\n" + body + LAST)) == [200, 200]


def test_white_space_behind_a_length_belongs_to_nothing(client):
    head = HEAD + b"Content-Length: %d \t\r\n\r\n" % len(ROW)
    assert statuses(client.raw(head + ROW + LAST)) == [200, 200]


@pytest.mark.parametrize("target", [b"http://x/v2/health/live", b"HTTPS://y:1/v2/health/live?a=b"])
def test_an_absolute_target_means_its_path(client, target: bytes):
    answer = client.raw(b"GET " + target + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert statuses(answer) == [200]
    assert answer.endswith(b'{"live":true}')


@pytest.mark.parametrize("target", [b"http://x", b"http://x?a", b"*", b"ftp://x/v2/health/live"])
def test_a_target_without_a_path_of_ours_is_404(client, target: bytes):
    answer = client.raw(b"GET " + target + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert statuses(answer) == [404]


def test_a_token_may_have_white_space_behind_it(serve):
    client = serve(token="sesame")
    head = b"GET /v2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer "
    assert statuses(client.raw(head + b"sesame \t\r\n\r\n")) == [200]
    assert statuses(client.raw(head + b"sesam\r\n\r\n")) == [401]
