"""A site's processes share the training of a declared system, from the command line."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from drivetrain.core.site import Site
from drivetrain.registry.registry import Registry

pytestmark = pytest.mark.slow


def run(file: Path, folder: Path, processes: int, *more: str) -> "subprocess.CompletedProcess[str]":
    site = folder / "site.toml"
    site.write_text(
        f'store = "{folder / "store"}"\nwork = "{folder / "work"}"\ndevice = "cpu"\n'
        f'[launcher]\nkind = "local"\n[resources]\nprocesses = {processes}\ncpus = 1\n'
    )
    command = (sys.executable, "-m", "drivetrain.cli", "run", str(file), "--on", str(site), *more)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_processes_share_the_training_and_one_of_them_does_the_rest(
    declared: Callable[..., Path], site: Site, tmp_path: Path
) -> None:
    file = declared()
    text = file.read_text()
    assert "Single" in text
    file.write_text(text.replace("Single", "AllReduce"))
    figures: list[dict[str, float]] = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        done = run(file, folder, processes)
        assert done.returncode == 0, done.stderr
        registry = Registry(folder / "store")
        (digest,) = registry.bundles()
        figures.append(dict(registry.open(digest).manifest.metrics))
        assert done.stdout.count(f"bundle {digest}\n") == 1
        by_name = {m.name.replace("estimated_", ""): m.value for m in registry.measurements(digest)}
        # Whoever imports torch takes more than a CPU second, at 3.5 W.
        assert by_name["train/energy_kwh"] > 3.5 / 3.6e6
    one, two = figures
    assert one.keys() == two.keys()
    # Sums in another order differ in their last bits, and int8 may round these another way.
    np.testing.assert_allclose(two["test/auc"], one["test/auc"], atol=5e-3)


def test_a_mistake_in_one_process_is_told_once_and_not_tried_again(
    declared: Callable[..., Path], tmp_path: Path
) -> None:
    file = declared()
    file.write_text(file.read_text().replace("Single", "AllReduce"))
    done = run(file, tmp_path, 2, "--set=train.batch_size=1")
    assert done.returncode == 2
    assert "AllReduce.batch_size: found 1, allowed: 2, a row for each process." in done.stderr
    assert "start anew" not in done.stderr
