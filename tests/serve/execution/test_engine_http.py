"""Batches of requests over HTTP: each client gets its own answer, or why there is none."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from drivetrain.serve.execution.engine import Batching

HOST = b"Host: x\r\n"


def post(row, close=False):
    body = json.dumps(row).encode()
    end = b"Connection: close\r\n" if close else b""
    head = b"POST /predict/tiny HTTP/1.1\r\n%bContent-Length: %d\r\n%b\r\n"
    return head % (HOST, len(body), end) + body


def row(number):
    return {"carrier": ("AA", "UA", "DL", None)[number % 4], "distance": 1.5 * number,
            "hour": number % 24}  # fmt: skip


def answers(data):
    parts = data.split(b"HTTP/1.1 ")[1:]
    return [(int(part[:3]), json.loads(part.partition(b"\r\n\r\n")[2])) for part in parts]


@pytest.mark.parametrize("inline", [1.0, 0.0])
def test_concurrent_clients_get_their_own_answers_to_the_last_bit(serve, tiny, inline):
    client = serve(batching=Batching(inline_seconds=inline))
    expected = tiny.predict([row(n) for n in range(400)])["late"]

    def ask(start):
        connection = client.connection()
        wrong = []
        for n in range(start, 400, 12):
            reply = client.post("/predict/tiny", row(n), over=connection)
            if np.float32(reply.json["predictions"][0]["late"]) != expected[n]:
                wrong.append(n)
        connection.close()
        return wrong

    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(ask, range(12))) == [[]] * 12


def test_a_poisoned_request_fails_alone_beside_good_ones_of_the_same_batch(serve, tiny):
    client = serve()
    rows = [row(n) for n in range(20)]
    poison = {"carrier": "AA", "distance": 1.0, "hour": 99}
    data = b"".join(post(r) for r in rows[:10]) + post(poison)
    data += b"".join(post(r) for r in rows[10:]) + post(rows[0], close=True)
    found = answers(client.raw(data))
    expected = tiny.predict([*rows[:10], rows[0], *rows[10:], rows[0]])["late"]
    assert [status for status, _ in found] == [*[200] * 10, 400, *[200] * 11]
    assert "the graph refuses these values" in found[10][1]["error"]
    for (status, body), value in zip(found, expected, strict=True):
        assert status == 400 or np.float32(body["predictions"][0]["late"]) == value
    version = tiny.digest[:12]
    runs = f'drivetrain_batch_rows_count{{model="tiny",version="{version}"}}'
    assert client.metric(runs) < 5  # they did share runs


def test_a_full_queue_is_503_with_a_time_to_try_again(serve):
    client = serve(batching=Batching(queue_rows=4))
    data = client.raw(post(row(1)) * 9 + post(row(1), close=True))
    assert [status for status, _ in answers(data)] == [200] * 4 + [503] * 6
    assert data.count(b"Retry-After: 1\r\n") == 6
    assert answers(data)[4][1] == {"error": "the queue is full: 4 rows wait."}
