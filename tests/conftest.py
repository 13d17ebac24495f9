"""What end-to-end tests share: made events in Parquet, a file that declares a system, a site."""

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
sys.path.insert(0, str(ROOT / "tests" / "events"))  # where the broker lies

if TYPE_CHECKING:
    from broker import Broker

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


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Broker]":
    """A Kafka broker that the tests of a file share; each makes topics of its own.

    One for all files would write down what all of them sent, every two seconds, and grow slow.
    """
    from broker import Broker

    running = Broker(tmp_path_factory.mktemp("broker") / "data")
    yield running
    running.stop()


@pytest.fixture
def own_broker(tmp_path: Path) -> "Iterator[Broker]":
    """A Kafka broker that a test may stop and start again."""
    from broker import Broker

    running = Broker(tmp_path / "broker" / "data")
    yield running
    running.stop()
