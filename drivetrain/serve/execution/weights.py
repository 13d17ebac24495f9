"""Weights that lie in memory once for all workers: a file that each of them maps."""

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from drivetrain.core.durable import write
from drivetrain.core.graph import Session
from drivetrain.core.need import need

log = logging.getLogger("drivetrain.serve")

_PREFIX = "drivetrain-weights-"
_MAKING = ".making"
_GRAPH, _WEIGHTS, _IN_USE = "graph.onnx", "weights.bin", "in-use"
_YOUNG_SECONDS = 10.0
"""A directory as young as this may be one that its owner has not locked yet."""
_OUTSIDE = "1024"
"""Bytes from which a tensor lies in the file of weights."""


class Weights:
    """A private directory of optimised graphs, whose weights every process of a server maps.

    ONNX Runtime keeps weights that it reads out of a graph on its heap, a copy in each process.
    Weights in a file beside the graph it maps, and the kernel keeps the pages of one file once.
    So the first process that wants a graph has it optimised and written, weights apart and packed
    as the kernels want them; it and the others load that as it stands. The optimisation is the
    one of a plain load, and so are the results, to the last bit.

    The directory belongs to this user alone and holds what was made of checked bytes. It is locked
    by its owner, the supervisor, and by what was forked from it. The kernel gives up the lock when
    the last of them ends, however that came, so a directory that can be locked is one that was
    left behind: whoever makes the next one deletes it.

    Args:
        parent: where the directory is made; by default where temporary files go. There must be
            room for the weights of all versions that are served at one time.
        least: bytes of a graph from which sharing is worth a file; what is smaller is loaded
            plainly.

    It also holds what one process decides for all (:meth:`once`).

    Raises:
        OSError: the directory cannot be made.
    """

    def __init__(self, parent: Path | None = None, least: int = 4 << 20) -> None:
        parent = Path(tempfile.gettempdir()) if parent is None else parent
        _delete_left_behind(parent)
        self.least = least
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))  # mode 0700
        self._owner = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(self._owner, fcntl.LOCK_EX)

    def session(self, digest: str, graph: Callable[[], bytes]) -> Session:
        """Load a graph for runs of one thread, its weights shared with the other processes.

        A version that no process uses any more is deleted on the way.

        Args:
            digest: of the graph's bytes; names it to the other processes.
            graph: gives the bytes, checked; asked only when no process has been here before.

        Raises:
            OSError: there is no room, or the directory is gone.
            Exception: what ONNX Runtime says of a graph that it cannot load.
        """
        ort = need("onnxruntime", "serve")
        key = hashlib.sha256(f"{digest} {ort.__version__} 1".encode()).hexdigest()
        entry = self.path / key
        with self._alone():
            self._delete_unused(key)
            if not entry.exists():
                self._make(entry, graph())
            in_use = os.open(entry / _IN_USE, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(in_use, fcntl.LOCK_SH)
                session = Session(str(entry / _GRAPH), threads=1, configure=_as_it_stands)
            except BaseException:
                os.close(in_use)
                raise
        weakref.finalize(session, os.close, in_use)
        return session

    def once(self, name: str, decide: Callable[[], str]) -> str:
        """What the first process to ask decided; it decides again if it failed.

        Raises:
            OSError: the directory is gone.
            Exception: what ``decide`` raises, in the process that asked it.
        """
        path = self.path / name
        with self._alone():
            if not path.exists():
                write(path, decide().encode())
            return path.read_text()

    def close(self) -> None:
        """Delete the directory; what is mapped of it stays mapped."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._owner >= 0:
            os.close(self._owner)
            self._owner = -1

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process makes, loads or deletes meanwhile; a lock dies with its process."""
        lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _make(self, entry: Path, graph: bytes) -> None:
        making = entry.with_suffix(_MAKING)
        making.mkdir(0o700)
        try:

            def configure(options: Any) -> None:
                setting = options.add_session_config_entry
                options.optimized_model_filepath = str(making / _GRAPH)
                setting("session.optimized_model_external_initializers_file_name", _WEIGHTS)
                setting("session.optimized_model_external_initializers_min_size_in_bytes", _OUTSIDE)
                # Else every process would pack a matrix again, into memory of its own.
                setting("session.save_external_prepacked_constant_initializers", "1")

            Session(graph, threads=1, configure=configure)
            (making / _IN_USE).touch(0o400)
            for file in making.iterdir():
                file.chmod(0o400)
            making.rename(entry)
        finally:
            shutil.rmtree(making, ignore_errors=True)

    def _delete_unused(self, but: str) -> None:
        for entry in self.path.iterdir():
            if entry.suffix == _MAKING:  # of a process that was killed in the middle
                shutil.rmtree(entry, ignore_errors=True)
            if entry.name == but or not (entry / _IN_USE).exists():
                continue
            with contextlib.suppress(OSError), _locked(entry / _IN_USE):
                shutil.rmtree(entry, ignore_errors=True)


def _as_it_stands(options: Any) -> None:
    ort = need("onnxruntime", "serve")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[os.stat_result]:
    """Hold the lock of what nobody else uses.

    Raises:
        BlockingIOError: somebody does.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield os.fstat(descriptor)
    finally:
        os.close(descriptor)


def _delete_left_behind(parent: Path) -> None:
    """Delete the directories of servers that were killed before they could."""
    for path in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError), _locked(path) as found:
            ours = found.st_uid == os.geteuid()
            if ours and time.time() - found.st_mtime > _YOUNG_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


def shared_weights(needed: bool) -> Weights | None:
    """Where workers share weights; without it each has its own, and they serve as well. But
    what ``auto`` picks they must share: ``needed``."""
    try:
        return Weights()
    except OSError as error:
        if needed:
            raise
        log.warning("every worker keeps its weights to itself: %s", error)
        return None
