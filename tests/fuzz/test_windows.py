"""The kernel of windows touches no memory that is not its own, whatever it is told or given."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "drivetrain" / "core" / "native"
SOURCES = [
    path
    for path in sorted(NATIVE.glob("*.c"))
    if any(f'#include "{header}.h"' in path.read_text() for header in ("windows", "run"))
]
SANITIZERS = ("libasan.so", "libubsan.so")


def libraries() -> list[str]:
    """The sanitizers' libraries; none where the compiler has not got them."""
    if shutil.which("gcc") is None:
        return []
    found = [
        subprocess.run(
            ["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in SANITIZERS
    ]
    return found if all(os.path.isabs(path) for path in found) else []


@pytest.mark.slow
def test_made_observations_and_made_bytes_touch_nothing_but_their_own_memory(tmp_path: Path):
    preloaded = libraries()
    if not preloaded:
        pytest.skip("NOT TESTED: there is no gcc with sanitizers here")
    module = tmp_path / "windows.so"
    flags = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
    include = sysconfig.get_paths()["include"]
    command = ["gcc", "-shared", "-fPIC", *flags, "-ffp-contract=off", "-pthread", f"-I{include}"]
    subprocess.run([*command, *map(str, SOURCES), "-o", str(module)], check=True)
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(preloaded),
        "ASAN_OPTIONS": "detect_leaks=0",  # what the interpreter keeps to its end is not ours
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": str(ROOT),
    }
    played = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "fuzz" / "windows.py"), str(module), "30"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert played.stdout == "played 30\n", played.stderr[-4000:]
    assert played.returncode == 0
