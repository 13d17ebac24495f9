"""Managing several workers: what one of them is told holds for all, whoever dies meanwhile."""

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from waiting import wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="workers share a port on Linux"),
]

ROW = {"carrier": "AA", "distance": 733.5, "hour": 7}
LOAD, UNLOAD = (f"/v2/repository/models/tiny/{verb}" for verb in ("load", "unload"))
SERVE = """
import sys
from pathlib import Path
from drivetrain.serve.server import Server
server = Server({"tiny": Path(sys.argv[1])}, port=0, management_port=0, workers=2, grace_seconds=5)
sys.exit(server.run(lambda: print(server.port, server.management_port, flush=True)))
"""


class Managed:
    """A supervisor and two workers in processes of their own."""

    def __init__(self, bundle):
        self.child = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", SERVE, str(bundle.path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self.port, self.management_port = map(int, self.child.stdout.readline().split())

    @property
    def workers(self):
        path = Path(f"/proc/{self.child.pid}/task/{self.child.pid}/children")
        return [int(pid) for pid in path.read_text().split()]

    def ask(self, method, target, body=None, managed=True):
        port = self.management_port if managed else self.port
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        try:
            connection.request(method, target, None if body is None else json.dumps(body))
            reply = connection.getresponse()
            return reply.status, json.loads(reply.read())
        finally:
            connection.close()

    def predictions(self, count=16):
        """The statuses of so many requests, each over a connection of its own."""
        asked = [self.ask("POST", "/predict/tiny", ROW, managed=False) for _ in range(count)]
        return set(Counter(status for status, _ in asked))

    def replace(self, victim):
        """Kill a worker and wait for the next in its seat."""
        before = self.workers
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: len(self.workers) == 2 and victim not in self.workers)
        (new,) = set(self.workers) - set(before)
        listening = Path(f"/proc/{new}/fd")
        wait_until(lambda: any("eventpoll" in os.readlink(fd) for fd in _links(listening)))
        return new


def _links(directory):
    found = []
    with suppress(OSError):
        found = [path for path in directory.iterdir() if path.is_symlink()]
    return found


@pytest.fixture(scope="module")
def managed(tiny):
    found = Managed(tiny)
    yield found
    found.child.terminate()
    try:
        _, errors = found.child.communicate(timeout=20)
    finally:
        found.child.kill()
    assert found.child.returncode == 0, errors


@pytest.fixture(autouse=True)
def loaded(managed):
    """Each test begins with both workers and everything loaded."""
    wait_until(lambda: len(managed.workers) == 2)
    assert managed.ask("POST", LOAD, {}) == (200, {})
    assert managed.ask("POST", "/v2/systemsharedmemory/unregister") == (200, {})


@pytest.fixture
def region():
    path = Path(f"/dev/shm/drivetrain-test-{uuid.uuid4().hex}")
    path.write_bytes(bytes(4096))
    yield f"/{path.name}"
    path.unlink(missing_ok=True)


def test_a_load_and_an_unload_hold_for_every_worker_before_they_are_answered(managed):
    for _ in range(4):
        assert managed.ask("POST", UNLOAD, {}) == (200, {})
        assert managed.predictions() == {404}
        assert managed.ask("POST", LOAD, {}) == (200, {})
        assert managed.predictions() == {200}


def test_loads_and_unloads_of_many_clients_at_once_leave_one_state(managed):
    statuses = []

    def work(target):
        statuses.extend(managed.ask("POST", target, {})[0] for _ in range(4))

    threads = [threading.Thread(target=work, args=(target,)) for target in (LOAD, UNLOAD) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) == {200}
    (entry,) = managed.ask("POST", "/v2/repository/index")[1]
    assert managed.predictions() == {200 if entry["state"] == "READY" else 404}


def test_a_worker_that_is_replaced_begins_with_what_was_agreed_on(managed, region):
    register = "/v2/systemsharedmemory/region/a/register"
    assert managed.ask("POST", register, {"key": region, "byte_size": 4096}) == (200, {})
    assert managed.ask("POST", UNLOAD, {}) == (200, {})
    for victim in managed.workers:
        managed.replace(victim)
    assert managed.ask("POST", "/v2/systemsharedmemory/unregister") == (200, {})
    assert managed.ask("POST", register, {"key": region, "byte_size": 4096}) == (200, {})
    for victim in managed.workers:
        managed.replace(victim)
    assert managed.predictions() == {404}
    assert managed.ask("POST", LOAD, {}) == (200, {})
    assert managed.predictions() == {200}
    inputs = [
        {"name": "carrier", "datatype": "BYTES", "shape": [1], "data": ["AA"]},
        {"name": "distance", "datatype": "FP32", "shape": [1], "data": [1.5]},
        {
            "name": "hour",
            "datatype": "INT64",
            "shape": [1],
            "parameters": {"shared_memory_region": "a", "shared_memory_byte_size": 8},
        },
    ]
    for _ in range(8):
        assert managed.ask("POST", "/v2/models/tiny/infer", {"inputs": inputs})[0] == 200
    status = managed.ask("GET", "/v2/systemsharedmemory/status")[1]
    assert status == [{"name": "a", "key": region, "offset": 0, "byte_size": 4096}]


def test_a_worker_that_dies_while_it_is_waited_for_holds_nobody_up(managed):
    stopped = managed.workers[0]
    os.kill(stopped, signal.SIGSTOP)
    answers = []

    def unload():
        # The kernel may hand the connection to nobody but the worker that runs.
        answers.append(managed.ask("POST", UNLOAD, {}))

    thread = threading.Thread(target=unload)
    thread.start()
    time.sleep(0.3)
    assert not answers  # it waits for the one that does not answer
    started = time.monotonic()
    managed.replace(stopped)
    thread.join()
    assert time.monotonic() - started < 8
    assert answers == [(200, {})]
    assert managed.predictions() == {404}


def test_statistics_are_a_sum_over_the_workers(managed):
    def count():
        (found,) = managed.ask("GET", "/v2/models/tiny/stats")[1]["model_stats"]
        return found["inference_stats"]["success"]["count"]

    before = count()
    assert managed.predictions(40) == {200}
    wait_until(lambda: count() == before + 40)
