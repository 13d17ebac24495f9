"""The artefact: an immutable directory that holds one graph and the manifest of all its bytes."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from drivetrain.core import sketch
from drivetrain.core.batch import Batch
from drivetrain.core.describe import canonical
from drivetrain.core.durable import directory
from drivetrain.core.errors import wrong
from drivetrain.core.graph import Graph, Session
from drivetrain.core.schema import FeatureSchema, Schema
from drivetrain.core.sketch import Fitted

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
        system: the declaration, as plain data.
        packages: versions that made it.
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
    system: Mapping[str, Any] = field(default_factory=dict[str, Any])
    packages: Mapping[str, str] = field(default_factory=dict[str, str])
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        schemas = ("inputs", "outputs", "targets", "features")
        plain = {name: getattr(self, name).to_json() for name in schemas}
        return {"format": FORMAT, **vars(self), **plain}

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
        for name in ("inputs", "outputs", "targets"):
            values[name] = Schema.from_json(values[name])
        values["features"] = FeatureSchema.from_json(values["features"])
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(
                f"the manifest's keys are not those of format {FORMAT}: {error}"
            ) from None


@dataclass(frozen=True)
class Bundle:
    """An opened bundle. :meth:`open` verifies every byte before anything is believed."""

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
        contents = {
            GRAPH: graph.model,
            STATISTICS: canonical(sketch.to_json(fitted)).encode(),
        }
        files = {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
            for name, data in contents.items()
        }
        complete = {**manifest.to_json(), "files": files}
        with directory(path) as temporary:
            for name, data in contents.items():
                (temporary / name).write_bytes(data)
            (temporary / MANIFEST).write_bytes(canonical(complete).encode())
        return cls.open(path)

    @classmethod
    def open(cls, path: str | Path, digest: str | None = None) -> "Bundle":
        """Open a bundle and verify the digest of every file in it.

        Args:
            path: the bundle's directory.
            digest: the digest that it must have; None believes the manifest.

        Raises:
            FileNotFoundError: no bundle lies there.
            ValueError: a file is absent, was changed or is one that no manifest names.
        """
        path = Path(path)
        try:
            text = (path / MANIFEST).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(f"no bundle at {path}: it has no {MANIFEST}") from None
        found = hashlib.sha256(text).hexdigest()
        if digest is not None and found != digest:
            raise ValueError(f"{path / MANIFEST}: found digest {found}, allowed: {digest}.")
        try:
            manifest = Manifest.from_json(json.loads(text))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path / MANIFEST} is no manifest: {error!r}") from None
        _verify(path, manifest)
        return cls(path, manifest, found)

    @cached_property
    def graph(self) -> Graph:
        """Raw columns to predictions."""
        return Graph.load(self.path / GRAPH)

    @cached_property
    def fitted(self) -> Fitted:
        """The statistics of the training rows."""
        return sketch.from_json(json.loads((self.path / STATISTICS).read_bytes()))

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


def _verify(path: Path, manifest: Manifest) -> None:
    allowed = {MANIFEST, *manifest.files}
    for file in path.rglob("*"):
        name = file.relative_to(path).as_posix()
        if file.is_symlink() or (file.is_file() and name not in allowed):
            raise ValueError(f"{path}: found {name!r}, which the manifest does not name.")
    for name, expected in manifest.files.items():
        file = path / name
        if not file.resolve().is_relative_to(path.resolve()):
            raise ValueError(f"{path}: found the file name {name!r}, allowed: names inside it.")
        try:
            data = file.read_bytes()
        except FileNotFoundError:
            raise ValueError(f"{path}: {name!r} is missing.") from None
        found = hashlib.sha256(data).hexdigest()
        if found != expected["sha256"]:
            raise ValueError(
                f"{file}: found digest {found}, allowed: {expected['sha256']}; it was changed "
                "or is damaged."
            )
