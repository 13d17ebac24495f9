"""The artefact: one graph and the manifest of all its bytes, in a directory or packed in a file."""

import hashlib
import io
import json
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

from drivetrain.core import measured, packed
from drivetrain.core.batch import Batch
from drivetrain.core.describe import canonical
from drivetrain.core.durable import directory
from drivetrain.core.errors import unknown, wrong
from drivetrain.core.graph import Graph, Session
from drivetrain.core.measured import Fitted
from drivetrain.core.schema import FeatureSchema, Schema

FORMAT = 1
GRAPH = "model.onnx"
STATISTICS = "statistics.json"
MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """All that a bundle says of itself; canonical JSON, so that its digest names the bundle.

    Nothing here depends on when or how fast a run went: the same system over the same data
    gives the same digest. What is measured in milliseconds lies beside the bundle, in the
    registry.

    Attributes:
        name: the system's name.
        inputs: raw columns, as events have them.
        outputs: named predictions.
        targets: the columns that a probe compares predictions with.
        features: what the feature part of the graph gives the model part.
        metrics: repeatable figures, such as ``test/auc``.
        bounds: ``{metric: [at_least, at_most]}`` of the probes; they gate promotion.
        parents: digests of what it was made of (``events``, ``system``, ``model`` …).
        sources: what names the rows that it was made of where they lie on in something that
            changes: a table and its version, a topic and its offsets.
        system: the declaration, as plain data.
        packages: versions that made it.
        windows: ``core.window.Windows.to_json()`` of the windows among the inputs, which a server
            keeps itself; empty if there is none.
        window_schema: the columns that these windows ask for and observe.
        files: ``{path: {"sha256": …, "bytes": …}}`` of every other file.
    """

    name: str
    inputs: Schema
    outputs: Schema
    targets: Schema = Schema(())
    features: FeatureSchema = FeatureSchema(())
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    bounds: Mapping[str, Sequence[float | None]] = field(
        default_factory=dict[str, Sequence[float | None]]
    )
    parents: Mapping[str, str] = field(default_factory=dict[str, str])
    sources: Sequence[Mapping[str, Any]] = ()
    system: Mapping[str, Any] = field(default_factory=dict[str, Any])
    packages: Mapping[str, str] = field(default_factory=dict[str, str])
    windows: Mapping[str, Any] = field(default_factory=dict[str, Any])
    window_schema: Schema = Schema(())
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        schemas = ("inputs", "outputs", "targets", "features")
        plain = {name: getattr(self, name).to_json() for name in schemas}
        found = {"format": FORMAT, **vars(self), **plain}
        # What a bundle has none of is left out, so that it keeps the digest that it always had.
        if not self.windows:
            del found["windows"], found["window_schema"]
        else:
            found["window_schema"] = self.window_schema.to_json()
        if not self.sources:
            del found["sources"]
        return found

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Manifest":
        """The manifest that :meth:`to_json` wrote.

        Raises:
            ValueError: it is of another format, or has keys that this one does not.
        """
        found = data.get("format")
        if found != FORMAT:
            raise wrong("manifest.format", found, f"{FORMAT}")
        values = {key: value for key, value in data.items() if key != "format"}
        for name in ("metrics", "bounds", "parents", "system", "packages", "windows", "files"):
            if not isinstance(values.get(name, {}), Mapping):
                raise wrong(f"manifest.{name}", values[name], "an object")
        sources = values.get("sources", ())
        if not isinstance(sources, list | tuple):
            raise wrong("manifest.sources", sources, "a list")
        values["sources"] = tuple(cast("Sequence[Mapping[str, Any]]", sources))
        for name in ("inputs", "outputs", "targets"):
            values[name] = Schema.from_json(values[name])
        values["window_schema"] = Schema.from_json(values.get("window_schema", ()))
        values["features"] = FeatureSchema.from_json(values["features"])
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(
                f"the manifest's keys are not those of format {FORMAT}: {error}"
            ) from None


@dataclass(frozen=True)
class Bundle:
    """An opened bundle. :meth:`open` verifies every byte before anything is believed.

    Attributes:
        path: its directory, or the file that it is packed in.
        manifest: what it says of itself.
        digest: SHA-256 of the manifest, hexadecimal: the name of all its bytes.
    """

    path: Path
    manifest: Manifest
    digest: str

    @classmethod
    def write(cls, path: Path, graph: Graph, manifest: Manifest, fitted: Fitted) -> "Bundle":
        """Write a bundle to ``path``, whole or not at all.

        Raises:
            FileExistsError: something lies at ``path``.
            OSError: no space, no permission; ``path`` is then as it was.
        """
        if path.exists():
            raise FileExistsError(f"{path} exists, and a bundle is never changed")
        contents = pack(graph, manifest, fitted)
        with directory(path) as temporary:
            for name, data in contents.items():
                (temporary / name).write_bytes(data)
        return cls.open(path, hashlib.sha256(contents[MANIFEST]).hexdigest())

    @classmethod
    def open(cls, path: str | Path, digest: str | None = None) -> "Bundle":
        """Open a bundle and verify the digest of every file in it.

        Args:
            path: the bundle's directory, or the file that it was packed in; which of them makes
                no difference to what is verified, and nothing is unpacked to disk.
            digest: the digest that it must have; None believes the manifest.

        Raises:
            FileNotFoundError: no bundle lies there.
            ValueError: a file is absent, was changed or is one that no manifest names.
        """
        path = Path(path)
        files = _files(path)
        text, found = _manifest(files, digest)
        try:
            manifest = Manifest.from_json(json.loads(text))
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path / MANIFEST} is no manifest: {error!r}") from None
        except ValueError as error:
            raise ValueError(f"{path / MANIFEST}: {error}") from None
        _verify(files, manifest)
        return cls(path, manifest, found)

    def pack(self, path: str | Path) -> "Bundle":
        """Pack the bundle into one file, for a device; equal bundles give equal bytes.

        The file is a ZIP archive that any tool reads, its content not compressed.

        Args:
            path: the file; one that lies there is replaced.

        Raises:
            ValueError: the bundle was changed since it was opened, or is 4 GiB or more.
            OSError: no space, no permission; ``path`` is then as it was.
        """
        files = _files(self.path)
        names = (MANIFEST, *sorted(self.manifest.files))
        packed.write(Path(path), {name: partial(files.open, name) for name in names})
        return Bundle.open(path, self.digest)

    def read(self, name: str) -> bytes:
        """One of its files; the bytes are verified again, for they are read later.

        Raises:
            ValueError: the manifest names no such file, or it was changed since.
            OSError: it cannot be read.
        """
        allowed = self.digest if name == MANIFEST else None
        if allowed is None:
            if name not in self.manifest.files:
                raise unknown("file", name, self.manifest.files, str(self.path))
            allowed = self.manifest.files[name]["sha256"]
        with _files(self.path).open(name) as file:
            data = file.read()
        _check(self.path / name, hashlib.sha256(data).hexdigest(), allowed)
        return data

    @cached_property
    def graph(self) -> Graph:
        """Raw columns to predictions."""
        return Graph(self.read(GRAPH))

    @cached_property
    def fitted(self) -> Fitted:
        """The statistics of the training rows."""
        return measured.from_json(json.loads(self.read(STATISTICS)))

    @cached_property
    def session(self) -> Session:
        """The graph in ONNX Runtime, one thread for each core."""
        return self.graph.session()

    def predict(self, rows: Batch | Sequence[Mapping[str, Any]]) -> Batch:
        """Named predictions for raw rows.

        Args:
            rows: a batch, or dictionaries as a person writes them, None for what is missing.

        Raises:
            ValueError: a column is absent, unknown or of the wrong type.
        """
        if not isinstance(rows, Batch):
            rows = Batch.from_rows(rows, self.manifest.inputs)
        return self.session.run(rows, self.manifest.outputs.names)


def pack(graph: Graph, manifest: Manifest, fitted: Fitted) -> dict[str, bytes]:
    """The files of a bundle, the manifest among them; equal parts give equal bytes."""
    contents = {
        GRAPH: graph.model,
        STATISTICS: canonical(measured.to_json(fitted)).encode(),
    }
    files = {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        for name, data in contents.items()
    }
    complete = {**manifest.to_json(), "files": files}
    return {**contents, MANIFEST: canonical(complete).encode()}


def digest_of(path: Path) -> str:
    """What a bundle says that its digest is; :meth:`Bundle.open` verifies it.

    Raises:
        FileNotFoundError: no bundle lies there.
        ValueError: it is packed in no archive as we write them.
    """
    return _manifest(_files(path), None)[1]


class _Directory:
    """The files of a bundle in a directory; has the methods of :class:`packed.Packed`.

    Only names that were found inside the directory are opened: a manifest that names a path
    elsewhere names a file that is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def names(self) -> tuple[str, ...]:
        """What is neither a plain file nor a directory is refused unread."""
        names: list[str] = []
        for file in self.path.rglob("*"):
            mode = file.lstat().st_mode
            name = file.relative_to(self.path).as_posix()
            if stat.S_ISREG(mode):
                names.append(name)
            elif not stat.S_ISDIR(mode):
                allowed = "plain files and directories"
                raise ValueError(f"{self.path}: found {name!r}, allowed: {allowed}.")
        return tuple(names)

    def open(self, name: str) -> io.BufferedReader:
        return (self.path / name).open("rb")


def _files(path: Path) -> _Directory | packed.Packed:
    if os.path.lexists(path / MANIFEST):
        return _Directory(path)
    if packed.is_packed(path):
        return packed.Packed(path)
    form = f"it has no {MANIFEST}" if path.is_dir() else "no directory or packed file lies there"
    raise FileNotFoundError(f"no bundle at {path}: {form}")


def _manifest(files: _Directory | packed.Packed, digest: str | None) -> tuple[bytes, str]:
    if MANIFEST not in files.names:
        raise ValueError(f"{files.path}: {MANIFEST!r} is missing.")
    with files.open(MANIFEST) as file:
        text = file.read()
    found = hashlib.sha256(text).hexdigest()
    if digest is not None and found != digest:
        raise ValueError(f"{files.path / MANIFEST}: found digest {found}, allowed: {digest}.")
    return text, found


def _verify(files: _Directory | packed.Packed, manifest: Manifest) -> None:
    """Hold the files against the manifest."""
    path, names = files.path, set(files.names)
    for name in (GRAPH, STATISTICS):
        if name not in manifest.files:
            raise ValueError(f"{path}: the manifest does not name {name!r}.")
    for name in sorted(names - {MANIFEST, *manifest.files}):
        raise ValueError(f"{path}: found {name!r}, which the manifest does not name.")
    for name, expected in manifest.files.items():
        if name not in names:
            raise ValueError(f"{path}: {name!r} is missing.")
        with files.open(name) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        allowed = expected.get("sha256") if isinstance(expected, Mapping) else None  # pyright: ignore[reportUnnecessaryIsInstance]
        _check(path / name, found, allowed)


def _check(file: Path, found: str, allowed: str | None) -> None:
    if found != allowed:
        raise ValueError(
            f"{file}: found digest {found}, allowed: {allowed}; it was changed or is damaged."
        )
