"""Trainings that can't go on: what they name, and that the last good checkpoint stands."""

import contextlib
import os
import re
import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from drivetrain.core.seams import Run
from drivetrain.models import MLP
from drivetrain.models.bind import build
from drivetrain.train import BinaryCrossEntropy, Sharded, Single


class SmallDisk:
    """A directory that can be filled: a file system in memory for root, else a limit of files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "disk"
        self.folder.mkdir()
        mount = ("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(self.folder))
        done = subprocess.run(mount, capture_output=True, check=False) if not os.geteuid() else None
        self.mounted = done is not None and not done.returncode
        self._limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(self) -> None:
        """Leave no room."""
        if not self.mounted:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, self._limits[1]))
            return
        with (
            contextlib.suppress(OSError),
            (self.folder / "filler").open("wb", buffering=0) as file,
        ):
            while file.write(bytes(4096)):
                pass

    def free(self) -> None:
        """Give the room back."""
        resource.setrlimit(resource.RLIMIT_FSIZE, self._limits)
        (self.folder / "filler").unlink(missing_ok=True)

    def close(self) -> None:
        self.free()
        if self.mounted:
            subprocess.run(["umount", str(self.folder)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    small = SmallDisk(tmp_path)
    yield small
    small.close()


@pytest.mark.parametrize("kind", [Single, Sharded])
def test_a_full_disk_ends_a_training_that_goes_on_when_there_is_room(
    made: Any, tmp_path: Path, disk: SmallDisk, kind: Any
) -> None:
    strategy = kind(
        loss=BinaryCrossEntropy("y"), epochs=2, batch_size=64, checkpoint_seconds=None,
        checkpoint_steps=4, lr=0.02,
    )  # fmt: skip

    def fit(examples: Any, directory: Path) -> dict[str, torch.Tensor]:
        model = build(MLP(hidden=(16,), dim=4, dropout=0.2), examples.features, seed=1)
        return strategy.fit(model, examples, Run(directory=directory)).state_dict()

    whole = fit(made(1003), tmp_path / "whole")
    run = disk.folder / "run"

    def fill() -> None:
        end = time.monotonic() + 30
        while not list(run.glob("step-000000000008-*")):  # it is written behind the training's back
            assert time.monotonic() < end
            time.sleep(0.001)
        disk.fill()

    with pytest.raises(OSError, match=r"(No space left on device|File too large)") as caught:
        fit(at_batch(made(1003), 9, fill), run)
    # Checkpoints are written behind its back: it is the one of step 12 that finds no room.
    assert re.search(r"step-000000000012-", str(caught.value.filename))
    steps = sorted(int(path.name.split("-")[1]) for path in run.glob("step-*"))
    assert steps == [4, 8]
    assert not list(run.glob(".*"))
    disk.free()
    left = fit(made(1003), run)
    assert all(torch.equal(whole[name], tensor) for name, tensor in left.items())


def at_batch(examples: Any, number: int, act: Callable[[], None]) -> Any:
    """Examples of which something happens before a batch of the first epoch."""
    whole, left = examples.batches, [number]

    def some(split: Any, *args: Any, **options: Any) -> Iterator[Any]:
        for batch in whole(split, *args, **options):
            if split == "train":
                left[0] -= 1
                if left[0] == 0:
                    act()
            yield batch

    examples.batches = some
    return examples


@pytest.mark.slow
def test_a_loss_that_breaks_in_one_process_ends_all_before_it_is_kept(
    train: Any, tmp_path: Path
) -> None:
    cut = {"cut": {"1": 7, "how": "poisoned"}}
    strategy = {"checkpoint_steps": 5, "checkpoint_seconds": None}
    train(2, "cut", status=2, restarts=3, strategy=strategy, **cut)
    said = {(tmp_path / "cut" / f"broken-{rank}").read_text() for rank in (0, 1)}
    assert len(said) == 1
    assert re.search(r"is (nan|inf) at step 7, epoch 0, batch 7, with learning rate", said.pop())
    (kept,) = (tmp_path / "cut" / "run").glob("step-*")
    assert kept.name.startswith("step-000000000005-")
