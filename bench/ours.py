"""Our own server on model A, started as a user starts it: by its command."""

import contextlib
import http.client
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import model_a
from bench.load import BINARY, Request
from bench.processes import Running, free_port, started
from drivetrain.registry.registry import Registry

ALIAS = "model_a"
ROOT = Path(__file__).resolve().parent.parent
READY = "/v2/health/ready"


@dataclass(frozen=True)
class Place:
    """Where a run keeps its bundles and logs.

    Attributes:
        folder: everything lies below it.
        digests: of two versions of model A; the alias points at the first.
    """

    folder: Path
    digests: tuple[str, str]

    @property
    def store(self) -> Path:
        """The registry."""
        return self.folder / "store"

    @property
    def onnx(self) -> Path:
        """The graph of the first version, which peers serve too."""
        return Registry(self.store).path(self.digests[0]) / "model.onnx"

    def promote(self, number: int) -> None:
        """Point the alias at a version."""
        Registry(self.store).promote(self.digests[number], ALIAS)


@contextlib.contextmanager
def place() -> Iterator[Place]:
    """A temporary folder with both versions in a registry."""
    with tempfile.TemporaryDirectory(prefix="drivetrain-bench-") as name:
        folder = Path(name)
        registry = Registry(folder / "store")
        digests: list[str] = []
        for seed in (0, 1):
            bundle = model_a.write(folder / f"bundle{seed}", seed)
            digests.append(registry.add(bundle.path).digest)
        made = Place(folder, (digests[0], digests[1]))
        made.promote(0)
        yield made


@contextlib.contextmanager
def serving(
    at: Place, *, workers: int | None = None, cores: Sequence[int] | None = None
) -> Iterator[Running]:
    """Our server, ready; one worker a core unless told.

    Raises:
        RuntimeError: it did not start.
    """
    port = free_port()
    count = len(os.sched_getaffinity(0)) if workers is None else workers
    with started(command(at, port, count), at.folder / "ours.log", port, cores=cores) as server:
        server.wait(lambda: status(port, READY) == 200, 30.0)
        yield server


def command(at: Place, port: int, workers: int) -> list[str]:
    """The command line that serves model A."""
    settings = [f"--set=store={at.store}", f"--set=serve.workers={workers}"]
    words = ["serve", ALIAS, "--port", str(port), *settings]
    return [sys.executable, "-m", "drivetrain.cli", *words]


def status(port: int, target: str) -> int:
    """The status of a GET, 0 if nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", target)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def get(port: int, target: str) -> bytes:
    """The content of the answer to a GET."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", target)
        return connection.getresponse().read()
    finally:
        connection.close()


def post(port: int, request: Request) -> tuple[int, bytes]:
    """Status and content of the answer to a request; 0 if nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST", request.target, request.body, request.all_headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException) as error:
        return 0, repr(error).encode()
    finally:
        connection.close()


def one_row() -> Request:
    """One row as plain JSON."""
    return Request(target=f"/predict/{ALIAS}", body=model_a.row_json(model_a.rows(1)[0]))


def v2_row() -> Request:
    """One row in V2 JSON, a tensor for each column."""
    inputs = [
        {"name": name, "datatype": "INT64" if name in model_a.CATEGORIES else "FP32",
         "shape": [1], "data": [value]}
        for name, value in model_a.rows(1)[0].items()
    ]  # fmt: skip
    body = json.dumps({"inputs": inputs}, separators=(",", ":")).encode()
    return Request(target=f"/v2/models/{ALIAS}/infer", body=body)


def poisoned() -> Request:
    """One row that fails in the run."""
    return Request(target=f"/predict/{ALIAS}", body=model_a.row_json(model_a.poison()))


def binary(count: int = 64) -> Request:
    """Rows in V2 with binary tensors."""
    body, head = model_a.v2_binary(model_a.rows(count))
    return Request(
        target=f"/v2/models/{ALIAS}/infer",
        body=body,
        kind=BINARY,
        headers={"Inference-Header-Content-Length": str(head)},
    )


def over_grpc() -> Request:
    """One row as a gRPC message."""
    return Request(
        target="/inference.GRPCInferenceService/ModelInfer",
        body=model_a.grpc_message(model_a.rows(1), ALIAS),
        kind="application/grpc",
        headers={"TE": "trailers"},
    )
