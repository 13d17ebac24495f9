"""What it costs to start: `--help`, `check`, and a server beside LitServe's.

    python bench/startup.py --quick --json

CPU seconds are the user and system time of the whole child process. The first check of a file
reads the heads of its events; later ones, while the files are the same, know the columns. The peer
serves the very same ONNX bundle through LitServe with one worker; its first prediction is a POST of
the same rows.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import psutil

import drivetrain as dt
from bench import made
from bench.figure import Figure, figure, show, words
from drivetrain.models import MLP
from drivetrain.pipeline import run

ROOT = Path(__file__).resolve().parent.parent
ROW = {"carrier": "carrier-00001", "distance": 1400, "pressure": 1012.5}

PEER = """
import sys
import litserve, numpy, onnxruntime

class Flights(litserve.LitAPI):
    def setup(self, device):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(sys.argv[1], options)

    def decode_request(self, request):
        row = request["rows"][0]
        return {
            "carrier": numpy.array([row["carrier"]], dtype=object),
            "distance": numpy.array([row["distance"]], dtype=numpy.int64),
            "pressure": numpy.array([row["pressure"]], dtype=numpy.float64),
        }

    def predict(self, inputs):
        return self.session.run(None, inputs)[0]

    def encode_response(self, output):
        return {"predictions": [{"late": float(output[0])}]}

if __name__ == "__main__":
    server = litserve.LitServer(Flights(), accelerator="cpu", api_path="/predict/startup")
    where = {"host": "127.0.0.1", "port": int(sys.argv[2])}
    server.run(**where, log_level="error", generate_client_file=False)
"""


def figures(quick: bool) -> Iterator[Figure]:
    """``check_cpu_seconds``, ``help_cpu_seconds``, and the server's start beside a peer's."""
    rounds = 5 if quick else 11
    flights = str(ROOT / "examples" / "flights.py")
    with tempfile.TemporaryDirectory() as folder:
        check = ("check", flights, "--set", f"work={folder}/work")
        first = []
        for _ in range(rounds):
            shutil.rmtree(f"{folder}/work", ignore_errors=True)
            first.append(_cpu_seconds(check))
        for name, seconds in (
            ("check_first", first),
            ("check", [_cpu_seconds(check) for _ in range(rounds)]),
            ("help", [_cpu_seconds(("--help",)) for _ in range(rounds)]),
        ):
            yield figure(f"{name}_cpu_seconds", seconds, "none: a bound", 0.3)
        ours, peer = _servers(Path(folder))
        times: list[float] = []
        memory: list[float] = []
        for _ in range(2 if quick else 4):
            mine, theirs = _start(ours), _start(peer)
            times.append(theirs[0] / mine[0])
            memory.append(theirs[1] / mine[1])
    yield figure("first_prediction_vs_litserve", times, "LitServe 0.2.19, one worker", 1.0)
    yield figure("memory_litserve_vs_ours", memory, "LitServe 0.2.19, one worker", 1.0)


def _cpu_seconds(arguments: Sequence[str]) -> float:
    before = os.times()
    command = [sys.executable, "-m", "drivetrain.cli", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    return (after.children_user - before.children_user) + (
        after.children_system - before.children_system
    )


def _servers(folder: Path) -> tuple[list[str], list[str]]:
    """The command lines of both servers, without the port, for one bundle."""
    path = made.flights(folder / "made.parquet", 20_000)
    system = dt.System(
        name="startup",
        events=dt.Parquet(path),
        features=(dt.Index("carrier"), dt.Scale("distance"), dt.Scale("pressure")),
        model=MLP(hidden=(64, 32)),
        targets=("late",),
        train=dt.Single(loss=dt.BinaryCrossEntropy("late")),
    )
    store = folder / "store"
    bundle = run(system, dt.Site(store=str(store), work=str(folder / "work"), device="cpu"))
    assert bundle is not None
    dt.Registry(store).promote(bundle.digest, "startup")
    script = folder / "peer.py"
    script.write_text(PEER)
    serve = ["-m", "drivetrain.cli", "serve", "startup", "--set", f"store={store}", "--port"]
    return [sys.executable, *serve], [sys.executable, str(script), str(bundle.path / "model.onnx")]


def _start(command: Sequence[str]) -> tuple[float, float]:
    """Seconds to the first prediction, and megabytes of all its processes after it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    begin = time.perf_counter()
    process = subprocess.Popen(
        [*command, str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _first_prediction(port, begin)
        seconds = time.perf_counter() - begin
        tree = [psutil.Process(process.pid)]
        tree += tree[0].children(recursive=True)
        return seconds, sum(p.memory_full_info().uss for p in tree) / 2**20
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _first_prediction(port: int, begin: float) -> None:
    body = json.dumps({"rows": [ROW]}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/predict/startup", body, headers)
    while True:
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                assert "late" in json.load(answer)["predictions"][0]
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            if time.perf_counter() - begin > 90:
                raise
            time.sleep(0.01)


if __name__ == "__main__":
    options = words(__doc__)
    for measured in figures(options.quick):
        show(measured, options.json)
