"""A lake's table on a full disk and on S3: clear errors, nothing half, the next append goes on."""

import os
import subprocess
import threading

import pyarrow as pa
import pytest

import drivetrain as dt
from drivetrain.core.schema import Field, Schema
from drivetrain.events.delta import Delta
from drivetrain.events.lake.lake import Lake
from drivetrain.events.prepared import prepare

IMPATIENT = {"max_retries": "1", "retry_timeout": "1s"}


def some(start=0, count=3):
    return pa.table({"n": list(range(start, start + count))})


def numbers(path):
    leaf = Delta(path)
    chunks = [chunk["n"].to_pylist() for chunk in leaf.chunks(leaf.schema.select(("n",)), 1000)]
    return sorted(n for chunk in chunks for n in chunk)


# -- a disk ----------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 512 KB."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "drivetrain-test", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("NOT TESTED: a full disk needs root and a mount of tmpfs")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


@pytest.mark.parametrize("left", [0, 4096, 8192, 16384])
def test_a_disk_that_is_full_in_a_commit_leaves_the_table_as_it_was(small_disk, left):
    path = small_disk / "orders"
    lake = Lake.open(path)
    lake.append(some(0), "w", {"t": 3})
    state = os.statvfs(small_disk)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(state.f_bavail * state.f_frsize - left))
    done = 3
    with pytest.raises(OSError, match=r"No space left on device|os error 28"):  # noqa: PT012
        for _ in range(20):
            lake.append(some(done), "w", {"t": done + 3})
            done += 3
    assert numbers(path) == list(range(done))
    assert Lake.open(path).positions("w") == {"t": done}
    ballast.unlink()
    lake.append(some(done), "w", {"t": done + 3})
    assert numbers(path) == list(range(done + 3))


# -- S3 --------------------------------------------------------------------------------------------


URL = "s3://bucket/orders"


def test_a_table_on_s3_is_appended_to_read_and_prepared(bucket, tmp_path):
    lake = Lake.open(URL, partition_by=("k",))
    for number in range(3):
        rows = some(3 * number).append_column("k", pa.array(["a", "b c", None]))
        lake.append(rows, "w", {"t": number + 1})
    assert Lake.open(URL).positions("w") == {"t": 3}
    assert numbers(URL) == list(range(9))
    assert lake.compact().removed == 9
    assert numbers(URL) == list(range(9))
    assert len(lake.vacuum(0, guard=False)) == 9
    leaf = Delta(URL)
    assert leaf.stamps()[0][0] == "orders"
    ready = prepare(leaf.split(dt.HashSplit(columns=("n",))), ("n", "k"), tmp_path / "ready")
    assert ready.sources == ({"table": "orders", "version": lake.version},)
    assert sum(ready.rows(split) for split in ("train", "validate", "test")) == 9


def test_two_writers_at_once_on_s3_lose_nothing_and_the_put_is_conditional(bucket):
    Lake.open(URL, Schema((Field("n", "int64"),)))
    failures = []

    def write(number):
        try:
            lake = Lake.open(URL)
            for step in range(6):
                lake.append(some(100 * number + step, 1), f"w{number}", {"t": step + 1})
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert numbers(URL) == [100 * number + step for number in range(2) for step in range(6)]


def test_the_second_writer_by_mistake_is_refused_on_s3_too(bucket):
    first, second = Lake.open(URL, Schema((Field("n", "int64"),))), Lake.open(URL)
    for lake in (first, second):
        assert lake.positions("w") == {}
    first.append(some(0), "w", {"t": 3})
    with pytest.raises(ValueError, match=r"another process that appends as 'w'.*{'t': 3}"):
        second.append(some(0), "w", {"t": 3})
    assert numbers(URL) == [0, 1, 2]


def test_a_store_that_refuses_is_a_clear_error_and_the_next_append_goes_on(bucket):
    lake = Lake.open(URL, storage=IMPATIENT)
    lake.append(some(0), "w", {"t": 3})
    with bucket.being("refusing"):
        with pytest.raises(OSError, match=r"s3://bucket/orders: .*403") as raised:
            lake.append(some(3), "w", {"t": 6})
        with pytest.raises(OSError, match="403"):
            Delta(URL).count()
        with pytest.raises(OSError, match="403"):
            lake.positions("w")
    assert "made-secret" not in str(raised.value)
    assert "\n" not in str(raised.value)
    assert numbers(URL) == [0, 1, 2]
    assert lake.append(some(3), "w", {"t": 6}) == 2
    assert numbers(URL) == list(range(6))


def test_a_commit_of_which_no_answer_came_counts_once(bucket):
    lake = Lake.open(URL, storage=IMPATIENT)
    lake.append(some(0), "w", {"t": 3})
    with bucket.being("losing"):
        assert lake.append(some(3), "w", {"t": 6}) == 2
    assert lake.append(some(6), "w", {"t": 9}) == 3
    assert numbers(URL) == list(range(9))


def test_a_store_that_is_gone_is_a_clear_error(bucket):
    lake = Lake.open(URL, storage=IMPATIENT)
    lake.append(some(0), "w", {"t": 3})
    bucket.stop()
    with pytest.raises(OSError, match=r"s3://bucket/orders: .*error sending request"):
        lake.append(some(3), "w", {"t": 6})
