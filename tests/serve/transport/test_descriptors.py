"""Files that a process may have open: more where it may have them, and else fewer connections."""

import http.client
import subprocess
import sys
from contextlib import ExitStack

import pytest

LIMITED = """
import logging, resource, sys
logging.basicConfig()
soft, hard = int(sys.argv[1]), int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
"""
ROOM = """
from drivetrain.serve.transport.descriptors import room_for
from drivetrain.serve.transport.http import HttpLimits
found = room_for(HttpLimits(connections=100, pipeline=7))
print(found.connections, found.pipeline, *resource.getrlimit(resource.RLIMIT_NOFILE))
"""
SERVE = """
from pathlib import Path
from drivetrain.serve.server import Server
server = Server({"tiny": Path(sys.argv[3])}, port=0)
server.run(lambda: print(server.port, flush=True))
"""


@pytest.mark.parametrize(
    ("soft", "hard", "connections", "files"),
    [
        (300, 400, 100, 300),  # enough
        (80, 400, 100, 264),
        (80, 200, 68, 200),
        (80, 80, 8, 80),
        (64, 64, 1, 64),
    ],
)
def test_a_process_opens_what_files_it_needs_and_counts_on_no_more(soft, hard, connections, files):
    done = subprocess.run(
        [sys.executable, "-c", LIMITED + ROOM, str(soft), str(hard)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.split() == [str(n) for n in (connections, 7, files, hard)], done.stderr
    told = f"connections: {connections} at once instead of 100, as no more than {files} files"
    assert (told in done.stderr) == (connections < 100)


def test_idle_clients_make_way_before_files_run_out(tiny):
    """Without a bound of its own the server would have closed the last ones without a word."""
    arguments = ["100", "100", str(tiny.path)]
    with (
        subprocess.Popen(
            [sys.executable, "-c", LIMITED + SERVE, *arguments], stdout=subprocess.PIPE, text=True
        ) as child,
        ExitStack() as stack,
    ):
        stack.callback(child.kill)
        port = int(child.stdout.readline())
        for _ in range(120):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            stack.callback(connection.close)
            connection.request("GET", "/v2/health/live")
            answer = connection.getresponse()
            assert (answer.status, answer.read()) == (200, b'{"live":true}')
