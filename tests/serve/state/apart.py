"""Servers in processes of their own, for tests that kill them."""

import http.client
import json
import os
import subprocess
import sys

SERVE = """
import json, sys
from pathlib import Path
from drivetrain.serve.server import Server
from drivetrain.serve.state.states import Keeping
keeping, workers = Keeping(**json.loads(sys.argv[2])), int(sys.argv[3])
server = Server({"cards": Path(sys.argv[1])}, port=0, state=keeping, workers=workers)
sys.exit(server.run(lambda: print(server.port, flush=True)))
"""


class Apart:
    """A server in a process of its own."""

    def __init__(self, bundle, workers=1, **keeping):
        given = [bundle.path, json.dumps(keeping), str(workers)]
        self.child = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", SERVE, *given],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self.port = int(self.child.stdout.readline())

    def ask(self, method, target, body=None):
        """The status and the JSON of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, target, None if body is None else json.dumps(body))
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()

    def post(self, target, body):
        return self.ask("POST", target, body)

    def kill(self):
        self.child.kill()
        self.child.wait()
        self.child.stdout.close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.kill()
