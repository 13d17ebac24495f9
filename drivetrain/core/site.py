"""A site: where a system runs, read from a small TOML file; it never says what runs."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

from drivetrain.core.errors import unknown, wrong
from drivetrain.core.job import Resources


@dataclass(frozen=True, kw_only=True)
class EngineSite:
    """Which engine prepares events and computes statistics, and what it may use.

    Attributes:
        kind: ``duckdb`` or ``spark``.
        memory: the most memory it takes, as DuckDB writes it; of Spark each executor's, at least
            512 MB.
        threads: 0 for one a core.
        master: of ``spark``: ``local`` (in this process), ``local[n]``, ``spark://host:port`` (a
            standalone cluster) or ``sc://host:port`` (a server of Spark Connect).
        conf: of ``spark``: further settings by their names.
        wait_seconds: of ``spark``: how long a cluster may take to give an executor.
        kafka: of ``spark``: how it reads a stream's topic: ``python`` (the client of the embedded
            runner, on the executors) or ``connector`` (spark-sql-kafka, whose jars ``conf`` names).
    """

    kind: str = "duckdb"
    memory: str = "1GB"
    threads: int = 0
    master: str = "local"
    conf: Mapping[str, str] = field(default_factory=dict[str, str])
    wait_seconds: float = 60.0
    kafka: str = "python"


@dataclass(frozen=True, kw_only=True)
class LauncherSite:
    """Which launcher starts the job.

    Attributes:
        kind: ``inline`` (this process), ``local`` (processes on this machine) or ``agents``
            (processes on several, each of which runs the same command).
        restarts: how often the processes of a training are started anew when one of them dies;
            each goes on from the last checkpoint.
        address: of ``agents``, ``host:port`` where they meet, on the machine that lives longest.
        token_file: of ``agents``, holds what they prove to know; empty on loopback only.
        at_least: of ``agents``, how many a training needs; ``[resources] nodes`` is the most.
        wait_seconds: of ``agents``, how long those that are missing are waited for.
    """

    kind: str = "inline"
    restarts: int = 3
    address: str = "127.0.0.1:29400"
    token_file: str = ""
    at_least: int = 1
    wait_seconds: float = 600.0

    def token(self) -> bytes:
        """What ``token_file`` holds, less white space around it; empty if there is none.

        Raises:
            OSError: the file cannot be read.
            ValueError: it holds nothing.
        """
        if not self.token_file:
            return b""
        token = Path(self.token_file).read_bytes().strip()
        if not token:
            raise wrong("[launcher] token_file", self.token_file, "a file that is not empty")
        return token


@dataclass(frozen=True, kw_only=True)
class ServeSite:
    """Where the server listens and what it keeps.

    Attributes:
        host: loopback by default.
        port: 0 takes a free one.
        management_port: a second port, which lets clients also load and unload the aliases and
            register shared memory; 0 opens none.
        feedback: a directory for requests and answers as events; empty keeps none.
        feedback_bytes: of them are kept on disk, the newest; 0 is no bound.
        feedback_days: they are kept; 0 is no bound.
        workers: processes that share the port; 0 for one a core.
        hang_seconds: of several workers one is killed and replaced whose event loop stands still,
            or whose run of a graph takes, longer than this; a graph whose runs may take longer
            needs more.
        access_log: a file that gets a line of JSON for each answer, behind what it has; ``-`` is
            standard output, empty keeps none. A rotation must copy and truncate it.
        tls_certificate: a PEM file of the server's certificate and those between it and its root;
            empty serves without TLS. It is read again when it changes, and so are the other two.
        tls_key: a PEM file of its private key; empty if ``tls_certificate`` has it.
        tls_client_ca: a PEM file of those who sign clients' certificates; clients must then bring
            one, health checks too, and need no token off loopback. Empty asks for none.
        traces: an OTLP/HTTP address that takes OpenTelemetry traces, such as
            ``http://127.0.0.1:4318/v1/traces``; empty makes none.
        traces_share: of the requests that bring no ``traceparent`` header, which decides itself.
        token_file: a file that holds what clients must bring as ``Authorization: Bearer``; empty
            asks for nothing, on loopback only. The secret itself never stands in a site.
        placement: where graphs run: ``cpu`` is ONNX Runtime's own, and measures nothing;
            ``openvino``, ``openvino-bf16``, ``cuda``, ``tensorrt`` and others are used, or are an
            error; ``auto`` measures what is installed and picks the fastest that gives the same.
        parity: how far answers may be from the plain CPU's; 0 for the placement's own limit.
        state: where the observations are kept that windows are read off: a directory, for one
            process; ``redis://host:port/db`` for several; empty for memory that ends with it.
        state_bytes: of memory that the observations of an alias may take.
        state_ahead: seconds that what is observed may lie ahead of the server's clock; 0 is no
            bound.
        state_missing: while Redis cannot be asked, ``refuse`` answers 503, and ``empty`` predicts
            with empty windows and counts them.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    management_port: int = 0
    feedback: str = ""
    feedback_bytes: int = 10 << 30
    feedback_days: int = 30
    workers: int = 1
    hang_seconds: int = 30
    access_log: str = ""
    tls_certificate: str = ""
    tls_key: str = ""
    tls_client_ca: str = ""
    traces: str = ""
    traces_share: float = 0.1
    token_file: str = ""
    placement: str = "cpu"
    parity: float = 0.0
    state: str = ""
    state_bytes: int = 1 << 30
    state_ahead: int = 86_400
    state_missing: str = "refuse"

    def token(self) -> str | None:
        """What ``token_file`` holds, less white space around it; None if there is none.

        Raises:
            OSError: the file cannot be read.
            ValueError: it does not hold one word of visible ASCII; the error does not show it.
        """
        if not self.token_file:
            return None
        token = Path(self.token_file).read_bytes().strip()
        if not token or not all(0x21 <= byte <= 0x7E for byte in token):
            found = f"{len(token)} bytes that are no such word" if token else "nothing"
            raise ValueError(
                f"token_file {self.token_file}: found {found}, allowed: one word of visible ASCII."
            )
        return token.decode()


@dataclass(frozen=True, kw_only=True)
class ListenSite:
    """Who else hears the metric stream; empty is nobody.

    Attributes:
        mlflow: a tracking address, such as ``sqlite:///mlflow.db``.
        tensorboard: a directory of event files.
    """

    mlflow: str = ""
    tensorboard: str = ""


@dataclass(frozen=True, kw_only=True)
class EnergySite:
    """What must be known of a place to tell the energy and the carbon of a run.

    Attributes:
        country: its ISO 3166-1 alpha-3 code, such as ``DEU``, for the mean carbon of its grid;
            empty tells no carbon.
        grams_per_kwh: of CO2 equivalent, instead of the country's; 0 takes that.
        watts_per_cpu: of one busy logical CPU, where no counter can be read. The default is the
            mean of AWS's processors under full load by Cloud Carbon Footprint, Methodology,
            "Average Max Watts" (https://www.cloudcarbonfootprint.org/docs/methodology/).
    """

    country: str = ""
    grams_per_kwh: float = 0.0
    watts_per_cpu: float = 3.5


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where a system runs.

    Attributes:
        store: the directory of bundles and aliases.
        work: the directory of what stages keep between runs; may be deleted at any time.
        device: where tensors live, as torch names it; ``auto`` takes a GPU if there is one.
        trust: a file of public keys in PEM, any of which must have signed a bundle that an alias
            is to mean or that is served; empty asks for no signature.
    """

    store: str = ".drivetrain/store"
    work: str = ".drivetrain/work"
    device: str = "auto"
    trust: str = ""
    engine: EngineSite = EngineSite()
    launcher: LauncherSite = LauncherSite()
    resources: Resources = Resources()
    serve: ServeSite = ServeSite()
    listen: ListenSite = ListenSite()
    energy: EnergySite = EnergySite()

    @classmethod
    def load(cls, path: str | Path) -> "Site":
        """Read a site.

        Raises:
            FileNotFoundError: no such file.
            ValueError: it is not TOML, has an unknown key (the error suggests the nearest) or
                a value of the wrong type.
        """
        try:
            data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not TOML: {error}") from None
        return _section(cls(), data, str(path))


def _section(default: Any, data: Mapping[str, Any], where: str) -> Any:
    known = {item.name for item in fields(default)}
    values: dict[str, Any] = {}
    for key, value in data.items():
        if key not in known:
            raise unknown("key", key, known, where)
        now = getattr(default, key)
        if hasattr(now, "__dataclass_fields__"):
            if not isinstance(value, Mapping):
                raise wrong(f"{where}: {key}", value, f"a table of {type(now).__name__}")
            section = cast("Mapping[str, Any]", value)
            values[key] = _section(now, section, f"{where} [{key}]")
        elif type(value) is not type(now):
            raise wrong(f"{where}: {key}", value, f"{type(now).__name__}")
        else:
            values[key] = value
    return type(default)(**values)
