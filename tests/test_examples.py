"""Every example runs as a reader would start it, on settings that a test has the time for."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

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

SYSTEMS = sorted(
    file.stem for file in EXAMPLES.glob("*.py") if "dt.System(" in file.read_text(encoding="utf-8")
)


def settings(example: str) -> list[str]:
    return [f"--set={setting}" for setting in QUICKER.get(example, ())]


@pytest.mark.parametrize("example", SYSTEMS)
def test_an_example_fits_its_events(example: str) -> None:
    system = load(EXAMPLES / f"{example}.py")
    system.check(system.events.schema)


@pytest.mark.slow
@pytest.mark.parametrize("example", [name for name in SYSTEMS if name != "flights"])
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
