"""Runs that end too early: killed at any moment, two at once, a full disk, no permission."""

import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drivetrain.core.site import Site
from drivetrain.pipeline import run
from drivetrain.registry.registry import Registry

root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting and changing users take root")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def started(file: Path, folder: Path) -> "subprocess.Popen[str]":
    """A process that runs the system of a file in a folder and says on a line each what it does."""
    settings = {"store": folder / "store", "work": folder / "work", "device": "cpu"}
    settings |= {"engine.memory": "200MB", "engine.threads": 1}
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "drivetrain.cli", "run", str(file), "--json"),
            *(f"--set={key}={value}" for key, value in settings.items()),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def kill_in(stage: str, after: float, child: "subprocess.Popen[str]") -> None:
    """SIGKILL, so many seconds after the stage began."""
    assert child.stdout is not None
    for line in child.stdout:
        said = json.loads(line)
        if said.get("stage") == stage and said.get("text") == "begins":
            break
    else:
        raise AssertionError(f"{stage} did not begin: {child.stderr and child.stderr.read()}")
    time.sleep(after)
    child.kill()
    child.communicate()
    assert child.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_runs_killed_in_every_stage_are_finished_by_the_same_command(
    ran: Any, tmp_path: Path
) -> None:
    moments = random.Random(11)
    # how long the stage may have gone on: in training torch is imported first
    for stage, most in (
        ("events", 0.1),
        ("features", 0.1),
        ("train", 4.0),
        ("train", 4.0),
        ("compress", 1.0),
        ("register", 0.02),
    ):
        kill_in(stage, moments.uniform(0, most), started(ran.file, tmp_path))
        bundles = Registry(tmp_path / "store").bundles()
        assert bundles in ((), (ran.bundle.digest,)), "a bundle is whole or absent"
    child = started(ran.file, tmp_path)
    out, err = child.communicate()
    assert child.returncode == 0, err
    assert json.loads(out.splitlines()[-1])["bundle"] == ran.bundle.digest
    store = Registry(tmp_path / "store")
    assert store.bundles() == (ran.bundle.digest,)
    assert contents(store.path(ran.bundle.digest)) == contents(ran.bundle.path)


def test_two_runs_of_one_training_exclude_each_other(ran: Any, tmp_path: Path) -> None:
    site = ran.copy(tmp_path)
    (training,) = Path(site.work, "train").iterdir()
    with (training / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another run is training this very system"):
            run(ran.system, site)
    again = run(replace(ran.system, compress=()), site)
    assert again is not None


# -- disks -----------------------------------------------------------------------------------------


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[None]:
    """A file system in memory, of so few bytes."""
    path.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"this machine lets nobody mount: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


def fill(folder: Path) -> Path:
    """Take all the room that a disk has left."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return filler
    raise AssertionError("the disk was not small")


@root
def test_a_full_disk_leaves_the_store_as_it_was(ran: Any, tmp_path: Path) -> None:
    copied = ran.copy(tmp_path)
    disk = tmp_path / "disk"
    with small_disk(disk, "1m"):
        site = replace(copied, store=str(disk / "store"))
        first = run(replace(ran.system, compress=()), site)
        assert first is not None
        Registry(site.store).promote(first.digest, "made")
        before = contents(disk / "store")
        filler = fill(disk)
        with pytest.raises(OSError, match="No space left"):
            run(replace(ran.system, compress=(), probes=()), site)
        filler.unlink()
        assert contents(disk / "store") == before
        assert Registry(site.store).open("made").digest == first.digest
        after = run(replace(ran.system, compress=(), probes=()), site)
        assert after is not None
        assert after.digest != first.digest


@root
@pytest.mark.parametrize("kept", ["nothing", "events", "features"])
def test_a_full_disk_for_the_work_leaves_the_store_as_it_was(
    kept: str, ran: Any, site: Site, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    disk = tmp_path / "disk"
    with small_disk(disk, "2m"):
        full = replace(site, work=str(disk / "work"))
        if kept != "nothing":
            run(ran.system, full, until=kept)  # pyright: ignore[reportArgumentType]
        filler = fill(disk)
        with pytest.raises((OSError, ValueError), match=r"[Nn]o space left"):
            run(ran.system, full)
        assert not store.exists()
        filler.unlink()
        run(ran.system, full, until="features")


@root
def test_no_permission_to_write_leaves_the_store_as_it_was(ran: Any) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        site: Site = ran.copy(folder)
        for path in [folder / "work", *(folder / "work").rglob("*")]:
            os.chown(path, 65534, 65534)
        events = folder / "events.parquet"
        events.write_bytes((ran.folder / "events.parquet").read_bytes())
        table = type(ran.system.events.source)(events, time="at").split(ran.system.events.by)
        before = contents(folder / "store")
        os.seteuid(65534)
        try:
            with pytest.raises(OSError, match=r"[Pp]ermission"):
                run(replace(ran.system, events=table, compress=()), site)
        finally:
            os.seteuid(0)
        assert contents(folder / "store") == before
