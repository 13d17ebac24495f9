"""Minutes of everything at once while the alias moves: no 5xx, and memory that stays.

``DRIVETRAIN_SOAK_SECONDS`` makes it longer.
"""

import http.client
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager

import numpy as np
import pytest

from drivetrain.registry.registry import Registry

SECONDS = float(os.environ.get("DRIVETRAIN_SOAK_SECONDS", "50"))
WARM_UP = 0.4
"""Of the time, until every path has been taken and allocators have what they keep."""
GROWTH = 1.05
SLACK = 3e6
"""Bytes that a worker may grow beside that share. Without feedback, whose queue fills for minutes
up to a bound of its own, a worker here has about 20 to 50 MB for itself. What comes and goes with
the allocator is 1 to 2 MB; a session that is not let go of takes 300 kB each time, which is more
than 4 MB in the time that is measured, and a request that is not let go of some kilobytes
thousands of times."""
MOVE_SECONDS = 2.0

ROWS = [{"carrier": "AA", "distance": 10.0 * n, "hour": n % 24} for n in range(40)]
V2 = "/v2/models/tiny/infer"


def rows_request(n):
    return "/predict/tiny", json.dumps({"rows": ROWS[: 1 + n % 40]}).encode(), {}, 200


def v2_json(n):
    row = ROWS[n % 40]
    kinds = {"carrier": "BYTES", "distance": "FP32", "hour": "INT64"}
    inputs = [
        {"name": name, "datatype": kind, "shape": [1], "data": [row[name]]}
        for name, kind in kinds.items()
    ]
    return V2, json.dumps({"id": f"r{n}", "inputs": inputs}).encode(), {}, 200


def v2_binary(n):
    rows = 1 + n % 64
    text = (2).to_bytes(4, "little") + b"UA"
    tensors = {
        "carrier": ("BYTES", text * rows),
        "distance": ("FP32", np.arange(rows, dtype=np.float32).tobytes()),
        "hour": ("INT64", np.full(rows, 5, np.int64).tobytes()),
    }
    inputs = [
        {
            "name": name,
            "datatype": kind,
            "shape": [rows],
            "parameters": {"binary_data_size": len(data)},
        }
        for name, (kind, data) in tensors.items()
    ]
    binary = {"binary_data_output": True}
    head = json.dumps({"inputs": inputs, "parameters": binary}).encode()
    body = head + b"".join(data for _, data in tensors.values())
    return V2, body, {"Inference-Header-Content-Length": str(len(head))}, 200


def bad(n):
    return (
        ("/predict/tiny", b'{"carrier": 3}', {}, 400),
        ("/predict/tiny", b"{" * 2000, {}, 400),
        ("/predict/tiny", json.dumps({**ROWS[0], "hour": 99}).encode(), {}, 400),
        (f"/predict/nobody-{n}", b"{}", {}, 404),
        (V2, b'{"inputs": []}', {}, 400),
        ("/predict/tiny", b"{}", {"X-Timeout-Ms": "soon"}, 400),
    )[n % 6]


class Clients:
    """Threads that ask until they are told to end.

    Attributes:
        codes: how often each status was answered.
        wrong: what was answered otherwise than it should.
    """

    def __init__(self, address):
        self.codes, self.wrong = Counter(), []
        self._address = address
        self._end = threading.Event()
        makers = (rows_request, v2_json, v2_binary, bad)
        self._threads = [threading.Thread(target=self._ask, args=(make,)) for make in makers]
        self._threads.append(threading.Thread(target=self._misbehave))

    def _ask(self, make):
        connection, n = http.client.HTTPConnection(*self._address, timeout=20), 0
        while not self._end.is_set():
            n += 1
            target, body, headers, expected = make(n)
            try:
                connection.request("POST", target, body, headers)
                reply = connection.getresponse()
                text = reply.read()
            except Exception as error:
                self.wrong.append((target, repr(error)))
                connection.close()
                continue
            self.codes[reply.status] += 1
            if reply.status != expected:
                self.wrong.append((target, reply.status, text[:300]))
            if n % 100 == 0:
                connection.close()  # the next request opens another
            time.sleep(0.003)
        connection.close()

    def _misbehave(self):
        """Break off in the middle, and send what is no HTTP."""
        for n in iter(int, 1):
            if self._end.wait(0.02):
                return
            with socket.create_connection(self._address, timeout=20) as peer:
                n = len(self.wrong) + int(time.monotonic() * 50)
                if n % 2:
                    peer.sendall(
                        b"POST /predict/tiny HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n{"
                    )
                    continue
                peer.sendall(b"nonsense\r\n\r\n")
                status = peer.recv(64).partition(b" ")[2][:3]
                if status != b"400":
                    self.wrong.append(("nonsense", status))

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        for thread in self._threads:
            thread.join()


@contextmanager
def served(store):
    """A server of the command line with two workers; its process and address."""
    settings = {
        "store": store.root,
        "serve.port": 0,
        "serve.workers": 2,
    }
    command = [sys.executable, "-m", "drivetrain.cli", "serve", "tiny"]
    command += [f"--set={key}={value}" for key, value in settings.items()]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        found = re.search(r"http://([\d.]+):(\d+)", process.stdout.readline())
        assert found
        yield process, (found[1], int(found[2]))
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()


def own_bytes(pid):
    """The memory that a process has for itself alone (USS)."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        lines = [line.split() for line in file]
    return sum(int(line[1]) for line in lines if line[0].startswith("Private_")) * 1024


def workers_of(process):
    with open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
        return [int(pid) for pid in file.read().split()]


def move(store, digests, turn):
    """Promote, begin a canary, go back, in turn, so that each version is loaded again and again."""
    one, other = digests[turn // 4 % 3], digests[(turn // 4 + 1) % 3]
    match turn % 4:
        case 0:
            store.promote(one, "tiny")
        case 1:
            store.canary("tiny", other, 0.3)
        case 2:
            store.end_canary("tiny")
            store.shadow("tiny", other)
        case _:
            store.end_shadow("tiny")


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="memory is read in /proc")
def test_mixed_load_while_the_alias_moves_gives_no_5xx_and_leaves_memory_as_it_is(
    tmp_path, write_bundle
):
    store = Registry(tmp_path / "store")
    digests = [
        store.add(write_bundle(tmp_path / str(weight), weight).path).digest
        for weight in (0.25, 0.5, 0.75)
    ]
    store.promote(digests[0], "tiny")
    with served(store) as (process, address):
        workers = workers_of(process)
        samples = {pid: [] for pid in workers}
        with Clients(address) as clients:
            began, turn = time.monotonic(), 0
            while (spent := time.monotonic() - began) < SECONDS:
                move(store, digests, turn)
                turn += 1
                time.sleep(MOVE_SECONDS)
                if spent > WARM_UP * SECONDS:
                    for pid in workers:
                        samples[pid].append(own_bytes(pid))
        assert workers_of(process) == workers  # none has died
        connection = http.client.HTTPConnection(*address, timeout=20)
        connection.request("GET", "/metrics")
        metrics = connection.getresponse().read().decode()
        connection.close()
    assert clients.wrong == []
    assert clients.codes[200] > 20 * SECONDS
    assert clients.codes[400] > SECONDS
    assert not re.search(r'code="5\d\d"', metrics)
    assert "drivetrain_reload_failures_total{" not in metrics
    for taken in samples.values():
        third = len(taken) // 3
        before, after = statistics.median(taken[:third]), statistics.median(taken[-third:])
        assert after < before * GROWTH + SLACK, [round(size / 1e6, 1) for size in taken]
