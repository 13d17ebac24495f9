"""A bundle is believed only when every byte of it is as the manifest says."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from drivetrain.core import measured
from drivetrain.core.batch import Batch
from drivetrain.core.bundle import Bundle, Manifest
from drivetrain.core.graph import Graph
from drivetrain.core.measured import Fitted
from drivetrain.core.schema import FeatureField, FeatureSchema, Field, Schema
from drivetrain.core.sketch import MomentsValue
from drivetrain.core.statistic import Moments
from drivetrain.core.window import Window, Windows

FITTED: Fitted = {Moments("x"): MomentsValue(3, 0, 2.0, 2.0, 1.0, 3.0)}


def made_graph() -> Graph:
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y"])],
        "made",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows"])],
    )
    return Graph.from_proto(
        helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    )


def manifest(**more: Any) -> Manifest:
    graph = made_graph()
    return Manifest(name="made", inputs=graph.inputs, outputs=graph.outputs, **more)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return Bundle.write(tmp_path / "bundle", made_graph(), manifest(), FITTED)


def test_a_bundle_is_what_was_written(tmp_path: Path):
    said = manifest(
        targets=Schema((Field("late", "int64"),)),
        features=FeatureSchema((FeatureField(name="x", kind="dense", columns=("x",)),)),
        metrics={"test/auc": 0.75},
        bounds={"test/auc": [0.7, None]},
        parents={"events": "e" * 64},
        system={"name": "made"},
        packages={"numpy": "2"},
    )
    written = Bundle.write(tmp_path / "b", made_graph(), said, FITTED)
    opened = Bundle.open(tmp_path / "b", written.digest)
    assert opened.manifest == written.manifest
    assert {**vars(opened.manifest), "files": {}} == {**vars(said), "files": {}}
    assert opened.graph == made_graph()
    assert measured.to_json(opened.fitted) == measured.to_json(FITTED)


def test_equal_parts_make_equal_bundles(tmp_path: Path, bundle: Bundle):
    again = Bundle.write(tmp_path / "again", made_graph(), manifest(), FITTED)
    assert again.digest == bundle.digest
    other = Bundle.write(tmp_path / "other", made_graph(), manifest(metrics={"a": 1.0}), FITTED)
    assert other.digest != bundle.digest


def test_windows_are_in_the_manifest_and_change_nothing_where_there_is_none(
    tmp_path: Path, bundle: Bundle
):
    windows = Windows("at", (("spent", Window("amount", by="card", stat="sum", over="1h")),))
    columns = Schema(
        (Field("at", "timestamp"), Field("card", "string"), Field("amount", "float64"))
    )
    said = manifest(windows=windows.to_json(), window_schema=columns)
    written = Bundle.write(tmp_path / "b", made_graph(), said, FITTED)
    opened = Bundle.open(tmp_path / "b", written.digest).manifest
    assert Windows.from_json(opened.windows) == windows
    assert opened.window_schema == columns
    assert "windows" not in bundle.manifest.to_json()
    assert "window_schema" not in bundle.manifest.to_json()
    assert (bundle.manifest.windows, bundle.manifest.window_schema) == ({}, Schema(()))


def test_predictions_of_rows_and_of_batches(bundle: Bundle):
    assert bundle.predict([{"x": 1.0}, {"x": 2}])["y"].tolist() == [-1.0, -2.0]
    assert bundle.predict(Batch({"x": np.ones(1, np.float32)}))["y"].tolist() == [-1.0]
    with pytest.raises(ValueError, match="unknown column 'z' in row 0"):
        bundle.predict([{"z": 1.0}])


def test_a_bundle_is_never_written_over(bundle: Bundle):
    with pytest.raises(FileExistsError, match="never changed"):
        Bundle.write(bundle.path, made_graph(), manifest(), FITTED)


def test_every_flipped_byte_is_refused(bundle: Bundle):
    for file in bundle.path.iterdir():
        data = file.read_bytes()
        for position in range(len(data)):
            file.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
            with pytest.raises(ValueError, match=r"bundle"):
                Bundle.open(bundle.path, bundle.digest)
        file.write_bytes(data)
    assert Bundle.open(bundle.path, bundle.digest).digest == bundle.digest


@pytest.mark.parametrize("name", ["model.onnx", "statistics.json"])
def test_a_missing_cut_or_longer_file_is_refused(bundle: Bundle, name: str):
    file = bundle.path / name
    data = file.read_bytes()
    for changed in (data[:-1], data + b" ", b""):
        file.write_bytes(changed)
        with pytest.raises(ValueError, match=f"{name}: found digest .*changed or is damaged"):
            Bundle.open(bundle.path)
    file.unlink()
    with pytest.raises(ValueError, match=f"'{name}' is missing"):
        Bundle.open(bundle.path)


def test_what_the_manifest_does_not_name_is_refused(bundle: Bundle):
    for name in ("extra", ".hidden", "deep/er/extra"):
        extra = bundle.path / name
        extra.parent.mkdir(parents=True, exist_ok=True)
        extra.write_bytes(b"")
        with pytest.raises(ValueError, match=f"found '{name}', which the manifest does not name"):
            Bundle.open(bundle.path)
        extra.unlink()


def test_links_and_pipes_are_refused_unread(bundle: Bundle, tmp_path: Path):
    for name in ("model.onnx", "manifest.json"):
        file = bundle.path / name
        file.rename(tmp_path / "aside")
        file.symlink_to(tmp_path / "aside")  # the very bytes
        with pytest.raises(ValueError, match=f"found '{name}', allowed: plain files"):
            Bundle.open(bundle.path)
        file.unlink()
        os.mkfifo(file)  # would block a reader for ever
        with pytest.raises(ValueError, match=f"found '{name}', allowed: plain files"):
            Bundle.open(bundle.path)
        file.unlink()
        (tmp_path / "aside").rename(file)
    (bundle.path / "loop").symlink_to(bundle.path)
    with pytest.raises(ValueError, match="found 'loop'"):
        Bundle.open(bundle.path)


def test_no_bundle_is_said_to_be_none(tmp_path: Path):
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "absent", tmp_path / "file"):
        with pytest.raises(FileNotFoundError, match="no bundle at"):
            Bundle.open(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "manifest.format: found 2, allowed: 1"),
        ({"format": None}, "manifest.format: found None"),
        ({"colour": "red"}, "keys are not those of format 1.*colour"),
        ({"inputs": [{"name": "x", "dtype": "flaot32", "shape": []}]}, "Did you mean 'float32'"),
        ({"inputs": [{"name": "x"}]}, "is no manifest"),
        ({"inputs": 3}, "is no manifest"),
        ({"files": []}, "manifest.files: found"),
        ({"bounds": 1}, "manifest.bounds: found 1"),
        ({"files": {}}, "does not name 'model.onnx'"),
        ({"files": {"model.onnx": 1, "statistics.json": 2}}, "allowed: None"),
        ({"files": {"model.onnx": {}, "statistics.json": {}}}, "allowed: None"),
    ],
)
def test_a_manifest_of_another_shape_is_refused(
    bundle: Bundle, change: dict[str, Any], message: str
):
    file = bundle.path / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ValueError, match=message):
        Bundle.open(bundle.path)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000])
def test_what_is_no_manifest_is_refused(bundle: Bundle, text: bytes):
    (bundle.path / "manifest.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"manifest\.json"):
        Bundle.open(bundle.path)


def test_a_key_that_is_absent_is_named(bundle: Bundle):
    file = bundle.path / "manifest.json"
    said = json.loads(file.read_text())
    for key in ("inputs", "features", "name"):
        file.write_text(json.dumps({k: v for k, v in said.items() if k != key}))
        with pytest.raises(ValueError, match=key):
            Bundle.open(bundle.path)
