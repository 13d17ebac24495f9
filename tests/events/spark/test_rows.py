"""Rows between Arrow and Spark, and where an executor lays what it cannot hold."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

import drivetrain as dt
from drivetrain.events.dialect.sql import identifier
from drivetrain.events.spark.frames import _walked
from drivetrain.events.spark.rows import local_directory, named
from drivetrain.events.windows import WithWindows


def test_an_executor_spills_into_the_first_directory_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARK_LOCAL_DIRS", f"{tmp_path},/elsewhere")
    assert local_directory() == tmp_path
    monkeypatch.setenv("SPARK_LOCAL_DIRS", str(tmp_path / "absent"))
    assert local_directory() is None
    monkeypatch.delenv("SPARK_LOCAL_DIRS")
    assert local_directory() is None


def test_windows_are_walked_in_the_executors_own_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARK_LOCAL_DIRS", str(tmp_path))
    leaf = dt.Kafka("topic", servers="a:1", types={"k": "string", "at": "timestamp"}, time="at")
    step = leaf.with_windows(seen=dt.Window(by="k", stat="count"))
    assert isinstance(step, WithWindows)
    held: list[Path] = []

    def chunks() -> Iterator[pa.Table]:
        held.extend(tmp_path.rglob("windows-*"))
        rows = pa.table({"k": ["a", "a", "b"], "at": pa.array([1, 2, 3], pa.timestamp("us"))})
        yield named(rows, pa.array([0, 1, 2]))

    keep = [identifier(name) for name in leaf.schema.names]
    (found,) = _walked(step.windows, leaf.schema, keep, "test", chunks())
    assert found[identifier("seen")].to_pylist() == [0, 1, 0]
    assert len(held) == 1
    assert not [*tmp_path.iterdir()], "and nothing is left"
