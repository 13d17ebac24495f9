"""A supervisor in a process of its own, for tests that ask it, kill parts of it and wait."""

import http.client
import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROW = {"carrier": "AA", "distance": 733.5, "hour": 7}
SERVE = """
import json, sys
from pathlib import Path
from drivetrain.serve.execution.models import Artefact, Traffic
from drivetrain.serve.server import Server
alias = Path(sys.argv[1])
def ask():
    digest, path = json.loads(alias.read_text())
    return Traffic(stable=Artefact(digest, Path(path)))
server = Server({"tiny": ask}, port=0, workers=2, grace_seconds=5, **json.loads(sys.argv[2]))
sys.exit(server.run(lambda: print(server.port, "onnxruntime" in sys.modules, flush=True)))
"""


class Several:
    """A supervisor in a process of its own."""

    def __init__(self, alias, options):
        self.alias = alias
        self.child = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", SERVE, alias, json.dumps(options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        line = self.child.stdout.readline().split()
        self.port, self.loaded = (int(line[0]), line[1]) if line else (0, "")

    @property
    def workers(self):
        path = Path(f"/proc/{self.child.pid}/task/{self.child.pid}/children")
        return [int(pid) for pid in path.read_text().split()]

    def connection(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)

    def ask(self, method="POST", target="/predict/tiny", over=None):
        connection = over or self.connection()
        connection.request(method, target, json.dumps(ROW) if method == "POST" else None)
        reply = connection.getresponse()
        body = reply.read()
        if over is None:
            connection.close()
        return reply.status, body

    def metric(self, name):
        """The sum of the series whose name and labels match."""
        text = self.ask("GET", "/metrics")[1].decode()
        lines = [line.rpartition(" ") for line in text.splitlines() if re.match(name, line)]
        return sum(float(value) for _, _, value in lines)


def point(alias, bundle):
    temporary = alias.with_suffix(".new")
    temporary.write_text(json.dumps([bundle.digest, str(bundle.path)]))
    temporary.rename(alias)


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
