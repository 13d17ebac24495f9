"""A tiny bundle and ways to talk to a server that serves it."""

import http.client
import json
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto, helper

from drivetrain.core.bundle import Bundle, Manifest
from drivetrain.core.graph import IR_VERSION, ML_OPSET, OPSET, Graph
from drivetrain.core.schema import Field, Schema
from drivetrain.serve.server import Server, running
from drivetrain.serve.transport.exchange import Exchange
from drivetrain.serve.transport.http import HttpLimits

sys.path.insert(0, str(Path(__file__).parent))  # where what these tests share lies

from http2_peer import Browser, Peer, echo

CARRIERS = ("AA", "UA", "DL", "β")
INPUTS = Schema((Field("carrier", "string"), Field("distance", "float32"), Field("hour", "int64")))
OUTPUTS = Schema((Field("late", "float32"), Field("slot", "int64")))


def tiny_graph(weight: float = 0.75) -> Graph:
    """``late = sigmoid(weight · table[carrier] + distance / 1000 + hour / 24)``, and a poison.

    ``slot`` looks ``hour`` up in a table of 24: an hour beyond it fails in the run, not before.
    """
    rows = helper.make_tensor_value_info
    nodes = [
        helper.make_node(
            "LabelEncoder",
            ["carrier"],
            ["code"],
            domain="ai.onnx.ml",
            keys_strings=list(CARRIERS),
            values_floats=[0.5, -0.25, 0.125, 1.5],
            default_float=-1.0,
        ),
        helper.make_node("Mul", ["code", "weight"], ["scaled"]),
        helper.make_node("IsNaN", ["distance"], ["unknown"]),
        helper.make_node("Where", ["unknown", "zero", "distance"], ["known"]),
        helper.make_node("Div", ["known", "thousand"], ["far"]),
        helper.make_node("Equal", ["hour", "missing"], ["no_hour"]),
        helper.make_node("Where", ["no_hour", "zero_hour", "hour"], ["clock"]),
        helper.make_node("Cast", ["clock"], ["hours"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["hours", "day"], ["part"]),
        helper.make_node("Sum", ["scaled", "far", "part"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["late"]),
        helper.make_node("Gather", ["slots", "clock"], ["slot"]),
    ]
    floats = {"weight": weight, "zero": 0.0, "thousand": 1000.0, "day": 24.0}
    constants = [
        helper.make_tensor(name, TensorProto.FLOAT, [], [value]) for name, value in floats.items()
    ]
    integers = {"missing": -(2**63), "zero_hour": 0}
    constants += [
        helper.make_tensor(name, TensorProto.INT64, [], [value]) for name, value in integers.items()
    ]
    constants.append(
        helper.make_tensor("slots", TensorProto.INT64, [24], [n // 6 for n in range(24)])
    )
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            rows("carrier", TensorProto.STRING, ["rows"]),
            rows("distance", TensorProto.FLOAT, ["rows"]),
            rows("hour", TensorProto.INT64, ["rows"]),
        ],
        [rows("late", TensorProto.FLOAT, ["rows"]), rows("slot", TensorProto.INT64, ["rows"])],
        constants,
    )
    model = helper.make_model(
        graph,
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)],
    )
    return Graph.from_proto(model)


def write_tiny(path: Path, weight: float = 0.75) -> Bundle:
    """A tiny bundle at ``path``."""
    manifest = Manifest(name="tiny", inputs=INPUTS, outputs=OUTPUTS)
    return Bundle.write(path, tiny_graph(weight), manifest, {})


@dataclass(frozen=True)
class Reply:
    """One answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """Talks to one server."""

    def __init__(self, server: Server, url: str) -> None:
        self.server = server
        self.url = url
        self.address = (server.host, server.port)

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(*self.address, timeout=10)

    def ask(
        self,
        method: str,
        target: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        over: http.client.HTTPConnection | None = None,
    ) -> Reply:
        """One request; ``body`` is sent as it is, or as JSON if it is no bytes."""
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        connection = over or self.connection()
        try:
            connection.request(method, target, body, dict(headers or {}))
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Reply(answer.status, found, answer.read())
        finally:
            if over is None:
                connection.close()

    def post(self, target: str, body: Any, **rest: Any) -> Reply:
        return self.ask("POST", target, body, **rest)

    def get(self, target: str, **rest: Any) -> Reply:
        return self.ask("GET", target, **rest)

    def socket(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=10)

    def raw(self, data: bytes) -> bytes:
        """Send bytes and give all that comes until the server closes."""
        with self.socket() as peer:
            with suppress(ConnectionError):
                peer.sendall(data)
            return read_all(peer)

    def metric(self, line: str) -> float:
        """The value of one series, written as the exposition writes it."""
        for found in self.get("/metrics").body.decode().splitlines():
            name, _, value = found.rpartition(" ")
            if name == line:
                return float(value)
        raise AssertionError(f"no metric {line}")


def read_all(peer: socket.socket) -> bytes:
    parts: list[bytes] = []
    with suppress(ConnectionError):
        while part := peer.recv(65536):
            parts.append(part)
    return b"".join(parts)


@pytest.fixture(scope="session")
def write_bundle() -> Callable[..., Bundle]:
    """Writes a tiny bundle to a path, with a weight of one's own."""
    return write_tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """One bundle for all tests that change nothing."""
    return write_tiny(tmp_path_factory.mktemp("tiny") / "bundle")


@pytest.fixture
def serve(tiny: Bundle) -> Iterator[Callable[..., Client]]:
    """Starts servers that end with the test: ``serve(models=…, limits=…)``."""
    with ExitStack() as stack:

        def start(models: Any = None, **options: Any) -> Client:
            options = {"port": 0, "grace_seconds": 5.0, **options}
            server = Server(models or {"tiny": tiny.path}, **options)
            return Client(server, stack.enter_context(running(server)))

        yield start


@pytest.fixture(scope="session")
def client(tiny: Bundle) -> Iterator[Client]:
    """A server with default limits, for tests that leave it as it is."""
    server = Server({"tiny": tiny.path}, port=0)
    with running(server) as url:
        yield Client(server, url)


@pytest.fixture
def peer() -> Iterator[Callable[..., Peer]]:
    """Makes clients of HTTP/2, each with a server of its own and no socket between."""
    with ExitStack() as stack:

        def make(application: Callable[[Exchange], None] = echo, **limits: Any) -> Peer:
            made = Peer(application, HttpLimits(**limits))
            stack.callback(made.loop.close)
            stack.callback(made.do, lambda: made.connection.connection_lost(None))
            return made

        yield make


@pytest.fixture
def browser(peer: Callable[..., Peer]) -> Callable[..., Browser]:
    """Makes clients of HTTP/2 that keep to the protocol."""
    return lambda *given, **limits: Browser(peer(*given, **limits))
