"""Checkpoints in parts: there is one only when all parts are there, and any cut reads any other."""

import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drivetrain.core.claim import Claim
from drivetrain.core.metric import Emitted, Note
from drivetrain.train.checkpoints import sharded as sharded_checkpoint
from drivetrain.train.checkpoints.checkpoint import Checkpoint
from drivetrain.train.checkpoints.sharded import ShardedCheckpoints
from drivetrain.train.checkpoints.stored import WHERE, stored
from drivetrain.train.together.group import Group

TABLE = torch.arange(28.0).view(7, 4)


class Threads:
    """Processes that are threads of this one."""

    def __init__(self, rank: int, size: int, meet: threading.Barrier, board: list[Any]) -> None:
        self.rank, self.size, self.meet, self.board = rank, size, meet, board

    def gather(self, values: torch.Tensor) -> list[torch.Tensor]:
        self.board[self.rank] = values.clone()
        self.meet.wait(20)
        found = list(self.board)
        self.meet.wait(20)
        return found

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return torch.stack(self.gather(values)).sum(0)


def together(size: int, task: Callable[[Group], Any]) -> list[Any]:
    """What ``task`` gives in each of so many processes, or the error that it ended with."""
    meet, board = threading.Barrier(size), [None] * size
    results: list[Any] = [None] * size

    def run(rank: int) -> None:
        try:
            results[rank] = task(Threads(rank, size, meet, board))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def parts(table: torch.Tensor, cuts: list[int]) -> list[Checkpoint]:
    """A table cut into rows at ``cuts``, as the processes would write it; the first has a count."""
    edges = [0, *cuts, len(table)]
    found: list[Checkpoint] = []
    for rank, (begin, end) in enumerate(pairwise(edges)):
        tensors, where = {}, {}
        if end > begin:
            tensors["table"] = table[begin:end]
            where["table"] = {"shape": list(table.shape), "offsets": [begin, 0]}
        if rank == 0:
            tensors["count"] = torch.tensor(3)
            where["count"] = {"shape": [], "offsets": []}
        found.append(Checkpoint({"step": 1, WHERE: where}, tensors))
    return found


def save(directory: Path, step: int, table: torch.Tensor = TABLE, **options: Any) -> list[Any]:
    """Save a table from three processes."""
    cut = parts(table, [3, 5])

    def task(group: Group) -> Path:
        storage = ShardedCheckpoints(directory, "made", group=group)
        return storage.save(cut[group.rank], step, **options)

    return together(3, task)


def read(directory: Path, size: int = 2, fingerprint: str = "made") -> tuple[Any, list[Emitted]]:
    """The whole table that each of ``size`` processes finds, which are equal; and what is said."""
    said: list[Emitted] = []

    def task(group: Group) -> Any:
        emit = said.append if group.rank == 0 else [].append
        found = ShardedCheckpoints(directory, fingerprint, emit, group).latest()
        if found is None:
            return None
        checkpoint, final = found
        assert int(checkpoint.tensors["count"].read(None)) == 3
        return checkpoint.tensors["table"].read(None), final

    first, *others = together(size, task)
    for other in others:
        assert (first is None) == (other is None)
        assert first is None or torch.equal(first[0], other[0])
    return first, said


def value(directory: Path) -> float:
    """What was added to the table that is found."""
    found, _ = read(directory)
    assert torch.equal(found[0] - found[0][0, 0], TABLE)
    return float(found[0][0, 0])


@given(
    cuts=st.lists(st.integers(0, 7), max_size=4).map(sorted),
    box=st.tuples(st.integers(0, 7), st.integers(0, 7), st.integers(0, 4), st.integers(0, 4)),
)
def test_any_box_is_read_from_any_cut(
    cuts: list[int], box: tuple[int, ...], tmp_path_factory: pytest.TempPathFactory
) -> None:
    top, bottom, left, right = *sorted(box[:2]), *sorted(box[2:])
    directory = tmp_path_factory.mktemp("cut")
    written = parts(TABLE, cuts)
    results = together(
        len(written),
        lambda g: ShardedCheckpoints(directory, "made", group=g).save(written[g.rank], 1),
    )
    assert len(set(results)) == 1
    table = stored(sorted(directory.glob("part-*")))["table"]
    found = table.box((top, left), (bottom - top, right - left))
    assert torch.equal(found, TABLE[top:bottom, left:right])


def test_the_two_newest_stay_and_no_part_of_an_older_one(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step, TABLE + step)
    assert sorted(path.name.split("-")[1] for path in tmp_path.glob("step-*")) == [
        f"{step:012d}" for step in (2, 3)
    ]
    assert len(list(tmp_path.glob("part-*"))) == 6
    assert value(tmp_path) == 3


def test_the_same_step_again_replaces_it_and_shares_its_parts(tmp_path: Path) -> None:
    save(tmp_path, 1)
    again = TABLE.clone()
    again[6] += 1  # one part of three is another
    save(tmp_path, 1, again)
    found, _ = read(tmp_path)
    assert torch.equal(found[0], again)
    assert len(list(tmp_path.glob("part-*"))) == 3


def test_a_final_one_stays_alone(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2, TABLE + 2, final=True)
    found, _ = read(tmp_path, size=1)
    assert found[1]
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("what", ["torn part", "missing part", "torn index"])
def test_a_damaged_one_is_passed_over_by_all_for_the_one_before(tmp_path: Path, what: str) -> None:
    save(tmp_path, 1, TABLE + 1)
    save(tmp_path, 2, TABLE + 2)
    pattern = "step-*2-*" if what == "torn index" else "part-step-*2-00002-*"
    (path,) = tmp_path.glob(pattern)
    if what == "missing part":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    for size in (1, 2, 3):
        found, said = read(tmp_path, size)
        assert float(found[0][0, 0]) == 1
        (note,) = said
        assert isinstance(note, Note)
        assert note.warning
        assert "is damaged and was not used" in note.text


def test_parts_without_an_index_are_no_checkpoint_and_are_removed(tmp_path: Path) -> None:
    save(tmp_path, 1, TABLE + 1)
    save(tmp_path, 2, TABLE + 2)
    (index,) = tmp_path.glob("step-*2-*.json")
    index.unlink()  # as if the leader was killed before it wrote this one
    (tmp_path / ".part-step-3.safetensors.abc").write_bytes(b"begun")
    assert value(tmp_path) == 1
    assert len(list(tmp_path.iterdir())) == 4


def test_another_trainings_is_not_used(tmp_path: Path) -> None:
    save(tmp_path, 1)
    found, said = read(tmp_path, fingerprint="other")
    assert found is None
    assert "another training's" in str(said)


@pytest.mark.parametrize(
    "fails", ["part-step-000000000002-00001", "step-000000000002", "part-step-000000000001-00001"]
)
def test_what_one_cannot_write_all_hear_and_the_one_before_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    save(tmp_path, 1, TABLE + 1)
    write = sharded_checkpoint.write

    def full(path: Path, data: bytes) -> None:
        if path.name.startswith(fails):
            raise OSError(28, "No space left on device")
        write(path, data)

    monkeypatch.setattr(sharded_checkpoint, "write", full)
    step = 1 if "1-0" in fails else 2  # the same again, from after its validation
    errors = save(tmp_path, step, TABLE + step)
    assert all(isinstance(error, OSError) for error in errors)
    assert sum("No space left" in str(error) for error in errors) == 1
    monkeypatch.undo()
    assert value(tmp_path) == 1
    assert len(list(tmp_path.iterdir())) == 4


class KilledError(BaseException):
    """The process ended here."""


@pytest.mark.parametrize("operations", range(6))
def test_killed_after_any_operation_on_disk_one_of_the_two_newest_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operations: int
) -> None:
    storage = ShardedCheckpoints(tmp_path, "made")
    for step in (1, 2):
        storage.save(parts(TABLE + step, [])[0], step)
    write, unlink, left = sharded_checkpoint.write, Path.unlink, [operations]

    def counted(operation: Callable[..., None]) -> Callable[..., None]:
        def instead(*args: Any, **options: Any) -> None:
            if not left[0]:
                raise KilledError
            left[0] -= 1
            operation(*args, **options)

        return instead

    with monkeypatch.context() as patch:
        patch.setattr(sharded_checkpoint, "write", counted(write))
        patch.setattr(Path, "unlink", counted(unlink))
        try:
            storage.save(parts(TABLE + 3, [])[0], 3)
        except KilledError:
            assert operations < 4  # a part, its index, an old index, its part
        else:
            assert operations >= 4
    assert value(tmp_path) == (3 if operations >= 2 else 2)
    storage.save(parts(TABLE + 4, [])[0], 4)
    assert value(tmp_path) == 4
    assert len(list(tmp_path.iterdir())) == 4


def test_a_later_generation_is_not_written_over(tmp_path: Path) -> None:
    old, new = Claim(tmp_path, "job", 1), Claim(tmp_path, "job", 2)
    old.take()
    new.take()
    storage = ShardedCheckpoints(tmp_path, "made", claim=old)
    with pytest.raises(ConnectionError, match="generation 2"):
        storage.save(parts(TABLE, [])[0], 1)
    assert not list(tmp_path.glob("step-*"))
