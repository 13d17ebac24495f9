"""The cache of examples: one writer, whatever kills it, and what is damaged or of others."""

import os
import pwd
import resource
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from numbered import TARGETS, Numbered, Twice, made, numbers

from drivetrain.core.batch import Batch
from drivetrain.core.schema import Field, Schema
from drivetrain.core.seams import Shard, Split
from drivetrain.features.examples import Examples


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    # A limit on the size of a file stops a write as a full disk does, for this process alone.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, hard))
    try:
        with pytest.raises(OSError, match="the examples of split 'train' can't be kept"):
            made(500, tmp_path).batches("train", size=8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in tmp_path.iterdir()] == [".train.lock"]
    assert numbers(made(500, tmp_path).batches("train", size=8)) == list(range(500))


def test_no_permission_is_said() -> None:
    # Not in pytest's own directory, which root keeps closed to the user that it becomes here.
    with tempfile.TemporaryDirectory() as parent:
        closed = Path(parent) / "closed"
        closed.mkdir()
        Path(parent).chmod(0o755)
        closed.chmod(0o555)
        user = os.geteuid()
        if user == 0:  # root may write anywhere, and so becomes nobody for a moment
            os.seteuid(pwd.getpwnam("nobody").pw_uid)
        try:
            with pytest.raises(PermissionError, match="can't be kept"):
                made(5, closed / "a").batches("train", size=8)
        finally:
            os.seteuid(user)
        assert not any(closed.iterdir())


def test_a_place_that_is_no_directory_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="can't be kept"):
        made(5, tmp_path / "file" / "a").batches("train", size=8)


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / ".train.killed").mkdir()
    (tmp_path / ".train.killed" / "dense").write_bytes(b"half")
    (tmp_path / ".trainer").mkdir()
    numbers(made(5, tmp_path).batches("train", size=8))
    assert {p.name for p in tmp_path.iterdir()} == {".train.lock", "train", ".trainer"}


def test_a_damaged_cache_is_told(tmp_path: Path) -> None:
    numbers(made(50, tmp_path).batches("train", size=8))
    file = max((tmp_path / "train").iterdir(), key=lambda path: path.stat().st_size)
    with file.open("r+b") as opened:
        opened.truncate(3)
    with pytest.raises(ValueError, match=r"found 3 bytes.*delete"):
        made(50, tmp_path).batches("train", size=8)


def test_a_cache_of_other_tensors_is_refused(tmp_path: Path) -> None:
    numbers(made(5, tmp_path).batches("train", size=8))
    other = Examples(Numbered(5), Twice(), Schema((Field("late", "int64"),)), tmp_path)
    with pytest.raises(ValueError, match="holds other tensors"):
        other.batches("train", size=8)


def test_several_threads_make_a_split_once(tmp_path: Path) -> None:
    source = Numbered(200)
    found: list[list[int]] = []

    def read() -> None:
        examples = Examples(source, Twice(), TARGETS, tmp_path)
        found.append(numbers(examples.batches("train", size=8)))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [list(range(200))] * 4
    assert sum(source.read) == 200


def test_a_sources_error_rises_and_leaves_nothing(tmp_path: Path) -> None:
    class Torn(Numbered):
        def batches(self, split: Split, shard: Shard = Shard()) -> Iterator[Batch]:
            yield from super().batches(split, shard)
            raise ValueError("row group 3 is torn")

    with pytest.raises(ValueError, match="torn"):
        Examples(Torn(20), Twice(), TARGETS, tmp_path).batches("train", size=8)
    assert [p.name for p in tmp_path.iterdir()] == [".train.lock"]
