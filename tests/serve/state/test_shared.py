"""Observations in Redis: servers share them, a killed one takes nothing with it, and what happens
while Redis is away."""

import shutil
import socket
import subprocess
import sys
import threading

import pytest
from apart import Apart
from waiting import wait_until

from drivetrain.serve.state.states import Keeping

pytestmark = pytest.mark.skipif(
    shutil.which("redis-server") is None,
    reason="NOT TESTED: no redis-server is installed here; .ci/install-system-packages does that",
)


class Redis:
    """A server that a test starts and stops."""

    def __init__(self, room):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.room = room
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.child = None

    def start(self):
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        self.child = subprocess.Popen(
            ["redis-server", *options, "--appendonly", "yes", "--dir", self.room],
            stdout=subprocess.DEVNULL,
        )
        wait_until(self._answers, 60.0)

    def _answers(self):
        try:
            with socket.create_connection(("127.0.0.1", self.port), 5) as peer:
                peer.sendall(b"PING\r\n")
                return peer.recv(64).startswith(b"+PONG")
        except OSError:
            return False

    def stop(self):
        if self.child is not None:
            self.child.terminate()
            self.child.wait()
            self.child = None


@pytest.fixture
def redis(tmp_path):
    """A Redis of the test's own, started."""
    (tmp_path / "redis").mkdir()
    server = Redis(tmp_path / "redis")
    server.start()
    yield server
    server.stop()


def test_rows_are_given_what_they_are_given_offline(serve, windowed, cards, redis):
    client = serve(models={"cards": windowed.path}, state=Keeping(place=redis.url))
    rows = cards.rows(80, cards=5)
    for row, expected in zip(rows, cards.offline(rows), strict=True):
        (found,) = client.post("/predict/cards", cards.asked(row)).json["predictions"]
        assert cards.same(cards.plain(found), expected), (row, found, expected)
        reply = client.post("/observe/cards", row)
        assert (reply.status, reply.json.get("durable")) == (200, None)


def test_rows_of_one_batch_are_looked_up_together_and_posts_told_as_in_memory(
    serve, windowed, cards, redis
):
    shared = serve(models={"cards": windowed.path}, state=Keeping(place=redis.url))
    memory = serve(models={"cards": windowed.path})
    rows = cards.rows(200, seed=5)
    late = {"card": "card 1", "shop": "s", "at": rows[-1]["at"] - 7 * cards.hour}
    for body in ({"rows": rows[:150]}, {"rows": rows[150:]}, late):
        told = [each.post("/observe/cards", body).json for each in (shared, memory)]
        assert told[1].pop("durable") is False
        assert told[0] == told[1]
    body = {"rows": [cards.asked(row) for row in rows[100:]]}
    found = [each.post("/predict/cards", body).json["predictions"] for each in (shared, memory)]
    assert found[0] == found[1]


def test_what_a_source_repeats_is_ignored_on_every_server(serve, windowed, cards, redis):
    one, other = (
        serve(models={"cards": windowed.path}, state=Keeping(place=redis.url)) for _ in range(2)
    )
    body = {"rows": [{"card": "a", "at": cards.start}], "source": "topic/3", "offset": 10}
    assert one.post("/observe/cards", body).json["observed"] == 1
    assert other.post("/observe/cards", body).json["ignored"] == 1
    assert one.post("/observe/cards", body | {"offset": 12}).json["observed"] == 1
    told = other.get("/observe/cards").json
    assert (told["positions"], told["watermark"]) == ({"topic/3": 12}, cards.start)


@pytest.mark.slow
def test_two_servers_that_write_one_key_lose_nothing_and_one_may_be_killed(windowed, cards, redis):
    each, posts = 2, 60
    with Apart(windowed, place=redis.url) as one, Apart(windowed, place=redis.url) as other:
        told = []

        def feed(server, number):
            for n in range(posts):
                at = cards.start + n
                rows = [{"card": "a", "shop": "s", "at": at, "amount": 1.0, "settled": at}] * each
                body = {"rows": rows, "source": f"{server.port}/{number}", "offset": n + 1}
                told.append(server.post("/observe/cards", body)[0])

        threads = [
            threading.Thread(target=feed, args=(server, number))
            for server in (one, other)
            for number in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(told) == {200}
        row = {"distance": 0.0, "at": cards.start + 1_000_000, "card": "a", "shop": "s"}
        answers = [server.post("/predict/cards", row)[1] for server in (one, other)]
        one.kill()
        answers.append(other.post("/predict/cards", row)[1])
        for answer in answers:
            found = answer["predictions"][0]
            assert found["got_hourly"] == len(threads) * posts * each
            assert found["got_mean"] == 1.0


def test_while_redis_is_away_all_is_refused_and_goes_on_when_it_is_back(
    serve, windowed, cards, redis
):
    client = serve(models={"cards": windowed.path}, state=Keeping(place=redis.url))
    seen = {"card": "a", "at": cards.start}
    row = {"distance": 0.0, "at": cards.start + 1, "card": "a", "shop": "s"}
    assert client.post("/observe/cards", seen).status == 200
    redis.stop()
    for reply in (
        client.post("/observe/cards", seen),
        client.post("/predict/cards", row),
        client.get("/observe/cards"),
    ):
        assert reply.status == 503
        assert "Redis cannot be asked" in reply.json["error"]
        assert reply.headers["retry-after"] == "1"
    redis.start()
    wait_until(lambda: client.post("/predict/cards", row).status == 200, 60.0)
    assert client.post("/observe/cards", seen).status == 200
    assert client.post("/predict/cards", row).json["predictions"][0]["got_hourly"] == 2


def test_rows_may_be_given_empty_windows_while_redis_is_away(serve, windowed, cards, redis):
    keeping = Keeping(place=redis.url, missing="empty")
    client = serve(models={"cards": windowed.path}, state=keeping)
    client.post("/observe/cards", {"card": "a", "at": cards.start})
    redis.stop()
    row = {"distance": 3.0, "at": cards.start + 1, "card": "a", "shop": "s"}
    found = client.post("/predict/cards", {"rows": [row, row]}).json["predictions"]
    assert [(each["far"], each["got_hourly"], each["got_mean"]) for each in found] == [
        (3.0, 0, None)
    ] * 2
    assert client.metric('drivetrain_window_rows_empty_total{model="cards"}') == 2
    assert client.post("/observe/cards", {"card": "a", "at": cards.start}).status == 503


def test_keys_go_when_they_can_give_nothing_more(serve, cards, redis, tmp_path):
    import redis as client_of

    columns = {
        "hourly": cards.columns["hourly"],
        "last": cards.columns["last"],
    }
    bundle = cards.write(tmp_path / "bundle", columns=columns, lateness=0)
    client = serve(models={"cards": bundle.path}, state=Keeping(place=redis.url))
    row = {"card": "a", "at": cards.start, "amount": 1.0, "settled": cards.start}
    assert client.post("/observe/cards", row).status == 200
    with client_of.Redis.from_url(redis.url) as peer:
        lives = sorted(peer.pttl(key) for key in peer.scan_iter("drivetrain:{cards}:*:*"))
    assert lives[0] == -1  # the last one ever
    assert 24 * 3_600_000 < lives[1] <= 25 * 3_600_000 + 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="workers share a port on Linux")
def test_workers_of_one_server_share_what_was_observed(windowed, cards, redis):
    with Apart(windowed, workers=2, place=redis.url) as server:
        for number in range(20):
            row = {"card": "a", "at": cards.start + number}
            assert server.post("/observe/cards", row)[0] == 200
        row = {"distance": 0.0, "at": cards.start + 100, "card": "a", "shop": "s"}
        for _ in range(10):  # connections go to either
            status, answer = server.post("/predict/cards", row)
            assert (status, answer["predictions"][0]["got_hourly"]) == (200, 20)
        server.child.terminate()
        assert server.child.wait(60) == 0
