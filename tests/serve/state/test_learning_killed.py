"""A server is killed while it learns: nothing that was acknowledged is lost, nothing counts twice,
and what it answers afterwards is what the events give offline."""

import http.client
import json

import films
import numpy as np
import pytest
from apart import Apart

from drivetrain.core.batch import Batch
from drivetrain.core.learner import Learner

KILLS, POSTS = 3, 10
ROUNDED = 1e-6
"""How far two float32 sums of products of about one may be apart, however small their result: the
server multiplies all users at once, which adds in another order than one user does."""


def post(server, rows, number):
    """A post that a feeder repeats until it is acknowledged."""
    body = {"rows": rows, "source": "s", "offset": number}
    status, answer = server.post("/observe/cards", body)
    assert status == 200, answer
    return answer


def same(server, bundle, learner):
    """Whether every user's answer is what a learner gives."""
    users = [f"user {n}" for n in range(0, films.USERS, 5)] + ["new"]
    session = bundle.graph.session(1)
    _, answer = server.post("/predict/cards", {"rows": [{"user": user} for user in users]})
    for user, found in zip(users, answer["predictions"], strict=True):
        asked = np.array([user], object)
        fed = {"user": asked, **learner.feeds(asked)}
        items, scores = session.raw(fed, ["items", "scores"])
        assert found["items"] == items[0].tolist()
        given = np.array(found["scores"], float)
        np.testing.assert_allclose(given, scores[0], rtol=1e-5, atol=ROUNDED)
    return True


@pytest.mark.slow
def test_what_was_acknowledged_is_learnt_once_whatever_is_killed(tmp_path):
    bundle = films.write(tmp_path / "films")
    random = np.random.default_rng(0)
    rows = films.rows(KILLS * POSTS * 5, seed=3, users=50, films=33)
    posts = [rows[at : at + 5] for at in range(0, len(rows), 5)]
    learner, safe = Learner.of(bundle.read("model.onnx")), 0
    for _ in range(KILLS):
        with Apart(bundle, place=str(tmp_path / "state")) as server:
            _, told = server.ask("GET", "/observe/cards")
            stands = told["positions"].get("s", 0)
            assert stands >= safe, "an acknowledged post is gone"
            for number in range(safe, stands):  # written before the kill, and not acknowledged
                learner.observe(batch(posts[number]))
            safe = stands
            assert same(server, bundle, learner)
            for _ in range(int(random.integers(POSTS // 2, POSTS))):
                assert post(server, posts[safe], safe + 1)["durable"]
                learner.observe(batch(posts[safe]))
                safe += 1
            assert post(server, posts[safe - 1], safe)["ignored"] == 5
            send_and_leave(server, posts[safe], safe + 1)
    with Apart(bundle, place=str(tmp_path / "state")) as server:
        _, told = server.ask("GET", "/observe/cards")
        for number in range(safe, told["positions"]["s"]):
            learner.observe(batch(posts[number]))
        assert same(server, bundle, learner)
        assert told["learner"]["learnt"] == learner.figures()["learnt"]


def batch(rows):
    return Batch({name: np.array([row[name] for row in rows], object) for name in rows[0]})


def send_and_leave(server, rows, number):
    """A post under way when the process is killed."""
    body = json.dumps({"rows": rows, "source": "s", "offset": number})
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("POST", "/observe/cards", body)
    connection.close()
