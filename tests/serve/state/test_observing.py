"""Bundles with windows, served: what is observed over HTTP is what later rows are given."""

import pytest


@pytest.fixture
def client(serve, windowed):
    """A server of one bundle with windows, in memory only."""
    return serve(models={"cards": windowed.path})


def test_an_event_is_asked_and_observed_one_by_one_as_offline(client, cards):
    rows = cards.rows(150)
    for row, expected in zip(rows, cards.offline(rows), strict=True):
        reply = client.post("/predict/cards", cards.asked(row))
        assert reply.status == 200, reply.body
        (found,) = reply.json["predictions"]
        assert found["far"] == 1.5
        assert cards.same(cards.plain(found), expected), (row, found, expected)
        assert client.post("/observe/cards", row).status == 200
