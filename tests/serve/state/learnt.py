"""What a made factorization learns of rows, offline and as a server answers it."""

import numpy as np

from drivetrain.core.learner import Learner

SEVERAL = [f"user {n}" for n in (0, 1, 2, 3)] + ["new", "nobody"]


def graph_of(bundle):
    return bundle.read("model.onnx")


def events_of(rows):
    return [(row["user"], row["film"]) for row in rows]


def offline(bundle, rows):
    """What a graph learns of rows in their order, without a server."""
    learner = Learner.of(graph_of(bundle))
    for event in events_of(rows):
        learner.tell(event)
    return learner


def answers(bundle, learner, users=SEVERAL):
    """What the graph answers with what a learner gives, user by user."""
    found = []
    for user in users:
        asked = np.array([user], object)
        fed = {"user": asked, **learner.feeds(asked)}
        items, scores = bundle.graph.session(1).raw(fed, ["items", "scores"])
        found.append((items[0].tolist(), [s if s == s else None for s in scores[0].tolist()]))
    return found


def served(client, users=SEVERAL, alias="films"):
    found = []
    for user in users:
        (row,) = client.post(f"/predict/{alias}", {"user": user}).json["predictions"]
        found.append((row["items"], row["scores"]))
    return found


def same(found, expected):
    """Whether answers are the same, scores to the last bit of a float32."""
    for (items, scores), (other, due) in zip(found, expected, strict=True):
        pairs = zip(scores, due, strict=True)
        if items != other or any(a != b and np.float32(a) != np.float32(b) for a, b in pairs):
            return False
    return True


def observe(client, rows, **more):
    reply = client.post("/observe/films", {"rows": rows, **more})
    assert reply.status == 200, reply.body
    return reply.json
