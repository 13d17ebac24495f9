"""The servers that ours is measured beside: how each is installed, started and asked."""

import contextlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench import model_a
from bench.load import Request
from bench.ours import Place, post
from bench.processes import Running, free_port, started

PEERS = Path(__file__).resolve().parent / "peers"
ENVIRONMENTS = PEERS.parent.parent / ".venv" / "peers"
_READY_SECONDS = 90.0


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One of them.

    Attributes:
        name: as people call it.
        package: whose version is told.
        script: the file of ``bench/peers`` that serves model A.
        environment: the one of ``.venv/peers``; empty is our own.
        words: a command line of the environment that is run instead of ``python script``.
        target: where a row is posted.
        env: further variables.
    """

    name: str
    package: str
    script: str
    environment: str = ""
    words: tuple[str, ...] = ()
    target: str = "/predict"
    env: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def python(self) -> Path:
        """Its interpreter."""
        if not self.environment:
            return Path(sys.executable)
        return ENVIRONMENTS / self.environment / "bin" / "python"

    def title(self) -> str:
        """Name and version.

        Raises:
            RuntimeError: it is not installed.
        """
        site = self.python.parent.parent / "lib"
        pattern = f"python3*/site-packages/{self.package}-*.dist-info"
        for found in site.glob(pattern):
            return f"{self.name} {re.sub(r'^.*?-|[.]dist-info$', '', found.name)}"
        raise RuntimeError(f"{self.name} is not installed; `make bench-setup` does that")

    def request(self) -> Request:
        """One row of model A in its own usual form."""
        row = model_a.rows(1)[0]
        if self.package == "mlserver":
            return Request(target=self.target, body=model_a.v2_json(row))
        if self.package == "bentoml":
            return Request(target=self.target, body=b'{"rows":[%b]}' % model_a.row_json(row))
        return Request(target=self.target, body=model_a.row_json(row))

    def command(self, port: int) -> list[str]:
        """Its command line."""
        if self.words:
            program = str(self.python.parent / self.words[0])
            return [program, *(word.format(port=port) for word in self.words[1:])]
        return [str(self.python), str(PEERS / self.script)]

    def variables(self, at: Place, port: int) -> dict[str, str]:
        """What its file reads from the environment."""
        return {
            "PEER_MODEL": str(at.onnx),
            "PEER_PORT": str(port),
            "PEER_PORT_2": str(free_port()),
            "PYTHONPATH": str(PEERS),
            "OMP_NUM_THREADS": "1",
            **{name: value.format(port=port) for name, value in self.env.items()},
        }

    @contextlib.contextmanager
    def serving(
        self, at: Place, answers: Callable[[Running], bool] | None = None
    ) -> Iterator[Running]:
        """The peer, when it has answered one row.

        Args:
            at: holds the graph.
            answers: whether it does; None posts its request over HTTP/1.1.

        Raises:
            RuntimeError: it is not installed, or did not answer.
        """
        self.title()
        port = free_port()
        log = at.folder / f"{self.package}.log"
        check = answers or (lambda server: post(server.port, self.request())[0] == 200)
        with started(self.command(port), log, port, self.variables(at, port)) as server:
            try:
                server.wait(lambda: check(server), _READY_SECONDS, 0.2)
            except RuntimeError as error:
                raise RuntimeError(f"{self.name}: {error}") from None
            yield server


_MLSERVER = Peer(
    name="MLServer",
    package="mlserver",
    script="mlserver_runtime.py",
    environment="mlserver",
    target="/v2/models/model_a/infer",
    env={"PEER_WORKERS": "0", "PEER_BATCH": "0"},
)
_MOSEC = Peer(
    name="mosec, waits 1 ms,",
    package="mosec",
    script="mosec_server.py",
    environment="mosec",
    target="/inference",
    env={
        "MOSEC_PORT": "{port}",
        "MOSEC_ADDRESS": "127.0.0.1",
        "MOSEC_LOG_LEVEL": "error",
        "PEER_WAIT_MS": "1",
    },
)
PYTHON_PEERS = (
    Peer(name="LitServe", package="litserve", script="lit_serve.py"),
    _MLSERVER,
    replace(
        _MLSERVER,
        name="MLServer, batching, parallel,",
        env={"PEER_WORKERS": "2", "PEER_BATCH": "64"},
    ),
    Peer(
        name="BentoML",
        package="bentoml",
        script="bento_service.py",
        environment="bentoml",
        words=(
            *("bentoml", "serve", "bento_service:ModelA", "--host", "127.0.0.1"),
            *("--port", "{port}", "--working-dir", str(PEERS)),
        ),
        env={"BENTOML_DO_NOT_TRACK": "True"},
    ),
    _MOSEC,
    replace(_MOSEC, name="mosec, waits 10 ms,", env={**_MOSEC.env, "PEER_WAIT_MS": "10"}),
    Peer(
        name="Ray Serve",
        package="ray",
        script="ray_serve.py",
        environment="ray",
        target="/",
        env={"RAY_USAGE_STATS_ENABLED": "0"},
    ),
)
"""Where the documentation's advice (batches, workers) is not what is fastest here, both ways."""


def grpc_aio(workers: int) -> Peer:
    """The gRPC peer with so many processes."""
    return Peer(
        name=f"grpc.aio, {workers} process{'es' if workers > 1 else ''},",
        package="grpcio",
        script="grpc_aio.py",
        environment="grpc",
        env={"PEER_WORKERS": str(workers)},
    )


def echo(size: int, rows: int = 0) -> Peer:
    """The floor, whose answers have ``size`` bytes of content; with rows, which runs them first."""
    return Peer(
        name="uvloop + httptools echo" + (f" that runs {rows} ready rows" if rows else ""),
        package="uvloop",
        script="echo.py",
        target="/",
        env={"PEER_BYTES": str(size), "PEER_ROWS": str(rows)},
    )
