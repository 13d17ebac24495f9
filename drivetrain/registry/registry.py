"""A directory of content-addressed bundles, of aliases that name them and of what was measured."""

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from drivetrain.core import durable
from drivetrain.core.bundle import MANIFEST, Bundle, Manifest, pack
from drivetrain.core.errors import unknown, wrong
from drivetrain.core.graph import Graph
from drivetrain.core.metric import Metric
from drivetrain.core.sketch import Fitted

DIGEST = re.compile(r"[0-9a-f]{64}")
PREFIX = re.compile(r"[0-9a-f]{8,64}")
ALIAS = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Ancestor:
    """One step of a lineage.

    Attributes:
        role: what it was to the bundle that was made of it, such as ``events`` or ``bundle``.
        digest: SHA-256, hexadecimal.
        depth: 0 for the bundle itself, 1 for its parents.
        manifest: of the bundle with that digest; None for what is no bundle of this store.
    """

    role: str
    digest: str
    depth: int
    manifest: Manifest | None


class Registry:
    """A store of bundles in a local directory.

    ``bundles/<digest>/`` are immutable and named by the SHA-256 of their manifest, which names
    the SHA-256 of every other file. ``aliases/<name>.json`` say which bundle a name means and
    which ones it meant before. ``measured/<digest>.jsonl`` keep what is not the same in every
    run, such as timings. Nothing is created before the first write, and reading needs no right
    to write. Writers in several processes exclude one another by ``flock``.

    A ``ref`` is a digest, at least 8 of its first characters, either with ``sha256:`` in front,
    or an alias.
    """

    def __init__(self, root: Path | str) -> None:
        """
        Args:
            root: the store's directory.

        Raises:
            ValueError: the store is at a URL, or is no directory.
        """
        if "://" in str(root) or re.match(r"[\w+.-]+:/", str(root)):
            raise wrong("store", str(root), "the path of a local directory")
        self.root = Path(root).absolute()
        if self.root.exists() and not self.root.is_dir():
            raise wrong("store", str(root), "a directory")

    def __repr__(self) -> str:
        return f"Registry({str(self.root)!r})"

    # -- bundles -------------------------------------------------------------------------------

    def write(self, graph: Graph, manifest: Manifest, fitted: Fitted) -> Bundle:
        """Store a bundle; what is stored already is opened.

        Raises:
            OSError: no space, no permission; the store is then as it was.
            ValueError: the same bundle is stored already and was damaged since.
        """
        contents = pack(graph, manifest, fitted)

        def fill(directory: Path) -> None:
            for name, data in contents.items():
                (directory / name).write_bytes(data)

        return self._store(hashlib.sha256(contents[MANIFEST]).hexdigest(), fill)

    def add(self, path: Path | str) -> Bundle:
        """Import a bundle from a directory or a packed file; the copy is verified before it has
        its name.

        Raises:
            FileNotFoundError: no bundle lies there.
            ValueError: a file of it is absent, was changed or is one that no manifest names.
            OSError: no space, no permission; the store is then as it was.
        """
        bundle = Bundle.open(path)

        def fill(directory: Path) -> None:
            for name in (MANIFEST, *bundle.manifest.files):
                target = directory / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(bundle.read(name))

        return self._store(bundle.digest, fill)

    def _store(self, digest: str, fill: Any) -> Bundle:
        path = self._room("bundles") / digest
        if not os.path.lexists(path):
            with self._writing(), durable.directory(path) as temporary:
                fill(temporary)
                Bundle.open(temporary, digest)
        return self.open(digest)

    def open(self, ref: str) -> Bundle:
        """The bundle that ``ref`` means, every byte of it verified.

        Raises:
            ValueError: no such bundle or alias, more than one, or a damaged one.
        """
        path = self.path(ref)
        return Bundle.open(path, path.name)

    def path(self, ref: str) -> Path:
        """Where the bundle that ``ref`` means lies, nothing of it read yet.

        Raises:
            ValueError: no such bundle or alias, or more than one.
        """
        path = self._room("bundles") / self.resolve(ref)
        if not _is_directory(path):
            raise unknown("bundle", ref, (d[:12] for d in self.bundles()), str(self.root))
        return path

    def bundles(self) -> tuple[str, ...]:
        """The digests of the stored bundles, sorted."""
        try:
            entries = list(os.scandir(self._room("bundles")))
        except FileNotFoundError:
            return ()
        return tuple(
            sorted(
                entry.name
                for entry in entries
                if DIGEST.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
            )
        )

    def resolve(self, ref: str) -> str:
        """The digest that ``ref`` means; a full digest need not be stored.

        Raises:
            ValueError: no such bundle or alias, or more than one.
        """
        prefix = ref.removeprefix("sha256:")
        if DIGEST.fullmatch(prefix):
            return prefix
        if PREFIX.fullmatch(prefix):
            found = [digest for digest in self.bundles() if digest.startswith(prefix)]
            if len(found) > 1:
                shown = ", ".join(found)
                raise ValueError(f"bundle {ref!r} is ambiguous: it may be any of {shown}.")
            if not found:
                raise unknown("bundle", ref, (d[:12] for d in self.bundles()), str(self.root))
            return found[0]
        _check_alias(ref)
        entry = self._alias(ref)
        if entry is None:
            raise unknown("alias", ref, self.aliases(), str(self.root))
        return cast("str", entry["bundle"])

    def lineage(self, ref: str) -> tuple[Ancestor, ...]:
        """A bundle and what it was made of, nearest first, through every stored bundle.

        Raises:
            ValueError: no such bundle, or a damaged one on the way.
        """
        found: dict[str, Ancestor] = {}
        queue = [("bundle", self.resolve(ref), 0)]
        for role, digest, depth in queue:
            if digest in found:
                continue
            stored = depth == 0 or (DIGEST.fullmatch(digest) and digest in self.bundles())
            manifest = self.open(digest).manifest if stored else None
            found[digest] = Ancestor(role, digest, depth, manifest)
            if manifest is not None:
                queue.extend((key, value, depth + 1) for key, value in manifest.parents.items())
        return tuple(found.values())

    # -- aliases -------------------------------------------------------------------------------

    def aliases(self) -> dict[str, str]:
        """Each alias with the digest of its bundle, sorted by name.

        Raises:
            ValueError: an alias is damaged.
        """
        try:
            names = sorted(os.listdir(self._room("aliases")))
        except FileNotFoundError:
            return {}
        stems = (n.removesuffix(".json") for n in names if n.endswith(".json"))
        entries = {name: self._alias(name) for name in stems if ALIAS.fullmatch(name)}
        return {name: entry["bundle"] for name, entry in entries.items() if entry is not None}

    def history(self, alias: str) -> tuple[tuple[str, str], ...]:
        """Each bundle that an alias has meant, with the time from which it did; now last.

        One that was rolled back is forgotten, and the time is then that of the rollback.

        Raises:
            ValueError: no such alias, or a damaged one.
        """
        _check_alias(alias)
        entry = self._alias(alias)
        if entry is None:
            raise unknown("alias", alias, self.aliases(), str(self.root))
        return tuple((step["bundle"], step["at"]) for step in (*entry["previous"], entry))

    def promote(self, ref: str, alias: str) -> Bundle:
        """Let ``alias`` mean the bundle ``ref``; a reader sees the old one or the new one.

        Raises:
            ValueError: no such bundle, a damaged one, a name that no alias may have, or a bound
                of the bundle's probes that does not hold (each is named).
        """
        _check_alias(alias)
        bundle = self.open(ref)
        broken = self.broken_bounds(bundle)
        if broken:
            raise ValueError(
                f"bundle {bundle.digest[:12]} is not promoted to {alias!r}: " + "; ".join(broken)
            )
        with self._locked():
            entry = self._alias(alias)
            if entry is None:
                self._point(alias, bundle.digest, [])
            elif entry["bundle"] != bundle.digest:
                step = {"bundle": entry["bundle"], "at": entry["at"]}
                self._point(alias, bundle.digest, [*entry["previous"], step])
        return bundle

    def rollback(self, alias: str) -> Bundle:
        """Let ``alias`` mean again what it meant before; its bounds are not asked anew.

        Raises:
            ValueError: no such alias, nothing before, or that bundle is gone or damaged.
        """
        self.history(alias)  # raises for an unknown alias before anything is created
        with self._locked():
            entry = self._alias(alias)
            assert entry is not None, "no one deletes aliases"
            if not entry["previous"]:
                raise ValueError(f"alias {alias!r} has never meant another bundle than now.")
            *older, last = entry["previous"]
            bundle = self.open(last["bundle"])
            self._point(alias, bundle.digest, older)
        return bundle

    def broken_bounds(self, bundle: Bundle) -> tuple[str, ...]:
        """Each bound that does not hold, or whose figure is nowhere, in words."""
        latest = {metric.name: metric for metric in self.measurements(bundle.digest)}
        broken: list[str] = []
        for name, (at_least, at_most) in sorted(bundle.manifest.bounds.items()):
            values = [latest[name].value] if name in latest else []
            if name in bundle.manifest.metrics:
                values.append(bundle.manifest.metrics[name])
            figures = [
                Metric(name=name, value=value, at_least=at_least, at_most=at_most)
                for value in values
            ]
            broken.extend(str(figure) for figure in figures if not figure.holds)
            if not figures:
                broken.append(f"{name} was not measured")
        broken.extend(
            str(metric)
            for name, metric in sorted(latest.items())
            if name not in bundle.manifest.bounds and not metric.holds
        )
        return tuple(broken)

    def _alias(self, name: str) -> dict[str, Any] | None:
        path = self._room("aliases") / f"{name}.json"
        text = _read(path)
        if text is None:
            return None
        try:
            entry = json.loads(text)
            steps = [*entry["previous"], entry]
            whole = all(DIGEST.fullmatch(step["bundle"]) and step["at"] for step in steps)
        except (ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            raise ValueError(f"{path} is damaged: it does not name a bundle.")
        return entry

    def _point(self, alias: str, digest: str, previous: Sequence[Mapping[str, str]]) -> None:
        at = datetime.now(UTC).isoformat(timespec="seconds")
        entry = {"bundle": digest, "at": at, "previous": list(previous)}
        text = json.dumps(entry, indent=1) + "\n"
        durable.write(self._room("aliases") / f"{alias}.json", text.encode())

    # -- what was measured ---------------------------------------------------------------------

    def record(self, ref: str, metrics: Sequence[Metric]) -> None:
        """Keep measurements beside a bundle, all of them or none.

        Raises:
            ValueError: no such bundle.
            OSError: no space, no permission; the store is then as it was.
        """
        digest = self.resolve(ref)
        if digest not in self.bundles():
            raise unknown("bundle", ref, (d[:12] for d in self.bundles()), str(self.root))
        path = self._room("measured") / f"{digest}.jsonl"
        lines = "".join(json.dumps(asdict(metric)) + "\n" for metric in metrics)
        with self._locked():
            durable.write(path, (_read(path) or b"") + lines.encode())

    def measurements(self, ref: str) -> tuple[Metric, ...]:
        """All that was recorded of a bundle, the oldest first.

        Raises:
            ValueError: no such bundle, or its measurements are damaged.
        """
        path = self._room("measured") / f"{self.resolve(ref)}.jsonl"
        text = _read(path) or b""
        try:
            return tuple(Metric(**json.loads(line)) for line in text.splitlines())
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is damaged: {error}") from None

    # -- the directory -------------------------------------------------------------------------

    def _room(self, name: str) -> Path:
        """A directory of the store, which must lie in it and not be a link to elsewhere."""
        path = self.root / name
        if path.is_symlink():
            raise ValueError(f"{path}: found a symbolic link, allowed: a directory of the store.")
        return path

    def sweep(self) -> int:
        """Delete what killed writers left behind, unless someone writes now; how many."""
        with self._exclusive(self.root / ".writing") as alone:
            return self._delete_leftovers() if alone else 0

    def _delete_leftovers(self) -> int:
        swept = 0
        for room in ("bundles", "aliases", "measured"):
            for leftover in self._room(room).glob(".*"):
                swept += 1
                if _is_directory(leftover):
                    shutil.rmtree(leftover, ignore_errors=True)
                else:
                    leftover.unlink(missing_ok=True)
        return swept

    @contextmanager
    def _exclusive(self, path: Path) -> Generator[bool]:
        """Try to hold a lock alone; gives whether that worked."""
        with _lock_file(path) as descriptor:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    @contextmanager
    def _writing(self) -> Generator[None]:
        """Say that temporary files are in use: whoever sweeps leaves them alone.

        The kernel lets go of the lock when a process dies, so a leftover is known by nobody's
        holding it.
        """
        self.sweep()
        with _lock_file(self.root / ".writing") as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            yield

    @contextmanager
    def _locked(self) -> Generator[None]:
        """Read, change and write back with no other process in between."""
        with self._writing(), _lock_file(self.root / ".lock") as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield


def _check_alias(name: str) -> None:
    if not ALIAS.fullmatch(name) or ".." in name or PREFIX.fullmatch(name):
        raise wrong(
            "alias",
            name,
            "a-z, 0-9, dot, dash and underscore, 64 at most, a letter or digit first, no two "
            "dots together, and not to be taken for a digest",
        )


def _is_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _read(path: Path) -> bytes | None:
    """A file of the store, or None if there is none; never what a link points to."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError:
        if path.is_symlink():
            raise ValueError(f"{path}: found a symbolic link, allowed: a plain file.") from None
        raise
    with os.fdopen(descriptor, "rb") as file:
        return file.read()


@contextmanager
def _lock_file(path: Path) -> Generator[int]:
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
