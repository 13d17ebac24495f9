from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.core.metric import Emitted, Note
from drivetrain.train.checkpoints.checkpoint import KEPT, Checkpoint, Checkpoints


def some(step: int) -> Checkpoint:
    return Checkpoint({"at": step, "best": None}, {"w": torch.full((3,), float(step))})


def fill(directory: Path, steps: int = 3) -> list[Path]:
    store = Checkpoints(directory, "one")
    return [store.save(some(step), step) for step in range(1, steps + 1)]


def at(directory: Path, heard: list[Emitted] | None = None) -> int | None:
    emit = (lambda item: None) if heard is None else heard.append
    found = Checkpoints(directory, "one", emit).latest()
    if found is None:
        return None
    assert found[0].tensors["w"].tolist() == [found[0].state["at"]] * 3
    return int(found[0].state["at"])


def test_the_newest_is_read_and_the_last_few_are_kept(tmp_path: Path) -> None:
    fill(tmp_path, 5)
    assert at(tmp_path) == 5
    assert len(list(tmp_path.iterdir())) == KEPT == 2


def test_a_step_that_is_saved_again_replaces_itself(tmp_path: Path) -> None:
    fill(tmp_path)
    again = Checkpoint({"at": 3, "best": 1.0}, some(3).tensors)
    Checkpoints(tmp_path, "one").save(again, 3)
    assert len(list(tmp_path.iterdir())) == KEPT
    found = Checkpoints(tmp_path, "one").latest()
    assert found is not None
    assert found[0].state["best"] == 1.0


def test_what_another_training_left_at_later_steps_pushes_nothing_out(tmp_path: Path) -> None:
    other = Checkpoints(tmp_path, "another")
    other.save(some(90), 90)
    other.save(some(91), 91)
    other.save(some(91), 91, final=True)
    other.save(some(92), 92)
    other.save(some(93), 93)
    assert [path.exists() for path in fill(tmp_path, 3)] == [False, True, True]
    assert at(tmp_path) == 3
    Checkpoints(tmp_path, "one").save(some(4), 4, final=True)
    assert [path.name[:5] for path in tmp_path.iterdir()] == ["final"]


def test_nothing_there_is_nothing(tmp_path: Path) -> None:
    assert at(tmp_path / "absent") is None


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(derandomize=True, deadline=None, max_examples=40)
def test_one_flipped_bit_anywhere_falls_back_to_the_one_before(
    tmp_path_factory: pytest.TempPathFactory, place: float, bit: int
) -> None:
    directory = tmp_path_factory.mktemp("flip")
    newest = fill(directory)[-1]
    data = bytearray(newest.read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    newest.write_bytes(data)
    heard: list[Emitted] = []
    assert at(directory, heard) == 2
    assert [item.warning for item in heard if isinstance(item, Note)] == [True]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_torn_one_falls_back_to_the_one_before(share: float, tmp_path: Path) -> None:
    newest = fill(tmp_path)[-1]
    data = newest.read_bytes()
    newest.write_bytes(data[: int(share * len(data))])
    assert at(tmp_path) == 2


def test_if_all_are_damaged_there_is_none(tmp_path: Path) -> None:
    for path in fill(tmp_path)[1:]:
        path.write_bytes(b"")
    assert at(tmp_path) is None


def test_a_final_one_stands_alone_and_wins(tmp_path: Path) -> None:
    fill(tmp_path)
    store = Checkpoints(tmp_path, "one")
    store.save(some(9), 9, final=True)
    assert len(list(tmp_path.iterdir())) == 1
    found = store.latest()
    assert found is not None
    assert found[1]
    assert found[0].state["at"] == 9


def test_another_trainings_is_not_used(tmp_path: Path) -> None:
    fill(tmp_path)
    heard: list[Emitted] = []
    assert Checkpoints(tmp_path, "two", heard.append).latest() is None
    assert all("another training's" in item.text for item in heard if isinstance(item, Note))


def test_what_a_killed_write_left_is_removed(tmp_path: Path) -> None:
    newest = fill(tmp_path)[-1]
    left = tmp_path / f".{newest.name}.abc123"
    left.write_bytes(b"half")
    assert at(tmp_path) == 3
    assert not left.exists()


def test_a_full_disk_leaves_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        Checkpoints(tmp_path, "one").save(some(4), 4)
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert at(tmp_path) == 3
