"""A device: nothing but onnxruntime, numpy and this package, and the very bits of the full one."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import drivetrain as dt
from drivetrain.core.site import Site
from drivetrain.models import MLP

ROOT = Path(__file__).parent.parent
ABSENT = ("torch", "onnx", "msgspec", "pyarrow", "duckdb", "httptools", "uvloop", "PIL", "pandas")
ON_THE_DEVICE = """
import json, sys, time
started = time.perf_counter()
from drivetrain import Bundle
from importlib.util import find_spec
where, rows, absent = sys.argv[1], json.load(open(sys.argv[2])), sys.argv[3:]
bundle = Bundle.open(where)
first = bundle.predict(rows[:1])
seconds = time.perf_counter() - started
found = bundle.predict(rows)
print(json.dumps({
    "digest": bundle.digest,
    "bits": {name: found[name].tobytes().hex() for name in found.columns},
    "one": {name: first[name].tobytes().hex() for name in first.columns},
    "seconds": seconds,
    "found": [name for name in absent if find_spec(name) or name in sys.modules],
    "from": sys.modules["drivetrain"].__file__,
}))
"""


@pytest.fixture(scope="module")
def device(environment: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment of onnxruntime, numpy, and this package without extras."""
    python = environment("device", "onnxruntime", "numpy", constraints=True)
    # A build leaves files behind, which are to lie in no one's tree.
    source = tmp_path_factory.mktemp("device") / "source"
    shutil.copytree(ROOT / "drivetrain", source / "drivetrain")
    for path in ROOT.iterdir():
        if path.is_file() and path.suffix in ("", ".py", ".toml", ".md", ".txt", ".in", ".cfg"):
            shutil.copyfile(path, source / path.name)
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    into = [*pip, "install", "--quiet", "--no-deps", "--force-reinstall", source]
    done = subprocess.run(into, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return python


@pytest.fixture(scope="module")
def bundle(ran: Any, tmp_path_factory: pytest.TempPathFactory) -> dt.Bundle:
    """What the real pipeline makes of events with strings, nulls and times."""
    folder = tmp_path_factory.mktemp("edge")
    site: Site = ran.site
    system = dt.System(
        name="edge",
        events=ran.system.events,
        features=(
            dt.Scale("amount"),
            dt.Bucket("age", bins=4),
            dt.Index("shop"),
            dt.Hash("note", bins=32),
            dt.Text("note", bins=64),
            dt.Cyclic("at", period="hour"),
            dt.Cyclic("at", period="day_of_year", name="season"),
            dt.Missing("age"),
        ),
        model=MLP(hidden=(8,), dim=4),
        targets=("bad",),
        train=dt.Single(loss=dt.BinaryCrossEntropy("bad"), epochs=1, batch_size=200),
    )
    there = Site(
        store=str(folder / "store"), work=str(folder / "work"), device="cpu", engine=site.engine
    )
    made = dt.run(system, there)
    assert made is not None
    return made


def rows_of(events: pa.Table, bundle: dt.Bundle) -> list[dict[str, Any]]:
    """Rows as a person writes them in JSON: null, text that is no ASCII, moments as ISO 8601."""
    names = bundle.manifest.inputs.names
    rows = events.select(names).slice(0, 200).to_pylist()
    for row in rows:
        row["at"] = row["at"].isoformat()
        amount = row["amount"]
        row["amount"] = amount if np.isfinite(amount) else None
    strange = {"note": "naïve β 漢字 " * 20, "shop": "", "age": None, "amount": None, "at": None}
    return [*rows, strange, dict.fromkeys(names)]


def bits_of(found: dt.Batch) -> dict[str, str]:
    return {name: np.asarray(column).tobytes().hex() for name, column in found.columns.items()}


def test_numpy_and_onnxruntime_are_all_that_predicting_imports(bundle: dt.Bundle) -> None:
    """The same in the full environment, where whatever is imported would be found."""
    code = (
        "import sys\nfrom drivetrain import Bundle\n"
        f"Bundle.open({str(bundle.path)!r}).predict([{{}}])\n"
        f"print([name for name in {ABSENT!r} if name in sys.modules])"
    )
    code = code.replace("[{}]", repr([dict.fromkeys(bundle.manifest.inputs.names)]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60
    )
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.slow
def test_a_device_predicts_the_same_bits_out_of_a_directory_and_out_of_one_file(
    device: Path, bundle: dt.Bundle, make_events: Any, tmp_path: Path
) -> None:
    rows = rows_of(make_events(), bundle)
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    packed = bundle.pack(tmp_path / "alone" / "edge.bundle")
    bits, one = bits_of(bundle.predict(rows)), bits_of(bundle.predict(rows[:1]))
    for path in (bundle.path, packed.path):
        done = subprocess.run(
            [device, "-I", "-c", ON_THE_DEVICE, path, tmp_path / "rows.json", *ABSENT],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        assert said["found"] == []
        assert said["from"].startswith(str(device.parent.parent))
        assert said["digest"] == bundle.digest
        assert said["bits"] == bits
        assert said["one"] == one
    assert os.listdir(tmp_path / "alone") == ["edge.bundle"]


@pytest.mark.slow
def test_a_device_has_nothing_else_installed(device: Path) -> None:
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "--python", device, "list", "--format=json"],
        capture_output=True,
        check=True,
        timeout=60,
    )
    names = {item["name"].lower() for item in json.loads(listed.stdout)}
    assert {"numpy", "onnxruntime", "drivetrain"} <= names
    brought = {"flatbuffers", "packaging", "protobuf", "coloredlogs", "humanfriendly", "sympy"}
    assert names - {"numpy", "onnxruntime", "drivetrain"} <= brought | {"mpmath"}


@pytest.mark.slow
def test_what_a_device_lacks_is_named_with_what_brings_it(device: Path) -> None:
    asks = (
        ("import numpy as np; from drivetrain.core.pixels import pixels; "
         "pixels(np.array([b'x'], object), (1, 2, 2, 3), 'photo')", "drivetrain[image]"),
        ("import drivetrain as dt; dt.Graph(b'').proto", "drivetrain[train]"),
    )  # fmt: skip
    for code, extra in asks:
        done = subprocess.run(
            [device, "-I", "-c", code], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 1
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith("ImportError: ")
        assert f"pip install '{extra}'" in last
