"""A packed bundle is one file of one form, and holds what the directory that it came from does."""

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from drivetrain.core import packed
from drivetrain.core.bundle import Bundle, Manifest, digest_of
from drivetrain.core.graph import Graph

NAMES = ("manifest.json", "model.onnx", "statistics.json")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["y"])],
        "made",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows"])],
    )
    opset = [onnx.helper.make_opsetid("", 20)]
    made = Graph.from_proto(helper.make_model(graph, opset_imports=opset))
    manifest = Manifest(name="made", inputs=made.inputs, outputs=made.outputs)
    return Bundle.write(tmp_path / "bundle", made, manifest, {})


def archive(path: Path, contents: Mapping[str, bytes]) -> None:
    packed.write(path, {name: opener(data) for name, data in contents.items()})


def opener(data: bytes) -> Callable[[], io.BufferedReader]:
    return lambda: io.BufferedReader(io.BytesIO(data))  # pyright: ignore[reportArgumentType]


def test_a_packed_bundle_is_the_bundle(bundle: Bundle, tmp_path: Path):
    file = tmp_path / "made.bundle"
    one = bundle.pack(file)
    assert (one.path, one.digest, one.manifest) == (file, bundle.digest, bundle.manifest)
    assert digest_of(file) == digest_of(bundle.path) == bundle.digest
    assert one.graph == bundle.graph
    assert one.fitted == bundle.fitted
    rows = [{"x": 1.5}, {"x": None}]
    ours, theirs = one.predict(rows)["y"], bundle.predict(rows)["y"]
    assert isinstance(ours, np.ndarray)
    assert isinstance(theirs, np.ndarray)
    assert ours.tobytes() == theirs.tobytes()


def test_nothing_is_unpacked_to_disk(bundle: Bundle, tmp_path: Path):
    one = bundle.pack(tmp_path / "alone" / "made.bundle")
    one.predict([{"x": 1.0}])
    assert os.listdir(tmp_path / "alone") == ["made.bundle"]


def test_equal_bundles_give_equal_bytes(bundle: Bundle, tmp_path: Path):
    first, second = tmp_path / "1", tmp_path / "2"
    bundle.pack(first)
    for file in bundle.path.iterdir():
        os.utime(file, (0, 0))
        file.chmod(0o600)
    bundle.pack(second)
    again = Bundle.open(first).pack(tmp_path / "3")
    assert first.read_bytes() == second.read_bytes() == again.path.read_bytes()


def test_other_tools_read_it(bundle: Bundle, tmp_path: Path):
    bundle.pack(tmp_path / "made.bundle")
    with zipfile.ZipFile(tmp_path / "made.bundle") as found:
        assert found.testzip() is None
        assert tuple(found.namelist()) == NAMES
        for name in NAMES:
            assert found.read(name) == (bundle.path / name).read_bytes()


@given(
    st.dictionaries(
        st.text("abcé/._-", min_size=1, max_size=12).filter(
            lambda name: not {"", ".", ".."} & set(name.split("/"))
        ),
        st.binary(max_size=300),
        max_size=6,
    )
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_files_come_back_as_they_went_in(tmp_path: Path, contents: dict[str, bytes]):
    archive(tmp_path / "any", contents)
    found = packed.Packed(tmp_path / "any")
    assert found.names == tuple(contents)
    for name, data in contents.items():
        with found.open(name) as file:
            assert file.read() == data
        with found.open(name) as file:
            assert hashlib.file_digest(file, "sha256").digest() == hashlib.sha256(data).digest()
    with zipfile.ZipFile(tmp_path / "any") as other:
        assert {name: other.read(name) for name in other.namelist()} == contents


def test_every_flipped_byte_is_refused(bundle: Bundle, tmp_path: Path):
    file = tmp_path / "made.bundle"
    bundle.pack(file)
    data = file.read_bytes()
    for position in range(len(data)):
        file.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        with pytest.raises((ValueError, FileNotFoundError), match=r"made\.bundle"):
            Bundle.open(file, bundle.digest)


def test_every_cut_and_what_is_added_are_refused(bundle: Bundle, tmp_path: Path):
    file = tmp_path / "made.bundle"
    bundle.pack(file)
    data = file.read_bytes()
    changed = [data[:size] for size in range(4, len(data))]
    for wrong in (*changed, data + b"\0", data + data, data[:4] + data):
        file.write_bytes(wrong)
        with pytest.raises(ValueError, match=r"made\.bundle"):
            Bundle.open(file)
    for none in (b"", b"PK", b"#!/bin/sh\n" + data):
        file.write_bytes(none)
        with pytest.raises(FileNotFoundError, match="no bundle at"):
            Bundle.open(file)


def test_a_file_that_the_manifest_does_not_name_is_refused(bundle: Bundle, tmp_path: Path):
    contents = {name: (bundle.path / name).read_bytes() for name in NAMES}
    archive(tmp_path / "more", {**contents, "run.sh": b"true"})
    with pytest.raises(ValueError, match=r"found 'run\.sh', which the manifest does not name"):
        Bundle.open(tmp_path / "more")
    for name in NAMES:
        archive(tmp_path / "less", {n: data for n, data in contents.items() if n != name})
        with pytest.raises(ValueError, match=f"'{name}' is missing"):
            Bundle.open(tmp_path / "less")
    archive(tmp_path / "other", {**contents, "model.onnx": b"x"})
    with pytest.raises(ValueError, match=r"model\.onnx: found digest .* it was changed"):
        Bundle.open(tmp_path / "other")


@pytest.mark.parametrize(
    "name", ["../model.onnx", "/model.onnx", "a/../b", "a//b", "./a", "a/", "a\\b", "C:a", "."]
)
def test_a_name_that_leads_elsewhere_is_neither_packed_nor_opened(tmp_path: Path, name: str):
    with pytest.raises(ValueError, match="a file's name: found"):
        archive(tmp_path / "any", {name: b"x"})
    assert os.listdir(tmp_path) == []
    safe = "A" * len(name)
    forged(tmp_path / "any", {safe: b"x"}, {safe.encode(): name.encode()})
    with pytest.raises(ValueError, match="a file's name: found"):
        packed.Packed(tmp_path / "any")


def forged(path: Path, contents: Mapping[str, bytes], swaps: Mapping[bytes, bytes]) -> None:
    """An archive in which bytes were put in the place of others, of the same length."""
    archive(path, contents)
    data = path.read_bytes()
    for old, new in swaps.items():
        data = data.replace(old, new) if old else data
    path.write_bytes(data)


def test_a_name_that_is_there_twice_is_refused(tmp_path: Path):
    forged(tmp_path / "any", {"a1": b"one", "a2": b"two"}, {b"a2": b"a1"})
    with pytest.raises(ValueError, match="'a1': found 'twice', allowed: each file once"):
        packed.Packed(tmp_path / "any")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (8, 1, "found 'encrypted'"),
        (10, 8, "compressed by method 8"),
        (20, 1, "compressed by method 0, 1 bytes for 3"),
        (24, 9, "compressed by method 0, 3 bytes for 9"),
        (12, 77, "another time"),
        (16, 77, "another header before the file"),
        (38, 77, "another time, place, mode"),
        (42, 77, "another time, place"),
    ],
)
def test_a_directory_that_lies_is_refused(tmp_path: Path, place: int, value: int, message: str):
    file = tmp_path / "any"
    archive(file, {"abc": b"xyz"})
    data = bytearray(file.read_bytes())
    data[data.index(b"PK\x01\x02") + place] = value
    file.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        packed.Packed(file)


def test_sizes_that_lie_in_both_places_are_refused(tmp_path: Path):
    file = tmp_path / "any"
    archive(file, {"abc": b"xyz"})
    data = file.read_bytes()
    for size in (b"\x02\0\0\0", b"\x40\0\0\0", b"\xff\xff\xff\xff"):
        file.write_bytes(data.replace(b"\x03\0\0\0" * 2, size * 2))
        with pytest.raises(ValueError, match="any"):
            packed.Packed(file)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_that_another_tool_made_is_refused(
    bundle: Bundle, tmp_path: Path, compression: int
):
    with zipfile.ZipFile(tmp_path / "theirs", "w", compression) as file:
        for name in NAMES:
            file.write(bundle.path / name, name)
    with pytest.raises(ValueError, match=r"theirs: 'manifest\.json': found"):
        Bundle.open(tmp_path / "theirs")


@given(st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_refused_with_a_value_error(tmp_path: Path, data: bytes):
    for found in (data, packed.MAGIC + data, packed.MAGIC + data + b"PK\x05\x06" + bytes(18)):
        (tmp_path / "any").write_bytes(found)
        with pytest.raises(ValueError):
            packed.Packed(tmp_path / "any")


def test_what_was_packed_before_stays_when_packing_fails(bundle: Bundle, tmp_path: Path):
    file = tmp_path / "made.bundle"
    bundle.pack(file)
    before = file.read_bytes()
    (bundle.path / "model.onnx").write_bytes(b"changed since")
    (bundle.path / "statistics.json").unlink()
    with pytest.raises(FileNotFoundError):
        bundle.pack(file)
    assert file.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["bundle", "made.bundle"]


def test_what_was_changed_since_it_was_opened_is_not_read(bundle: Bundle, tmp_path: Path):
    one = bundle.pack(tmp_path / "made.bundle")
    data = one.path.read_bytes()
    one.path.write_bytes(data.replace(b"Neg", b"Abs"))
    (bundle.path / "model.onnx").write_bytes(b"changed")
    for changed in (one, bundle):
        with pytest.raises(ValueError, match=r"model\.onnx: found digest"):
            changed.predict([{"x": 1.0}])
        assert json.loads(changed.read("manifest.json"))["name"] == "made"
        with pytest.raises(ValueError, match=r"unknown file '\.\./x'"):
            changed.read("../x")


def test_an_archive_of_four_gigabytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(packed, "_MOST_BYTES", 1000)
    with pytest.raises(ValueError, match="allowed: 1000 in one file"):
        packed.write(tmp_path / "any", {"a": partial(opener(bytes(2000)))})
    assert os.listdir(tmp_path) == []
