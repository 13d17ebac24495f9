"""The verbs that measure a registered bundle and move its alias."""

import json
import re
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

Drive = Callable[..., tuple[int, str, str]]
Child = Callable[..., "subprocess.CompletedProcess[str]"]
Served = Callable[..., AbstractContextManager[str]]


def test_test_measures_the_test_split_again_as_registered(
    drive: Drive, ran: Any, here: Any
) -> None:
    status, out, err = drive("test", ran.bundle.digest, *here)
    assert status == 0, err
    assert re.search(r"test/auc 0\.\d+ \(at least 0\.6\)  as registered", out)
    assert "latency/p99_ms" in out


def test_test_measures_rows_of_another_file(
    drive: Drive, ran: Any, here: Any, make_events: Any, tmp_path: Path
) -> None:
    pq.write_table(make_events(rows=900, seed=5), tmp_path / "other.parquet")
    arguments = ("test", ran.bundle.digest, "--data", tmp_path / "other.parquet", *here, "--json")
    status, out, err = drive(*arguments)
    assert status == 0, err
    found = {m["name"]: m for m in map(json.loads, out.splitlines())}
    assert found["test/auc"]["holds"] is True
    assert found["test/auc"]["value"] != ran.bundle.manifest.metrics["test/auc"]
    pq.write_table(make_events(rows=90).drop(["shop"]), tmp_path / "other.parquet")
    status, _, err = drive(*arguments)
    assert status == 2
    assert "unknown column 'shop'" in json.loads(err)["error"]


def test_test_says_so_when_its_rows_are_gone(drive: Drive, ran: Any, tmp_path: Path) -> None:
    status, _, err = drive("test", ran.bundle.path, f"--set=work={tmp_path}")
    assert status == 2
    assert "--data" in err


def test_test_ends_with_1_when_a_bound_is_broken(
    drive: Drive, ran: Any, here: Any, make_events: Any, tmp_path: Path
) -> None:
    turned = make_events(rows=600)
    bad = [1 - value for value in turned["bad"].to_pylist()]
    pq.write_table(make_events(rows=600, bad=bad), tmp_path / "turned.parquet")
    status, out, _ = drive("test", ran.bundle.digest, "--data", tmp_path / "turned.parquet", *here)
    assert status == 1
    assert re.search(r"test/auc .*BROKEN", out)


def test_a_damaged_bundle_is_refused(drive: Drive, ran: Any, here: Any, tmp_path: Path) -> None:
    model = tmp_path / "store" / "bundles" / ran.bundle.digest / "model.onnx"
    model.write_bytes(model.read_bytes().replace(b"bad", b"bed", 1))
    for verb in (("test", ran.bundle.digest), ("promote", ran.bundle.digest, "made")):
        status, _, err = drive(*verb, *here)
        assert status == 2
        assert "model.onnx" in err


def test_promote_and_rollback_move_an_alias(drive: Drive, ran: Any, here: Any) -> None:
    first = ran.bundle.digest
    status, out, _ = drive("run", ran.file, *here, "--set=compress=[]", "--json")
    second = json.loads(out.splitlines()[-1])["bundle"]
    assert (status, second != first) == (0, True)
    for digest in (first, second):
        status, out, _ = drive("promote", digest, "made", *here)
        assert status == 0
        assert out == f"made is {digest}\nnext: drivetrain serve made\n"
    status, out, _ = drive("rollback", "made", *here)
    assert (status, out) == (0, f"made is {first} again\n")
    status, _, err = drive("rollback", "made", *here)
    assert status == 2
    assert "never meant another" in err


def test_an_unknown_alias_suggests_the_nearest(drive: Drive, ran: Any, here: Any) -> None:
    drive("promote", ran.bundle.digest, "made", *here)
    for verb in ("rollback", "serve", "show", "test", "watch"):
        status, _, err = drive(verb, "maed", *here)
        assert status == 2
        assert "Did you mean 'made'" in err, verb
