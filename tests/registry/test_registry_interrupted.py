"""The store when processes race, die, run out of space or lack permission."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from drivetrain.core.metric import Metric
from drivetrain.registry.registry import Registry

Make = Callable[..., tuple]
NOBODY = 65534


def child(code: str, *arguments: object, **options: object) -> subprocess.Popen[bytes]:
    """A process of Python that runs ``code`` with the store's directory as its first argument."""
    start = "import sys; from drivetrain.registry.registry import Registry\n"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", start + code, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, **options)  # type: ignore[call-overload]


def contents(root: Path) -> dict[str, bytes]:
    """Every file of a store but its locks."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.name not in (".lock", ".writing")
    }


@pytest.mark.slow
def test_concurrent_promotes_and_records_lose_nothing(tmp_path: Path, parts: Make):
    store = Registry(tmp_path)
    digests = [store.write(*parts(float(i))).digest for i in range(4)]
    code = """
from drivetrain.core.metric import Metric
store, mine = Registry(sys.argv[1]), sys.argv[2:]
for i in range(15):
    store.promote(mine[i % 2], "prod")
    store.record(mine[0], [Metric(name="a", value=float(i)), Metric(name="b", value=float(i))])
    assert store.open("prod").digest
"""
    workers = [child(code, tmp_path, *digests[:2]), child(code, tmp_path, *digests[2:], digests[0])]
    workers.append(child(code, tmp_path, digests[0], digests[3]))
    assert [worker.wait(120) for worker in workers] == [0, 0, 0]
    steps = [change.bundle for change in store.history("prod")]
    assert all(a != b for a, b in pairwise(steps))
    assert len(steps) >= 15  # each worker alternates, so each of its promotes may be a step
    recorded = [m.value for d in (digests[0], digests[2]) for m in store.measurements(d)]
    assert len(recorded) == 3 * 15 * 2
    assert not [p for p in tmp_path.rglob(".*") if p.parent != tmp_path]


@pytest.mark.slow
def test_two_processes_that_write_the_same_bundle_agree(tmp_path: Path, parts: Make):
    source = Registry(tmp_path / "source").write(*parts())
    code = "print(Registry(sys.argv[1]).add(sys.argv[2]).digest)"
    workers = [
        child(code, tmp_path / "store", source.path, stdout=subprocess.PIPE) for _ in range(3)
    ]
    digests = {worker.communicate(timeout=120)[0].decode().strip() for worker in workers}
    assert digests == {source.digest}
    assert Registry(tmp_path / "store").open(source.digest).digest == source.digest


KILLED = """
import drivetrain.core.durable as durable, os, signal
def stop(path):  # in the middle: the files are written, the name is not given
    print("ready", flush=True)
    signal.pause()
durable.sync = stop
store = Registry(sys.argv[1])
"""


@pytest.mark.slow
def test_kill_9_while_writing_leaves_no_half_bundle_and_the_leftover_is_swept(
    tmp_path: Path, parts: Make
):
    source = Registry(tmp_path / "source").write(*parts())
    store = Registry(tmp_path / "store")
    other = store.write(*parts(9.0)).digest
    before = contents(store.root)
    worker = child(
        KILLED + "store.add(sys.argv[2])", store.root, source.path, stdout=subprocess.PIPE
    )
    assert worker.stdout is not None
    with worker.stdout:
        assert worker.stdout.readline() == b"ready\n"
        assert store.sweep() == 0  # it is alive: nothing of its is touched
        assert len(list((store.root / "bundles").glob(".*"))) == 1
        worker.kill()
        assert worker.wait(30) == -signal.SIGKILL
    assert store.bundles() == (other,)
    with pytest.raises(ValueError, match="unknown bundle"):
        store.open(source.digest)
    store.promote(other, "prod")  # any writer sweeps
    assert not list((store.root / "bundles").glob(".*"))
    assert {k: v for k, v in contents(store.root).items() if k.startswith("bundles")} == before
    assert store.add(source.path).digest == source.digest


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_kill_9_at_any_moment_leaves_the_alias_whole(tmp_path: Path, parts: Make, seed: int):
    store = Registry(tmp_path)
    digests = [store.write(*parts(float(i))).digest for i in range(2)]
    store.promote(digests[0], "prod")
    code = """
store = Registry(sys.argv[1])
print("ready", flush=True)
for i in range(10**6):
    store.promote(sys.argv[2 + i % 2], "prod")
"""
    worker = child(code, tmp_path, *digests, stdout=subprocess.PIPE)
    assert worker.stdout is not None
    with worker.stdout:
        worker.stdout.readline()
        time.sleep(0.02 + 0.007 * seed)
        worker.kill()
        worker.wait(30)
    assert store.open("prod").digest in digests
    steps = [change.bundle for change in store.history("prod")]
    assert all(a != b for a, b in pairwise(steps))
    store.promote(digests[1], "prod")
    assert not [p for p in tmp_path.rglob(".*") if p.parent != tmp_path]


# -- no space --------------------------------------------------------------------------------------


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 64 KiB, where we may mount one."""
    place = Path(tempfile.mkdtemp(prefix="small-disk-"))
    mount = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if mount is None or subprocess.run([mount, *options], capture_output=True).returncode:
        place.rmdir()
        pytest.skip("mounting a file system of 64 KiB needs root")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)
        place.rmdir()


def test_a_full_disk_leaves_the_store_as_it_was(small_disk: Path, parts: Make):
    store = Registry(small_disk)
    bundle = store.write(*parts())
    store.promote(bundle.digest, "prod")
    (small_disk / "ballast").write_bytes(b"x" * (40 << 10))
    before = contents(small_disk)
    large = parts(2.0, system={"notes": "x" * (60 << 10)})
    with pytest.raises(OSError, match="No space left"):
        store.write(*large)
    with pytest.raises(OSError, match="No space left"):
        store.record("prod", [Metric(name="x" * (60 << 10), value=1.0)])
    assert contents(small_disk) == before
    assert store.open("prod").digest == bundle.digest
    with (small_disk / "ballast").open("ab") as ballast, pytest.raises(OSError, match="No space"):
        ballast.write(b"x" * (60 << 10))
    before = contents(small_disk)
    with pytest.raises(OSError, match="No space left"):  # not a page for a new alias
        store.promote(bundle.digest, "another")
    assert contents(small_disk) == before


@pytest.mark.slow
def test_a_write_that_breaks_off_leaves_the_store_as_it_was(tmp_path: Path, parts: Make):
    store = Registry(tmp_path / "store")
    source = Registry(tmp_path / "source").write(*parts(5.0, system={"notes": "x" * 9000}))
    store.promote(store.write(*parts()).digest, "prod")
    before = contents(store.root)
    code = """
import signal, resource
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
try:
    Registry(sys.argv[1]).add(sys.argv[2])
except OSError as error:
    raise SystemExit(error.errno)
"""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    assert child(code, store.root, source.path).wait(60) == 27  # EFBIG
    assert contents(store.root) == before
    assert store.add(source.path).digest == source.digest


# -- no permission ---------------------------------------------------------------------------------

DENIED = """
import os, json
from pathlib import Path
from drivetrain.core.metric import Metric
root, source, user = sys.argv[1:]
store = Registry(root)
store.open("prod").predict([{"x": 1.0}])  # all that is imported lazily, while we may read it
if int(user):
    os.setgroups([]); os.setgid(int(user)); os.setuid(int(user))
assert store.open("prod").digest == store.aliases()["prod"], "reading needs no right to write"
denied = 0
for act in (
    lambda: store.add(source),
    lambda: store.promote("prod", "other"),
    lambda: store.promote("prod", "prod"),
    lambda: store.record("prod", [Metric(name="a", value=1.0)]),
    lambda: store.sweep(),
):
    try:
        act()
    except PermissionError:
        denied += 1
raise SystemExit(denied)
"""


@pytest.mark.slow
def test_without_permission_the_store_is_read_and_left_as_it_was(parts: Make):
    place = Path(tempfile.mkdtemp(prefix="no-permission-"))  # pytest's own is closed to others
    try:
        place.chmod(0o755)
        store = Registry(place / "store")
        source = Registry(place / "source").write(*parts(5.0))
        store.promote(store.write(*parts()).digest, "prod")
        rooms = [store.root, *(p for p in store.root.rglob("*") if p.is_dir())]
        for room in rooms:
            room.chmod(0o555)
        for lock in (".lock", ".writing"):
            (store.root / lock).chmod(0o444)
        before = contents(store.root)
        user = NOBODY if os.geteuid() == 0 else 0
        worker = child(DENIED, store.root, source.path, user)
        assert worker.wait(60) == 5
        assert contents(store.root) == before
    finally:
        for room in (p for p in place.rglob("*") if p.is_dir()):
            room.chmod(0o755)
        shutil.rmtree(place)
