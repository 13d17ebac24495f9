"""The engine of Spark answers what the engine of DuckDB answers, to the last bit."""

from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import drivetrain.features.engines.duckdb as duckdb_engine
import drivetrain.features.engines.spark as spark_engine
from drivetrain.core.measured import to_json
from drivetrain.core.site import EngineSite
from drivetrain.core.spark import lingering
from drivetrain.core.statistic import Distinct, Moments, Quantiles, Statistic, TopK
from drivetrain.features.engines.duckdb import DuckDB
from drivetrain.features.engines.spark import Spark

SITE = EngineSite(
    kind="spark",
    master="local[2]",
    conf={
        "spark.sql.shuffle.partitions": "3",
        "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
    },
)
ROWS = 65_536 + 17


@pytest.fixture(scope="module", autouse=True)
def _one_session() -> Any:
    with lingering():
        yield


def numeric(column: str) -> list[Statistic]:
    return [Moments(column), Moments(column, "signed_log"), Quantiles(column)]


def made(seed: int, rows: int = ROWS) -> pa.Table:
    """Columns of every type, few values and many, missing and infinite ones among them."""
    random = np.random.default_rng(seed)
    many = random.normal(1e6, 1e3, rows)
    many[::101], many[1::103], many[2::107] = np.inf, -np.inf, -0.0
    few = random.choice([0.0, -0.0, 0.1, -7.25, 1e300, 5e-324], rows)
    missing = random.random(rows) < 0.1
    words = random.choice(np.array(["", "a", "é", "漢", "it's", "z" * 40], dtype=object), rows)
    return pa.table(
        {
            "many": pa.array(many, mask=missing),
            "few": pa.array(few, mask=missing),
            "single": pa.array(random.normal(0, 1, rows).astype("f4"), mask=missing),
            "whole": pa.array(random.integers(-(2**62), 2**62, rows), mask=missing),
            "small": pa.array(random.integers(-5, 5, rows), mask=missing),
            "at": pa.array(
                random.integers(0, 100, rows) * 10**12, pa.timestamp("us"), mask=missing
            ),
            "word": pa.array(words, pa.string(), mask=missing),
            "vector": pa.FixedSizeListArray.from_arrays(
                pa.array(random.normal(0, 1, 2 * rows).astype("f4")), 2
            ),
            "none": pa.nulls(rows, pa.float64()),
        }
    )


STATISTICS: list[Statistic] = [
    *(
        s
        for name in ("many", "few", "single", "whole", "small", "at", "none")
        for s in numeric(name)
    ),
    *(TopK(name) for name in ("small", "at", "word")),
    *(TopK("word", 3), TopK("whole", 1000), Moments("vector"), Quantiles("vector")),
    *(Distinct(name) for name in ("whole", "small", "at", "word")),
]


@pytest.mark.parametrize(
    ("files", "many"), [(1, duckdb_engine.MANY), (3, 1000)], ids=["held", "too many to hold"]
)
def test_every_statistic_is_the_same_to_the_last_bit(
    tmp_path: Any, parquet: Any, monkeypatch: pytest.MonkeyPatch, files: int, many: int
) -> None:
    monkeypatch.setattr(duckdb_engine, "MANY", many)
    monkeypatch.setattr(spark_engine, "MANY", many)
    table = made(files)
    cuts = np.linspace(0, len(table), files + 1).astype(int)
    source = parquet(*(table.slice(a, b - a) for a, b in pairwise(cuts)))
    ours = DuckDB(threads=1).aggregate(source, STATISTICS)
    theirs = Spark(SITE).aggregate(source, STATISTICS)
    assert list(theirs) == STATISTICS
    for statistic in STATISTICS:
        if statistic == Moments("vector"):  # a source of its own batches is cut otherwise
            assert theirs[statistic].mean == pytest.approx(ours[statistic].mean, rel=1e-12)
        else:
            assert to_json({statistic: theirs[statistic]}) == to_json({statistic: ours[statistic]})


@pytest.mark.parametrize("seed", range(1, 3))
def test_few_rows_measure_as_many_do(parquet: Any, seed: int) -> None:
    source = parquet(made(seed, seed * 5))
    plain = [s for s in STATISTICS if s.column != "vector"]
    ours, theirs = (e.aggregate(source, plain) for e in (DuckDB(threads=1), Spark(SITE)))
    assert to_json(theirs) == to_json(ours)


def test_a_damaged_file_is_an_error_that_names_it(parquet: Any) -> None:
    source = parquet(pa.table({"x": [1.0, 2.0]}))
    with open(source.paths[0], "wb") as file:
        file.write(b"no parquet")
    with pytest.raises(ValueError, match="statistics can't be computed"):
        Spark(SITE).aggregate(source, [Moments("x")])


def test_a_column_that_is_absent_is_an_error_before_anything_runs(parquet: Any) -> None:
    source = parquet(pa.table({"x": [1.0]}))
    with pytest.raises(ValueError, match="unknown column 'y'"):
        Spark(SITE).aggregate(source, [Moments("y")])
    assert Spark(SITE).aggregate(source, []) == {}
    assert pq.read_metadata(source.paths[0]).num_rows == 1
