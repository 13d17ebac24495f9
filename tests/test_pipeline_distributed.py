"""A site's processes share the training of a declared system, from the command line."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from drivetrain import cli
from drivetrain.core.site import Site
from drivetrain.launch.local import free_port
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


def test_agents_share_the_training_and_one_of_them_does_the_rest(
    declared: Callable[..., Path], tmp_path: Path
) -> None:
    file = declared()
    file.write_text(file.read_text().replace("Single", "AllReduce"))
    site = tmp_path / "site.toml"
    site.write_text(
        f'store = "{tmp_path / "store"}"\nwork = "{tmp_path / "work"}"\ndevice = "cpu"\n'
        f'[launcher]\nkind = "agents"\naddress = "127.0.0.1:{free_port()}"\nat_least = 2\n'
        "[resources]\nnodes = 2\ncpus = 1\n"
    )
    command = (sys.executable, "-m", "drivetrain.cli", "run", str(file), "--on", str(site))
    agents = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    try:
        said = [agent.communicate(timeout=300)[0] for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    assert [agent.returncode for agent in agents] == [0, 0], "\n".join(said)
    registry = Registry(tmp_path / "store")
    (digest,) = registry.bundles()
    assert sum(text.count(f"bundle {digest}\n") for text in said) == 1
    assert "2 processes of 2 agents" in "".join(said)
    # What one machine took is not what the run took, so nothing is said of it.
    assert not [m for m in registry.measurements(digest) if "energy" in m.name]


def test_where_agents_cannot_run_a_system_it_says_so(
    declared: Callable[..., Path], tmp_path: Path
) -> None:
    site = tmp_path / "site.toml"
    site.write_text('[launcher]\nkind = "agents"\n[resources]\nnodes = 2\n')
    file = declared()
    command = ("run", str(file), "--on", str(site), "--dry-run")
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr(cli, "_fail", lambda options, error: said.append(str(error)))
        assert cli.main(command) == 2
        file.write_text(file.read_text().replace("Single", "AllReduce"))
        assert cli.main((*command, "--set=launcher.at_least=3")) == 2
        assert cli.main((*command, "--set=launcher.address=10.0.0.1:29400")) == 2
        assert cli.main(command) == 0
    single, most, token = said
    assert "[launcher] kind: found 'agents', allowed: inline or local with Single" in single
    assert "[launcher] at_least: found 3, allowed: at most [resources] nodes, which is 2" in most
    assert "[launcher] token_file: found ''" in token
