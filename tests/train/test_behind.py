"""Checkpoints behind the training's back: what was copied is what is written, errors are told."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from drivetrain.train.checkpoints.behind import Behind
from drivetrain.train.checkpoints.checkpoint import Checkpoint, Checkpoints


class Slow(Checkpoints):
    """Writes when it is told to."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, "made")
        self.go = threading.Event()
        self.fails = False

    def save(self, *args: Any, **options: Any) -> Path:
        assert self.go.wait(30)
        if self.fails:
            raise OSError(28, "No space left on device")
        return super().save(*args, **options)


def value(behind: Behind) -> float:
    found = behind.latest()
    assert found is not None
    return float(found[0].tensors["weight"])


def test_a_save_does_not_wait_and_keeps_what_was_then(tmp_path: Path) -> None:
    slow = Slow(tmp_path)
    behind = Behind(slow)
    weight = torch.tensor(1.0)
    behind.save(Checkpoint({}, {"weight": weight}), 1)
    weight += 1  # the training goes on
    assert not list(tmp_path.iterdir())
    slow.go.set()
    assert value(behind) == 1.0


def test_a_final_one_is_there_when_its_save_returns(tmp_path: Path) -> None:
    slow = Slow(tmp_path)
    slow.go.set()
    behind = Behind(slow)
    behind.save(Checkpoint({}, {"weight": torch.tensor(3.0)}), 1, final=True)
    assert [path.name[:6] for path in tmp_path.iterdir()] == ["final-"]


def test_what_could_not_be_written_is_said_by_the_next_call_once(tmp_path: Path) -> None:
    slow = Slow(tmp_path)
    slow.go.set()
    behind = Behind(slow)
    behind.save(Checkpoint({}, {"weight": torch.tensor(1.0)}), 1)
    behind.wait()
    slow.fails = True
    behind.save(Checkpoint({}, {"weight": torch.tensor(2.0)}), 2)
    with pytest.raises(OSError, match="No space left"):
        behind.save(Checkpoint({}, {"weight": torch.tensor(3.0)}), 3)
    assert value(behind) == 1.0


def test_a_final_one_that_cannot_be_written_is_said_at_once(tmp_path: Path) -> None:
    slow = Slow(tmp_path)
    slow.go.set()
    slow.fails = True
    with pytest.raises(OSError, match="No space left"):
        Behind(slow).save(Checkpoint({}, {"weight": torch.tensor(1.0)}), 1, final=True)
    assert not list(tmp_path.iterdir())


def test_a_process_that_does_not_write_copies_nothing(tmp_path: Path) -> None:
    behind = Behind(Checkpoints(tmp_path, "made", writes=False))
    behind.save(Checkpoint({}, {"weight": torch.tensor(1.0)}), 1, final=True)
    assert behind.latest() is None
