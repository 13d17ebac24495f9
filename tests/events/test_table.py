"""Plans: what each step does to columns and rows, whatever the chunks."""

import os
import subprocess
import sys
from datetime import datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.core.describe import digest
from drivetrain.core.seams import SPLITS, Shard, Source
from drivetrain.events import HashSplit, Parquet, TimeSplit, col
from drivetrain.events.duckdb import Limits, engine
from drivetrain.events.plan import batches, compile_plan, stream


@pytest.fixture
def table(tmp_path):
    """``table(name=[…])``: columns in a Parquet file, as a table."""

    def make(file="rows", **columns):
        path = tmp_path / f"{file}.parquet"
        pq.write_table(pa.table(columns), path)
        return Parquet(path)

    return make


def rows(table, chunk=1000):
    """The rows of a plan in order, with None for what is missing."""
    limits = Limits(threads=1, chunk=chunk)
    with engine(limits) as running:
        parts = list(stream(table, table.schema.names, running, limits))
    return [row for part in parts for row in part.to_pylist()]


def test_a_table_is_a_source_and_describes_itself(table):
    one = table(a=[1]).where(col("a") > 0).split(HashSplit())
    assert isinstance(one, Source)
    assert digest(one) == digest(table(a=[1]).where(col("a") > 0).split(HashSplit()))
    assert digest(one) != digest(table(a=[1]).where(col("a") > 1).split(HashSplit()))


def test_where_keeps_what_is_true_and_drops_null(table):
    kept = table(a=[1, None, 0], b=["x", "y", "z"]).where(col("a") > 0)
    assert rows(kept) == [{"a": 1, "b": "x"}]
    assert rows(table(a=[1, None, 0]).where(col("a"))) == [{"a": 1}]


def test_new_columns_see_the_columns_as_they_were(table):
    made = table(a=[1], b=[2]).with_columns(a=col("b"), b=col("a"), c=col("a") > 5)
    assert rows(made) == [{"a": 2, "b": 1, "c": 0}]
    assert [f.dtype for f in made.schema] == ["int64", "int64", "int64"]


def test_columns_are_chosen_dropped_and_renamed(table):
    made = table(a=[1], b=[2], c=[3])
    assert rows(made.select("c", "a")) == [{"c": 3, "a": 1}]
    assert rows(made.drop("b")) == [{"a": 1, "c": 3}]
    assert rows(made.rename(z="a")) == [{"z": 1, "b": 2, "c": 3}]
    assert rows(made.rename(a="b", b="a")) == [{"b": 1, "a": 2, "c": 3}]


def test_columns_that_no_step_changes_stay_with_their_rows(table):
    size = 200
    texts = [None if n % 7 == 0 else f"t{n}" for n in range(size)]
    pairs = pa.FixedSizeListArray.from_arrays(pa.array(range(2 * size), pa.int64()), 2)
    made = (
        table(n=range(size), s=texts, p=pairs)
        .where(col("n") % 3 != 1)
        .with_columns(twice=col("n") * 2)
        .rename(again="n", t="s")
        .where(col("twice") % 5 != 0)
        .drop_nulls("t")
        .select("t", "p", "twice", "again")
    )
    due = [
        {"t": f"t{n}", "p": [2 * n, 2 * n + 1], "twice": 2 * n, "again": n}
        for n in range(size)
        if n % 3 != 1 and n % 5 != 0 and n % 7 != 0
    ]
    for chunk in (3, 64, 1000):
        assert rows(made, chunk) == due


def test_drop_nulls_takes_nan_for_null_and_keeps_infinity(table):
    made = table(a=[1.0, None, float("nan"), float("inf")], b=["", "x", "y", None])
    assert [row["a"] for row in rows(made.drop_nulls("a"))] == [1.0, float("inf")]
    assert rows(made.drop_nulls()) == [{"a": 1.0, "b": ""}]


def test_drop_duplicates_keeps_the_first_over_all_chunks(table):
    made = table(k=[1, 2, 1, None, 2, None, 3], v=list("abcdefg"))
    kept = [row["v"] for row in rows(made.drop_duplicates("k"))]
    assert kept == ["a", "b", "d", "g"]
    assert [row["v"] for row in rows(made.drop_duplicates("k"), 2)] == kept
    assert len(rows(made.drop_duplicates(), 2)) == 7


def test_join_adds_columns_and_leaves_rows_as_they_are(table):
    left = table("left", k=["b", "x", None, "a", "b"], n=[1, 2, 3, 4, 5])
    right = table("right", k=["a", "b", None], v=[1.5, 2.5, 9.0], w=[0, 0, 0])
    joined = left.join(right, on="k", columns=("v",))
    assert [(row["n"], row["v"]) for row in rows(joined, 2)] == [
        (1, 2.5),
        (2, None),
        (3, None),
        (4, 1.5),
        (5, 2.5),
    ]
    assert joined.schema.names == ("k", "n", "v")
    inner = left.join(right, on={"k": "k"}, how="inner")
    assert [row["n"] for row in rows(inner)] == [1, 4, 5]


def test_join_on_a_key_that_occurs_twice_names_it(table):
    left = table("left", k=["a"])
    right = table("right", k=["a", "b", "b"], v=[1, 2, 3])
    with pytest.raises(ValueError, match=r"join\(on='k'.*found the key k = 'b' 2 times"):
        rows(left.join(right, on="k"))
    assert rows(left.join(right.drop_duplicates("k"), on="k")) == [{"k": "a", "v": 1}]


def test_joined_table_is_a_plan_itself(table):
    left = table("left", k=[1, 2])
    other = table("right", k=[1, 2], v=[10, 20])
    third = table("third", v=[20], name=["twenty"])
    joined = left.join(other.join(third, on="v").where(col("k") > 1), on="k")
    assert rows(joined) == [
        {"k": 1, "v": None, "name": None},
        {"k": 2, "v": 20, "name": "twenty"},
    ]


def test_names_on_both_sides_need_a_suffix(table):
    left, right = table("left", k=[1], v=[1]), table("right", k=[1], v=[2])
    with pytest.raises(ValueError, match="found 'v' on both sides"):
        _ = left.join(right, on="k").schema
    assert rows(left.join(right, on="k", suffix="_right")) == [{"k": 1, "v": 1, "v_right": 2}]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda t: t.where(col("distnce") > 1), r"where\(.*Did you mean 'distance'"),
        (lambda t: t.with_columns(x=col("distnce")), r"with_columns\(x=.*Did you mean 'distance'"),
        (lambda t: t.select("distnce"), "in select. Did you mean 'distance'"),
        (lambda t: t.drop("distnce"), "in drop. Did you mean 'distance'"),
        (lambda t: t.rename(d="distnce"), "in rename. Did you mean 'distance'"),
        (lambda t: t.drop_nulls("distnce"), "Did you mean 'distance'"),
        (lambda t: t.drop_duplicates("distnce"), "Did you mean 'distance'"),
        (lambda t: t.join(t, on="distnce"), "Did you mean 'distance'"),
        (lambda t: t.join(t, on={"distance": "name"}), "keys of one type"),
        (lambda t: t.split(HashSplit(columns=("distnce",))), "Did you mean 'distance'"),
        (lambda t: t.rename(name="distance"), "found twice: name"),
        (lambda t: t.where(col("name") + 1), "allowed: numbers"),
    ],
)
def test_wrong_step_is_found_by_looking_at_the_schema(table, build, message):
    made = build(table(distance=[1], name=["x"]))
    with pytest.raises(ValueError, match=message):
        _ = made.schema


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda t: t.where(True), "an expression"),
        (lambda t: t.select(), "at least one name"),
        (lambda t: t.drop(["a"]), "each an argument of its own"),
        (lambda t: t.select("a", "a"), "found 'a' twice"),
        (lambda t: t.join(t, on=()), "at least one column"),
        (lambda t: t.join(t, on="a", how="lefft"), "Did you mean 'left'"),
        (lambda t: t.join(t, on="a", columns="b"), r"\('b',\)"),
        (lambda t: t.split("2013"), "a TimeSplit, a HashSplit or a ColumnSplit"),
        (lambda t: t.split(HashSplit()).split(HashSplit()), "one split"),
        (lambda t: Parquet(()), "at least one path"),
    ],
)
def test_wrong_declaration_is_an_error_at_once(build, message):
    with pytest.raises(ValueError, match=message):
        build(Parquet("no/such/file.parquet"))


def test_only_needed_columns_are_read(table):
    made = (
        table(a=[1], b=[2], c=[3], d=[4])
        .with_columns(x=col("a") + 1, y=col("b") + 1)
        .where(col("c") > 0)
    )
    limits = Limits(threads=1)
    with engine(limits) as running:
        plan = compile_plan(made, ["x"], running, limits, split=False)
        assert plan.reads.names == ("a", "c")
        plan = compile_plan(made.split(HashSplit(columns=("d",))), ["x"], running, limits)
        assert plan.reads.names == ("a", "c", "d")


def test_rows_without_a_time_belong_to_no_split_and_are_counted(table):
    at = [datetime(2013, 1, 1), None, datetime(2013, 12, 1)]
    made = table(n=[1, 2, 3], at=pa.array(at, pa.timestamp("us"))).split(
        TimeSplit(validate="2013-10-01", test="2013-11-01", column="at")
    )
    assert [[row["n"] for b in made.batches(s) for row in b.rows()] for s in SPLITS] == [
        [1],
        [],
        [3],
    ]
    limits = Limits(threads=1)
    with engine(limits) as running:
        plan = compile_plan(made, ["n"], running, limits)
        plan.run(pq.read_table(made.chain()[0].urls[0]))
    assert (plan.tallies[-1].rows, plan.tallies[-1].kept) == (3, 2)


def test_a_column_all_null_goes_through(table):
    made = table(a=pa.nulls(3, pa.float64()), b=pa.nulls(3), c=[1, 2, 3])
    assert rows(made.with_columns(d=col("a") + col("c"), e=col("b").fill_null("?"))) == [
        {"a": None, "b": None, "c": n, "d": None, "e": "?"} for n in (1, 2, 3)
    ]


def test_arrays_and_bytes_pass_through(table):
    images = pa.array([[1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float32(), 2))
    made = table(v=images, b=[b"x", None, b"\0"], n=[1, 2, 3]).where(col("n") != 2)
    assert rows(made) == [{"v": [1, 2], "b": b"x", "n": 1}, {"v": [3, 4], "b": b"\0", "n": 3}]
    assert made.schema.field("v").shape == (2,)


def test_names_of_the_engine_cannot_be_columns(table):
    with pytest.raises(ValueError, match="the engine uses this one"):
        rows(table(a=[1]).with_columns(__row__=1))


KEYS = st.lists(
    st.tuples(st.none() | st.integers(0, 5), st.integers(0, 40), st.none() | st.floats(width=32)),
    min_size=1,
    max_size=40,
)


@settings(derandomize=True, deadline=None, max_examples=8)
@given(KEYS, st.integers(4, 45))
def test_rows_do_not_depend_on_the_chunks(tmp_path_factory, made, chunk):
    folder = tmp_path_factory.mktemp("chunks")
    k, t, x = zip(*made, strict=True)
    time = pa.array(t, pa.int64()).cast(pa.timestamp("us"))
    columns = {"k": pa.array(k, pa.int64()), "t": time, "x": pa.array(x, pa.float64())}
    pq.write_table(pa.table(columns), folder / "a.parquet")
    spine = Parquet(folder / "a.parquet")
    lookup = spine.drop_duplicates("k").select("k", "x").rename(first="x")
    plan = (
        spine.where(col("t") >= "1970-01-01T00:00:00.000005")
        .join(lookup, on="k")
        .join_asof(spine, time="t", by="k", columns=("x",), suffix="_before")
        .with_columns(y=col("x") * 2 - col("first").fill_null(0.5))
        .drop_duplicates("k", "t")
    )
    assert rows(plan, chunk) == rows(plan, 1_000)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("stateful", [False, True])
def test_shards_hold_every_row_once(table, count, stateful):
    made = table(n=list(range(100)), k=[i % 60 for i in range(100)]).split(HashSplit())
    if stateful:
        made = made.drop_duplicates("k")
    found = [
        n
        for split in SPLITS
        for index in range(count)
        for batch in batches(made, split, Shard(index, count), Limits(threads=1, chunk=17))
        for n in batch["n"].tolist()
    ]
    assert sorted(found) == list(range(60 if stateful else 100))


def test_declaring_a_table_imports_nothing_heavy():
    code = (
        "import sys; from drivetrain.events import *; "
        "t = Parquet('x', time='t').where(col('a') > 1).join(CSV('y'), on='k')"
        ".join_asof(Arrow('z'), time='t')"
        ".split(TimeSplit(validate='2013-10-01', test='2013-11-01'));"
        "print([m for m in ('numpy', 'pyarrow', 'duckdb', 'fsspec', 'torch') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "[]"
