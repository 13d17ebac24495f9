"""`drivetrain run`: what it prints, where it stops, who starts it."""

import json
import re
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

Drive = Callable[..., tuple[int, str, str]]
Child = Callable[..., "subprocess.CompletedProcess[str]"]
Served = Callable[..., AbstractContextManager[str]]


def test_run_prints_the_bundle_and_what_comes_next(drive: Drive, ran: Any, here: Any) -> None:
    status, out, err = drive("run", ran.file, *here)
    assert status == 0, err
    assert f"bundle {ran.bundle.digest}" in out
    assert re.search(r"test/auc +0\.\d+", out)
    assert re.search(r"run/(estimated_)?energy_kwh +\d", out)
    assert "energy: energy by " in err
    assert f"next: drivetrain promote {ran.bundle.digest[:12]} made" in out


def test_run_as_json_is_an_object_a_line(drive: Drive, ran: Any, here: Any) -> None:
    german = "--set=energy.country=DEU"
    status, out, _ = drive("run", ran.file, *here, "--json", "--set=compress=[]", german)
    assert status == 0
    *stream, last = [json.loads(line) for line in out.splitlines()]
    assert {item["type"] for item in stream} >= {"note", "metric"}
    assert last["metrics"]["test/auc"] > 0.6
    spent = last["measured"]
    carbon = spent.pop("run/estimated_carbon_kg")
    (kwh,) = spent.values()
    assert carbon == pytest.approx(kwh * 380.95 / 1000)


def test_run_stops_where_it_is_told(drive: Drive, ran: Any, tmp_path: Path) -> None:
    rooms = [f"--set=store={tmp_path / 'store'}", f"--set=work={tmp_path / 'work'}"]
    status, _, _ = drive("run", ran.file, "--until", "features", *rooms)
    assert status == 0
    assert {path.name for path in (tmp_path / "work").iterdir()} == {"events", "features"}
    assert not (tmp_path / "store").exists()


def test_run_ends_with_1_when_a_bound_is_broken(drive: Drive, ran: Any, here: Any) -> None:
    changed = ["--set=probes.0.at_least=0.999", "--set=compress=[]"]
    status, out, err = drive("run", ran.file, *here, *changed)
    assert status == 1
    assert re.search(r"a bound is broken: test/auc 0\.\d+ \(at least 0\.999\)", err)
    digest = re.search(r"bundle ([0-9a-f]{64})", out)
    assert digest
    status, _, err = drive("promote", digest[1], "made", *here)
    assert status == 2
    assert "test/auc" in err


def test_a_dry_run_prints_the_command_and_starts_nothing(
    drive: Drive, ran: Any, tmp_path: Path
) -> None:
    settings = [f"--set=work={tmp_path / 'work'}", "--set=train.lr=0.5", "--set=resources.cpus=2"]
    status, out, _ = drive("run", ran.file, "--dry-run", "--until=train", *settings)
    assert status == 0
    assert out.startswith("OMP_NUM_THREADS=2 RANK=0 LOCAL_RANK=0 WORLD_SIZE=1 ")
    for part in ("drivetrain.cli run", "--until=train", "--set=train.lr=0.5"):
        assert part in out
    assert not (tmp_path / "work").exists()


def test_the_local_launcher_starts_a_child_and_passes_its_status_on(
    ran: Any, tmp_path: Path, child: Child
) -> None:
    rooms = [f"--set=store={tmp_path / 'store'}", f"--set=work={tmp_path / 'work'}"]
    local = ["--set=launcher.kind=local", "--until=features"]
    done = child("run", ran.file, *rooms, *local)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "work").iterdir()} == {"events", "features"}
    failed = child("run", ran.file, *rooms, *local, "--set=engine.kind=none")
    assert failed.returncode == 2
    assert failed.stderr.splitlines()[-1].startswith("drivetrain: unknown engine 'none'")


@pytest.mark.parametrize(
    ("setting", "says"),
    [("launcher.kind=lokal", "'lokal', allowed: inline, local"), ("resources.processes=2", "1")],
)
def test_a_launcher_that_is_not_here_is_refused(
    setting: str, says: str, drive: Drive, ran: Any
) -> None:
    status, _, err = drive("run", ran.file, "--dry-run", f"--set={setting}")
    assert status == 2
    assert says in err


@pytest.mark.parametrize("name", ["nodes", "processes"])
def test_more_than_one_process_is_never_passed_over(name: str, drive: Drive, ran: Any) -> None:
    status, _, err = drive("run", ran.file, f"--set=resources.{name}=2")
    assert status == 2
    assert f"[resources] {name}: found 2, allowed: 1 with Single" in err


@pytest.mark.parametrize(
    ("setting", "allowed"),
    [
        ("resources.gpus=1", "device= names the one to use"),
        ("resources.memory=8Gi", "'' with the launcher 'inline'"),
        ("resources.cpus=2", "0 with the launcher 'inline'"),
    ],
)
def test_a_resource_that_nobody_would_give_is_refused(
    setting: str, allowed: str, drive: Drive, ran: Any
) -> None:
    status, _, err = drive("run", ran.file, f"--set={setting}")
    assert status == 2
    assert f"[{setting.split('.')[0]}] {setting.split('.')[1].split('=')[0]}: found" in err
    assert allowed in err


def test_the_stages_that_the_command_line_names_are_those_of_the_pipeline() -> None:
    from drivetrain import cli, pipeline

    assert cli.STAGES == pipeline.STAGES


def test_a_training_that_breaks_is_an_error_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, drive: Drive, ran: Any
) -> None:
    from drivetrain import cli

    def broken(options: Any) -> int:
        raise ArithmeticError("the loss is nan at step 7")

    monkeypatch.setattr(cli, "_run", broken)
    assert drive("run", ran.file) == (2, "", "drivetrain: the loss is nan at step 7\n")
