"""Every engine answers what core.sketch.measure answers over the whole table in memory."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import drivetrain.features.engines.duckdb as engine
from drivetrain.core.measured import Value, measure, to_json
from drivetrain.core.metric import Metric, Progress
from drivetrain.core.schema import MISSING_INT, Field, Schema
from drivetrain.core.sketch import Counts, DistinctSketch, MomentsValue, QuantileSketch
from drivetrain.core.statistic import Distinct, Moments, Quantiles, Statistic, TopK
from drivetrain.features.engines.duckdb import DuckDB
from drivetrain.features.engines.streaming import Streaming

ENGINES = [DuckDB(threads=2), Streaming()]
anything = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def numeric(column: str) -> list[Statistic]:
    return [Moments(column), Moments(column, "signed_log"), Quantiles(column)]


def counted(column: str, capacity: int = 1 << 20) -> list[Statistic]:
    return [TopK(column, capacity), Distinct(column)]


def assert_same(found: Value, expected: Value) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, MomentsValue):
        assert isinstance(found, MomentsValue)
        assert (found.count, found.missing) == (expected.count, expected.missing)
        assert (found.minimum, found.maximum) == (expected.minimum, expected.maximum)
        if not expected.count:
            return
        largest = max(abs(expected.minimum), abs(expected.maximum))
        assert found.mean == pytest.approx(expected.mean, rel=1e-12, abs=1e-14 * largest)
        # A spread below the rounding of the numbers themselves is no spread.
        noise = expected.count * (largest * 1e-13) ** 2
        assert found.m2 == pytest.approx(expected.m2, rel=1e-11, abs=noise)
    elif isinstance(expected, QuantileSketch):
        assert isinstance(found, QuantileSketch)
        assert found.precision == expected.precision
        np.testing.assert_array_equal(found.keys, expected.keys)
        np.testing.assert_array_equal(found.counts, expected.counts)
        assert found.missing == expected.missing
        np.testing.assert_array_equal(
            (found.minimum, found.maximum), (expected.minimum, expected.maximum)
        )
    elif isinstance(expected, Counts):
        assert found == expected
    else:
        assert isinstance(found, DistinctSketch)
        np.testing.assert_array_equal(found.registers, expected.registers)


def assert_measures(source: Any, statistics: list[Statistic], which: Any) -> None:
    fitted = which.aggregate(source, statistics)
    assert list(fitted) == statistics
    whole = source.whole()
    for statistic in statistics:
        assert_same(fitted[statistic], measure(statistic, whole))


floats = st.one_of(
    st.none(),
    st.sampled_from([0.0, -0.0, math.nan, math.inf, -math.inf, 5e-324, -2.5e-310, 1.0, -1.0]),
    st.floats(-1e6, 1e6),
    st.floats(-1e140, 1e140),
)


@pytest.fixture(params=ENGINES, ids=lambda which: type(which).__name__)
def each(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=[engine.FEW, 0], ids=["grouped", "flowing"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numeric columns go both ways of the DuckDB engine, whatever their values."""
    monkeypatch.setattr(engine, "FEW", request.param)


@anything
@given(values=st.lists(floats, max_size=40))
def test_numbers_measure_as_in_memory(parquet: Any, way: None, each: Any, values: Any) -> None:
    source = parquet(pa.table({"x": pa.array(values, pa.float64())}))
    assert_measures(source, numeric("x"), each)


@anything
@given(values=st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=40))
def test_sketch_keys_agree_to_the_bit_over_all_floats(
    parquet: Any, way: None, each: Any, values: Any
) -> None:
    source = parquet(pa.table({"x": pa.array(values, pa.float64())}))
    assert_measures(source, [Quantiles("x")], each)


@anything
@given(
    values=st.lists(
        st.one_of(st.none(), st.integers(-5, 5), st.integers(-(2**63), 2**63 - 1)), max_size=40
    )
)
def test_integers_are_counted_as_in_memory(parquet: Any, way: None, each: Any, values: Any) -> None:
    source = parquet(pa.table({"i": pa.array(values, pa.int64())}))
    assert_measures(source, [*counted("i"), Quantiles("i")], each)


@anything
@given(values=st.lists(st.one_of(st.none(), st.text(max_size=3)), max_size=40))
def test_texts_are_counted_as_in_memory(parquet: Any, each: Any, values: Any) -> None:
    source = parquet(pa.table({"s": pa.array(values, pa.string())}))
    assert_measures(source, counted("s"), each)


def test_a_vocabulary_beyond_its_capacity_says_how_many_fell_out(parquet: Any, each: Any) -> None:
    texts = ["a"] * 5 + ["b"] * 3 + ["é"] * 3 + ["z"] + [None, ""]
    source = parquet(pa.table({"s": texts}))
    statistic = TopK("s", capacity=2)
    found = each.aggregate(source, [statistic])[statistic]
    assert found == Counts((("a", 5), ("b", 3)), missing=2, others=4, capacity=2)


SECOND = 1_000_000
COLUMNS: dict[str, pa.Array] = {
    "bool": pa.array([True, None, False, True]),
    "int8": pa.array([1, None, -3, 1], pa.int8()),
    "uint64": pa.array([1, None, 2**62, 1], pa.uint64()),
    "float32": pa.array([0.1, None, float("nan"), 3.3], pa.float32()),
    "float16": pa.array([0.1, None, 2.0, 3.3], pa.float16()),
    "decimal": pa.array([1, None, -(10**9) - 1, 7], pa.int64()).cast(pa.decimal128(24, 2)),
    "date": pa.array([0, None, 20_000, -1], pa.date32()),
    "seconds": pa.array([0, None, 5, -7], pa.timestamp("s")),
    "nanoseconds": pa.array([1_500, None, 1_400, -1_500], pa.timestamp("ns")),
    "zoned": pa.array([SECOND, None, 3, -SECOND], pa.timestamp("us", "Europe/Paris")),
    "list": pa.array([[1.0, 2.0], None, [3.0, float("nan")], [0, 0]], pa.list_(pa.float32(), 2)),
    "nothing": pa.nulls(4, pa.float64()),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_each_arrow_type_is_measured_as_a_batch_holds_it(
    parquet: Any, way: None, each: Any, name: str
) -> None:
    source = parquet(pa.table({name: COLUMNS[name]}))
    assert_measures(source, numeric(name), each)


@pytest.mark.parametrize("name", ["bool", "int8", "uint64", "date", "nanoseconds", "zoned"])
def test_each_integer_like_type_is_counted_as_a_batch_holds_it(
    parquet: Any, each: Any, name: str
) -> None:
    source = parquet(pa.table({name: COLUMNS[name]}))
    assert_measures(source, counted(name), each)


def test_a_column_declared_as_another_type_is_measured_as_declared(parquet: Any, each: Any) -> None:
    table = pa.table({"x": [0.1, 2.0, None]})
    source = parquet(table, schema=Schema((Field("x", "float32"),)))
    assert_measures(source, numeric("x"), each)


def test_a_column_null_throughout_counts_nothing(parquet: Any, each: Any) -> None:
    table = pa.table({"s": pa.nulls(3, pa.string()), "x": pa.nulls(3, pa.float64())})
    source = parquet(table)
    fitted = each.aggregate(source, [TopK("s"), Moments("x"), Quantiles("x")])
    assert fitted[TopK("s")] == Counts(missing=3)
    assert fitted[Moments("x")] == MomentsValue(missing=3)
    assert fitted[Quantiles("x")].missing == 3


def test_an_empty_table_has_empty_values(parquet: Any, each: Any) -> None:
    source = parquet(pa.table({"s": pa.array([], pa.string()), "x": pa.array([], pa.float64())}))
    assert_measures(source, [*counted("s"), *numeric("x")], each)


def test_two_files_are_measured_as_one_table(parquet: Any, way: None, each: Any) -> None:
    left = pa.table({"s": ["a", "b"], "x": [1.0, None]})
    right = pa.table({"s": ["b", None], "x": [-4.0, 1e-3]})
    source = parquet(left, right)
    assert_measures(source, [*counted("s"), *numeric("x")], each)


def test_the_name_of_a_folder_is_no_column(parquet: Any, tmp_path: Path) -> None:
    source = parquet(pa.table({"k": [1, 2, 2]}))
    folder = tmp_path / "k=7"
    folder.mkdir()
    path = Path(source.paths[0]).rename(folder / "p.parquet")
    source = replace(source, paths=(str(path),))
    assert_measures(source, [*counted("k"), *numeric("k")], DuckDB(threads=1))


def made(rows: int) -> pa.Table:
    random = np.random.default_rng(0)
    return pa.table(
        {
            "wide": random.lognormal(0, 3, rows) * random.choice([-1, 1], rows),
            "id": random.integers(0, 10**12, rows),
            "few": random.integers(0, 9, rows),
            "word": random.choice(np.array(["x", "yy", "", "zzz"]), rows),
        }
    )


def test_made_rows_agree_beyond_one_chunk_and_one_bucket_limit(parquet: Any, each: Any) -> None:
    source = replace(parquet(made(80_000), made(1_000)), rows_at_once=9_000)
    statistics = [
        *numeric("wide"), *numeric("id"), *numeric("few"), *counted("few"), *counted("word")
    ]  # fmt: skip
    assert_measures(source, statistics, each)


def test_a_grouped_column_of_too_many_values_flows(
    parquet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "MANY", 10)
    source = parquet(made(1_000))
    assert_measures(source, [TopK("id"), *numeric("id"), *numeric("few")], DuckDB(threads=2))


def test_the_same_file_gives_the_same_bits_however_many_threads(parquet: Any) -> None:
    source = parquet(made(150_000))
    statistics = [*numeric("wide"), *numeric("id"), *numeric("few"), *counted("word")]
    first = to_json(DuckDB(threads=2).aggregate(source, statistics))
    for threads in (1, 2, 3):
        assert to_json(DuckDB(threads=threads).aggregate(source, statistics)) == first


def test_a_source_without_files_is_streamed(parquet: Any) -> None:
    whole = parquet(made(100)).whole()

    class Memory:
        schema = Schema((Field("few", "int64"),))

        def batches(self, split: str) -> Any:
            yield whole.slice(0, 60)
            yield whole.slice(60, 100)

    found = DuckDB().aggregate(Memory(), [Moments("few")])  # pyright: ignore[reportArgumentType]
    assert_same(found[Moments("few")], measure(Moments("few"), whole))


def test_missing_integers_written_out_are_missing(parquet: Any, each: Any) -> None:
    source = parquet(pa.table({"i": [1, MISSING_INT, 2]}))
    found = each.aggregate(source, [TopK("i"), Moments("i")])
    assert found[TopK("i")].missing == 1
    assert found[Moments("i")].missing == 1


@pytest.mark.parametrize("statistic", [Moments("word"), Quantiles("word")])
def test_moments_of_text_are_refused(parquet: Any, each: Any, statistic: Statistic) -> None:
    with pytest.raises(ValueError, match=r"column 'word': found 'string', allowed: .*int64"):
        each.aggregate(parquet(made(3)), [statistic])


@pytest.mark.parametrize("statistic", [TopK("wide"), Distinct("wide")])
def test_counts_of_floats_are_refused(parquet: Any, each: Any, statistic: Statistic) -> None:
    with pytest.raises(ValueError, match=r"column 'wide': found 'float64', allowed: .*string"):
        each.aggregate(parquet(made(3)), [statistic])


def test_counts_of_lists_are_refused(parquet: Any, each: Any) -> None:
    table = pa.table({"l": pa.array([[1, 2]], pa.list_(pa.int64(), 2))})
    with pytest.raises(ValueError, match="allowed: one value a row"):
        each.aggregate(parquet(table), [TopK("l")])


def test_an_unknown_column_suggests_the_nearest(parquet: Any, each: Any) -> None:
    with pytest.raises(ValueError, match="Did you mean 'word'"):
        each.aggregate(parquet(made(3)), [TopK("wrod")])


def test_a_torn_file_is_an_error_that_names_it(parquet: Any) -> None:
    source = parquet(made(100))
    with open(source.paths[0], "r+b") as file:
        file.truncate(200)
    with pytest.raises(ValueError, match=r"0\.parquet"):
        DuckDB().aggregate(source, [Moments("wide")])


def test_an_unreadable_memory_limit_is_the_users_mistake(parquet: Any) -> None:
    with pytest.raises(ValueError, match="Unknown unit for memory"):
        DuckDB(memory="1 elephant").aggregate(parquet(made(3)), [Moments("few")])


def test_progress_and_figures_are_emitted(parquet: Any, each: Any) -> None:
    heard: list[Any] = []
    each.aggregate(parquet(made(100)), [Moments("wide"), TopK("word")], heard.append)
    figures = {item.name: item for item in heard if isinstance(item, Metric)}
    assert figures["features/train_rows"].value == 100
    assert figures["features/fit_seconds"].value > 0
    assert not figures["features/fit_seconds"].repeatable
    progress = [item for item in heard if isinstance(item, Progress)]
    assert progress[-1].done == progress[-1].total or progress[-1].total is None
