"""What end-to-end tests share: made events in Parquet, a file that declares a system, a site."""

import contextlib
import fcntl
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, settings

from drivetrain.core.bundle import Bundle
from drivetrain.core.metric import Emitted
from drivetrain.core.site import EngineSite, Site
from drivetrain.core.system import System
from drivetrain.declaration import load
from drivetrain.pipeline import run

# The same examples in every run, and no verdict by the clock: a busy machine is not a failing test.
settings.register_profile(
    "drivetrain",
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("drivetrain")

ROOT = Path(__file__).resolve().parents[1]
ROWS = 1500
DECLARATION = """\
import drivetrain as dt
from drivetrain.models import MLP

system = dt.System(
    name="made",
    events=dt.Parquet({events!r}, time="at").split(
        dt.TimeSplit(validate="2024-07-01", test="2024-09-01")
    ),
    features=(
        dt.Scale("amount"),
        dt.Bucket("age", bins=4),
        dt.Index("shop"),
        dt.Hash("note", bins=32),
        dt.Missing("age"),
    ),
    model=MLP(hidden=(8,), dim=4),
    targets=("bad",),
    train=dt.Single(loss=dt.BinaryCrossEntropy("bad"), epochs=1, batch_size=100, lr=0.02),
    compress=(dt.Quantize("int8", calibration_rows=200), dt.Optimize()),
    probes=(
        dt.AUC(at_least=0.6),
        dt.LogLoss(),
        dt.Latency(p99_ms=10_000.0, repeats=20, seconds=0.2),
    ),
)
"""


def made_events(rows: int = ROWS, seed: int = 0, **changed: Any) -> pa.Table:
    """Made rows of one year, with every kind of missing value; ``bad`` follows amount and shop.

    Args:
        rows: how many, evenly spread over 2024.
        seed: of the generator.
        changed: columns to put in place of the made ones.
    """
    random = np.random.default_rng(seed)
    amount = random.normal(50, 20, rows)
    shop = random.choice(np.array(["north", "south", "east"], dtype=object), rows)
    logit = (amount - 50) / 10 + 2.0 * (shop == "north") - 0.5
    bad = (random.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.int64)
    amount[::97], amount[1::97], amount[2::97] = np.nan, np.inf, -np.inf
    age = [int(n) if n >= 20 else None for n in random.integers(0, 80, rows)]
    note = [None if n == 0 else f"note {n}" for n in random.integers(0, 40, rows)]
    start, year = np.datetime64("2024-01-01", "us"), 366 * 86_400_000_000
    columns = {
        "at": start + (np.arange(rows) * (year // rows)).astype("timedelta64[us]"),
        "amount": amount,
        "age": pa.array(age, pa.int64()),
        "shop": [None if i % 53 == 0 else name for i, name in enumerate(shop)],
        "note": note,
        "bad": bad,
    }
    return pa.table(columns | changed)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Cores are shared by whatever runs beside the tests, and one thread repeats to the bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def make_events() -> Callable[..., pa.Table]:
    """``make_events(rows, seed, **columns)`` makes rows."""
    return made_events


@pytest.fixture
def declared(tmp_path: Path) -> Callable[..., Path]:
    """``declared(events)`` writes a file that declares a system over the rows, and the rows."""

    def write(events: pa.Table | None = None) -> Path:
        pq.write_table(made_events() if events is None else events, tmp_path / "events.parquet")
        return _declare(tmp_path, tmp_path / "events.parquet")

    return write


def _declare(folder: Path, events: Path) -> Path:
    file = folder / "made_system.py"
    file.write_text(DECLARATION.format(events=str(events)))
    return file


def site_in(folder: Path) -> Site:
    """A site whose store and work lie in a folder."""
    engine = EngineSite(memory="200MB", threads=1)
    return Site(store=str(folder / "store"), work=str(folder / "work"), device="cpu", engine=engine)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A site of the test's own."""
    return site_in(tmp_path)


class Ran:
    """A system that was run once for all tests that only read what it left.

    Attributes:
        file: declares the system.
        folder: holds the file, the events, the store and the work directory.
        system: what was run.
        site: where.
        bundle: what came of it.
        heard: all that was emitted.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        pq.write_table(made_events(), folder / "events.parquet")
        self.file = _declare(folder, folder / "events.parquet")
        self.system: System = load(self.file)
        self.site = site_in(folder)
        self.heard: list[Emitted] = []
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        bundle = run(self.system, self.site, emit=self.heard.append)
        torch.set_num_threads(threads)
        assert bundle is not None
        self.bundle: Bundle = bundle

    def copy(self, folder: Path) -> Site:
        """A site that begins with all that the run left, for a test that changes it."""
        for room in ("store", "work"):
            shutil.copytree(self.folder / room, folder / room)
        mine = site_in(folder)
        return replace(self.site, store=mine.store, work=mine.work)


@pytest.fixture(scope="session")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The made system, run once from its events to a registered bundle."""
    return Ran(tmp_path_factory.mktemp("ran"))


@pytest.fixture(scope="session")
def environment() -> Callable[..., Path]:
    """``environment(name, *arguments)``: the Python of an environment that pip filled so.

    For packages that clash with ours, or are many: each environment lies in ``.venv/environments``,
    which the first run makes and later ones reuse. Files among the arguments are requirements, and
    with ``constraints=True`` our own pins hold there too. Without a package index the test is
    skipped, for that reason only.
    """

    def make(name: str, *arguments: str | Path, constraints: bool = False) -> Path:
        home = ROOT / ".venv" / "environments" / name
        python, stamp = home / "bin" / "python", home / "made-of.txt"
        pins = ROOT / "constraints.txt"
        asked = [f"--requirement={a}" if isinstance(a, Path) else a for a in arguments]
        files = [a for a in arguments if isinstance(a, Path)]
        if constraints:
            asked, files = [*asked, f"--constraint={pins}"], [*files, pins]
        wanted = "\n".join((sys.version, *asked, *(file.read_text() for file in files)))
        home.parent.mkdir(parents=True, exist_ok=True)
        with open(f"{home}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not stamp.exists() or stamp.read_text() != wanted:
                shutil.rmtree(home, ignore_errors=True)
                subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
                _install(python, asked)
                stamp.write_text(wanted)
        return python

    return make


def _install(python: Path, asked: list[str]) -> None:
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, "install", "--quiet", "--retries=2", *asked],
        capture_output=True,
        text=True,
        timeout=900,
    )
    if done.returncode == 0:
        return
    probe = [*pip, "download", "--quiet", "--retries=1", "--no-deps", "--no-cache-dir"]
    into = ["--dest", python.parent, "six==1.17.0"]
    if subprocess.run([*probe, *into], capture_output=True, timeout=120).returncode:
        pytest.skip(f"NOT TESTED: no package index can be reached to install {asked}")
    pytest.fail(f"pip did not install {asked}:\n{done.stdout}\n{done.stderr}")


class Broker:
    """A Kafka broker of the tests' own, in a process of its own on the loopback.

    It keeps what it was told only where it is stopped, not killed.

    Attributes:
        servers: its address, for clients.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.servers = f"127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, with what it held before; returns once it answers."""
        program = Path(sys.executable).parent / "noida-db"
        command = [program, "start", "--data-dir", self._folder, "--only", "kafka"]
        with (self._folder / "broker.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--kafka-port", str(self._port)], stdout=log, stderr=log
            )
        for _ in range(600):
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self._port), 1).close()
                return
            assert self._process.poll() is None, (self._folder / "broker.log").read_text()
            time.sleep(0.05)
        raise TimeoutError((self._folder / "broker.log").read_text())

    def stop(self) -> None:
        """Stop it; it keeps what it holds."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(60)

    def admin(self) -> Any:
        """A client that makes and deletes topics."""
        from confluent_kafka.admin import AdminClient

        return AdminClient({"bootstrap.servers": self.servers})

    def topic(self, name: str, partitions: int = 1) -> str:
        """Make a topic."""
        from confluent_kafka.admin import NewTopic

        self.admin().create_topics([NewTopic(name, partitions, 1)])[name].result(30)
        return name

    def delete(self, name: str) -> None:
        """Delete a topic."""
        self.admin().delete_topics([name])[name].result(30)

    def send(self, topic: str, values: Sequence[Any], **options: Any) -> None:
        """Write messages: bytes, None, or plain data as JSON; ``partition`` may be per message."""
        from confluent_kafka import Producer

        producer = Producer({"bootstrap.servers": self.servers, "linger.ms": 1})
        for number, value in enumerate(values):
            data = value if value is None or isinstance(value, bytes) else json.dumps(value)
            mine = {k: v[number] if isinstance(v, list) else v for k, v in options.items()}
            producer.produce(topic, value=data, **mine)
            producer.poll(0)
        assert producer.flush(60) == 0


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker that all tests share, each with topics of its own."""
    broker = Broker(tmp_path_factory.mktemp("broker"))
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def own_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker that a test may stop and start again."""
    broker = Broker(tmp_path_factory.mktemp("broker"))
    broker.start()
    yield broker
    broker.stop()


@pytest.fixture
def topic(broker: Broker, request: pytest.FixtureRequest) -> str:
    """A topic of the test's own, of two partitions."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower())[-100:]
    return broker.topic(f"{name}-{os.getpid()}", 2)
