"""Compressed requests: read as if they were not, and never larger than may be."""

import gzip
import json
import zlib

import pytest

from drivetrain.serve.transport.coding import check_coding, inflate
from drivetrain.serve.transport.exchange import RefusedError
from drivetrain.serve.transport.http import HttpLimits

ROW = json.dumps({"carrier": "AA", "distance": 1.0, "hour": 7}).encode()
CODINGS = {"gzip": gzip.compress, "x-gzip": gzip.compress, "deflate": zlib.compress}


@pytest.mark.parametrize("coding", [*CODINGS, "GZIP"])
def test_a_compressed_request_is_answered_as_the_plain_one_is(client, coding):
    plain = client.post("/predict/tiny", ROW)
    packed = CODINGS[coding.lower()](ROW)
    connection = client.connection()
    for _ in range(3):  # the third by a head that is known
        headers = {"Content-Encoding": coding}
        found = client.post("/predict/tiny", packed, headers=headers, over=connection)
        assert (found.status, found.body) == (200, plain.body)
    connection.close()


def test_what_is_held_of_a_compressed_request_is_let_go_as_it_was_counted(serve):
    client = serve(limits=HttpLimits(buffered_bytes=1000))
    packed = gzip.compress(ROW + b" " * 5000)
    for _ in range(20):
        found = client.post("/predict/tiny", packed, headers={"Content-Encoding": "gzip"})
        assert found.status == 200
    assert client.post("/predict/tiny", ROW + b" " * 800).status == 200


def test_a_body_beyond_the_limit_is_413_however_small_it_comes(serve):
    client = serve(limits=HttpLimits(body_bytes=1000))
    for size, status in ((1000 - len(ROW), 200), (1001 - len(ROW), 413), (500_000, 413)):
        packed = gzip.compress(ROW + b" " * size)
        found = client.post("/predict/tiny", packed, headers={"Content-Encoding": "gzip"})
        assert found.status == status


def test_a_bomb_is_made_no_larger_than_may_be():
    bomb = gzip.compress(bytes(50 << 20))
    with pytest.raises(RefusedError) as caught:
        inflate("body", bomb, b"gzip", 1000)
    assert caught.value.status == 413


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"x" * 30, "damaged gzip"),
        (gzip.compress(ROW)[:-1], "no whole gzip"),
        (gzip.compress(ROW) + b"x", "no whole gzip"),
    ],
)
def test_what_is_damaged_is_the_clients_mistake(client, content, words):
    found = client.post("/predict/tiny", content, headers={"Content-Encoding": "gzip"})
    assert found.status == 400
    assert words in found.json["error"]


def test_nothing_is_inflated_for_who_has_no_token(serve):
    client = serve(token="secret")
    headers = {"Content-Encoding": "gzip"}
    assert client.post("/predict/tiny", b"no gzip at all", headers=headers).status == 401


def test_another_coding_is_refused_by_its_name():
    check_coding("content-encoding", b"identity")
    with pytest.raises(RefusedError, match="'content-encoding': found 'br', allowed: identity, gz"):
        check_coding("content-encoding", b"br")
