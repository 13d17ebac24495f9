"""Joins: a table that lies by key in memory gives what the engine gives of a large one."""

from datetime import datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drivetrain.events import Parquet, col, holding
from drivetrain.events.duckdb import Limits, engine
from drivetrain.events.plan import compile_plan
from drivetrain.events.stages import Match

N = 40
MOMENTS = [datetime(2026, 1, 1 + i % 7) for i in range(N)]
LEFT = {
    "row": range(N),
    "n": [None if i % 9 == 4 else i * 7 % 23 - 3 for i in range(N)],
    "far": [(i % 11) * 10**12 for i in range(N)],
    "S": [None if i % 8 == 3 else "" if i % 5 == 0 else f"s{i % 6}" for i in range(N)],
    "b": [bytes([i % 4]) for i in range(N)],
    "x": [None if i % 10 == 2 else (i % 5) / 2 - 1 for i in range(N)],
    "t": [None if i % 13 == 5 else MOMENTS[i] for i in range(N)],
}


def other(key):
    """Of the values of a key every second once, with columns to add."""
    values = [value for value in dict.fromkeys(LEFT[key]) if value is not None][::2]
    size = len(values) + 1
    names = [f"of {i}" if i % 3 else None for i in range(size)]
    return {key: [*values, None], "Name": names, "v": range(size)}


@pytest.fixture
def joined(tmp_path, monkeypatch):
    """``joined(table, large=…)``: the rows of a plan, and the types of its stages."""

    def rows(table, large=False):
        with monkeypatch.context() as patch:
            patch.setattr(holding, "LARGE", -1 if large else 1 << 20)
            with engine(Limits(threads=2)) as running:
                limits = Limits(chunk=16)
                plan = compile_plan(table, table.schema.names, running, limits, split=False)
                parts = list(plan.over(plan.spine.chunks(plan.reads, limits.chunk)))
        found = [row for part in parts for row in part.to_pylist()]
        return found, plan

    return rows


@pytest.fixture
def file(tmp_path):
    """``file(name, columns)``: a Parquet file as a table."""

    def write(name, columns):
        pq.write_table(pa.table(columns), tmp_path / name)
        return Parquet(tmp_path / name)

    return write


@pytest.mark.parametrize("how", ["left", "inner"])
@pytest.mark.parametrize("key", ["n", "far", "S", "b", "t", "x"])
def test_both_ways_give_the_same_rows(joined, file, key, how):
    left = file("left", LEFT)
    table = left.join(file("right", other(key)), on=key, how=how)
    small, plan = joined(table)
    large, engines = joined(table, large=True)
    assert small == large
    assert 0 < sum(row["v"] is not None for row in small) < N
    assert [row["row"] for row in small] == sorted(row["row"] for row in small)
    assert any(isinstance(stage, Match) for stage in plan.stages)
    assert not any(isinstance(stage, Match) for stage in engines.stages)
    assert [(t.rows, t.kept) for t in plan.tallies] == [(t.rows, t.kept) for t in engines.tallies]


def test_keys_of_several_columns_are_equal_in_each(joined, file):
    right = {"S": ["s1", "s1", "s2", None], "b": [b"\1", b"\2", b"\2", b"\3"], "v": [1, 2, 3, 4]}
    table = file("left", LEFT).join(file("right", right), on=("S", "b"), how="inner")
    small, _ = joined(table)
    assert small == joined(table, large=True)[0]
    assert {(row["S"], row["b"], row["v"]) for row in small} == {("s1", b"\1", 1), ("s2", b"\2", 3)}


def test_steps_around_joins_see_what_they_would_in_one_query(joined, file):
    right, third = file("right", other("n")), file("third", {"Name": ["of 1", "of 2"], "w": [5, 6]})
    table = (
        file("left", LEFT)
        .with_columns(n=col("n") + 0, twice=col("row") * 2)
        .join(right, on="n", columns=("Name",))
        .rename(again="row")
        .join(third, on="Name")
        .where(col("w").is_null() | (col("w") == 6))
        .with_columns(w=col("w") + col("twice"))
        .drop("x", "t")
    )
    small, _ = joined(table)
    assert small == joined(table, large=True)[0]
    assert {row["w"] is None for row in small} == {True, False}


def test_zeros_are_equal_whatever_their_sign(joined, file):
    left, right = file("left", {"x": [0.0, -0.0, 1.0]}), file("right", {"x": [-0.0], "v": [7]})
    table = left.join(right, on="x")
    assert [row["v"] for row in joined(table)[0]] == [7, 7, None]
    assert [row["v"] for row in joined(table, large=True)[0]] == [7, 7, None]


@pytest.mark.parametrize("large", [False, True])
def test_arrays_are_those_of_the_key(joined, file, large):
    pairs = pa.FixedSizeListArray.from_arrays(pa.array(range(2 * N), pa.int64()), 2)
    right = file("right", {"row": range(0, 2 * N, 2), "pair": pairs})
    found, _ = joined(file("left", LEFT).join(right, on="row"), large=large)
    assert [row["pair"] for row in found] == [None if i % 2 else [i, i + 1] for i in range(N)]


def test_a_table_without_rows_matches_nothing(joined, file):
    empty = pa.table({"n": pa.array([], pa.int64()), "v": pa.array([], pa.string())})
    for how, kept in (("left", N), ("inner", 0)):
        found, _ = joined(file("left", LEFT).join(file("right", empty), on="n", how=how))
        assert [row["v"] for row in found] == [None] * kept


def test_what_lies_by_key_leaves_the_engine(joined, file):
    table = file("left", LEFT).join(file("right", other("n")), on="n")
    with engine(Limits(threads=1)) as running:
        compile_plan(table, table.schema.names, running, Limits(), split=False)
        assert running.connection.sql("SELECT count(*) FROM duckdb_tables()").fetchall() == [(0,)]
