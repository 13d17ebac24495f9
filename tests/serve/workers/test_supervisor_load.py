"""Clients ask without a pause while a worker is killed, told to end, or all are."""

import http.client
import json
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from several import ROW, gone
from waiting import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers share a port on Linux")


class Load:
    """Clients that ask without a pause and try nothing twice."""

    def __init__(self, server, clients=8, keep=True):
        self.server = server
        self.keep = keep
        self.stop = threading.Event()
        self.pool = ThreadPoolExecutor(clients)
        self.results = [self.pool.submit(self.run) for _ in range(clients)]

    def run(self):
        good = bad = refused = 0
        connection = self.server.connection()
        while not self.stop.is_set():
            try:
                if connection.sock is None:
                    connection.connect()
            except OSError:
                refused += 1
                time.sleep(0.01)
                continue
            try:
                connection.request("POST", "/predict/tiny", json.dumps(ROW))
                reply = connection.getresponse()
                body = reply.read()
                good += reply.status == 200 and b"predictions" in body
                bad += reply.status != 200
                if reply.getheader("Connection") == "close" or not self.keep:
                    connection.close()
            except (OSError, http.client.HTTPException):
                bad += 1
                connection.close()
        connection.close()
        return good, bad, refused

    def end(self):
        self.stop.set()
        found = [result.result(20) for result in self.results]
        self.pool.shutdown()
        return [sum(each) for each in zip(*found, strict=True)]


@pytest.mark.slow
def test_a_worker_killed_under_load_costs_what_it_had_in_hand_and_nothing_else(several):
    server = several()
    load = Load(server)
    time.sleep(3.0)
    os.kill(server.workers[0], signal.SIGKILL)
    time.sleep(3.0)
    good, bad, refused = load.end()
    assert refused == 0
    assert bad <= 8  # one client has one request in flight
    assert good > 500


@pytest.mark.slow
@pytest.mark.parametrize("keep", [True, False])
def test_a_worker_that_is_told_to_end_under_load_costs_no_accepted_request(several, keep):
    server = several()
    load = Load(server, keep=keep)
    time.sleep(1.0)
    victim = server.workers[0]
    os.kill(victim, signal.SIGTERM)
    wait_until(lambda: victim not in server.workers and len(server.workers) == 2)
    time.sleep(0.5)
    good, bad, refused = load.end()
    assert refused == 0
    assert bad == 0
    assert good > 100


@pytest.mark.slow
@pytest.mark.parametrize("keep", [True, False])
def test_sigterm_to_the_whole_group_twice_loses_no_accepted_request(several, keep):
    server = several()
    load = Load(server, keep=keep)
    time.sleep(1.0)
    workers = server.workers
    for pid in (*workers, server.child.pid):  # as a platform does that signals every process
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    assert server.child.wait(10) == 0
    good, bad, refused = load.end()
    assert bad == 0
    assert refused > 0
    assert good > 100
    assert all(map(gone, workers))
