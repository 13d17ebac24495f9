"""What Spark prepares is what DuckDB prepares: rows, order, digest, and what was left out."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

import drivetrain as dt
import drivetrain.events.spark.held as held
import drivetrain.events.spark.pieces as pieces
from drivetrain.core.seams import SPLITS
from drivetrain.events.prepared import MANIFEST, Prepared, prepare
from drivetrain.events.spark.laying import prepare_on
from drivetrain.events.table import Table

ROWS, KEYS = 3000, 300
c = dt.col


@pytest.fixture(scope="module")
def lying(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made rows: events in pieces of 1000, a table to look up in, observations."""
    folder = tmp_path_factory.mktemp("lying")
    random = np.random.default_rng(0)
    events = {
        "at": pa.array(np.sort(random.integers(0, 10**12, ROWS)), pa.timestamp("us")),
        "Card": [None if i % 97 == 0 else f"c{i * i % 50}" for i in range(ROWS)],
        "amount": [None if i % 31 == 0 else v for i, v in enumerate(random.normal(0, 10, ROWS))],
        "k": random.integers(0, KEYS, ROWS),
        "v": pa.FixedSizeListArray.from_arrays(pa.array(np.arange(2.0 * ROWS)), 2),
        "words": pa.FixedSizeListArray.from_arrays(
            pa.array([None if i % 5 == 0 else f"w{i % 7}" for i in range(2 * ROWS)]), 2
        ),
    }
    pq.write_table(pa.table(events), folder / "events.parquet", row_group_size=300)
    del events["v"], events["words"]
    pa.csv.write_csv(pa.table(events).slice(0, 700), folder / "events-0.csv")
    pa.csv.write_csv(pa.table(events).slice(700, 900), folder / "events-1.csv")
    shops = {"k": np.arange(0, KEYS, 2), "name": [f"shop's {i}" for i in range(KEYS // 2)]}
    pq.write_table(pa.table(shops), folder / "shops.parquet")
    observed = {
        "at": pa.array(random.integers(0, 10**12, 400), pa.timestamp("us")),
        "Card": [f"c{k}" for k in random.integers(0, 50, 400)],
        "rate": random.normal(0, 1, 400),
    }
    pq.write_table(pa.table(observed), folder / "observed.parquet", row_group_size=100)
    return folder


def plans(folder: Path) -> dict[str, Table]:
    """Tables that together have every step."""
    events = dt.Parquet(folder / "events.parquet", time="at")
    shops = dt.Parquet(folder / "shops.parquet")
    observed = dt.Parquet(folder / "observed.parquet", time="at")
    return {
        "rows": events.where(c("amount") > -15)
        .with_columns(double=c("amount") * 2, day=c("at").truncate("day"), up=c("Card").upper())
        .rename(card="Card")
        .join(shops, "k")
        .join_asof(observed, "at", by={"card": "Card"}, tolerance=dt.hours(30))
        .drop("amount")
        .split(dt.HashSplit(columns=("k",))),
        "first": events.join(shops, "k", how="inner")
        .drop_duplicates("k", "Card")
        .drop_nulls("amount")
        .split(dt.TimeSplit(validate="1970-01-08", test="1970-01-10")),
        "again": events.split(dt.HashSplit(columns=("k",)))
        .drop_duplicates("k", "Card")
        .where(c("amount") > -5)
        .join(shops.drop_duplicates("name").where(c("k") < 200), "k", how="inner")
        .drop_duplicates("name", "v"),
        "windows": events.with_windows(
            n=dt.Window(by="Card", stat="count", over="1d"),
            mean=dt.Window("amount", by="Card", stat="mean", over="2h"),
            last=dt.Window("amount", by=("Card", "k"), stat="recent", rows=3),
            late=dt.Window("k", by="Card", stat="sum", rows=4, known="at"),
        )
        .where(c("n") > 0)
        .join(shops, "k")
        .join_asof(observed, "at", by="Card"),
        "odd names": events.rename(**{"the `card.*": "Card", "*": "amount", "": "v"})
        .with_windows(**{"a.sum": dt.Window("*", by="the `card.*", stat="sum", over="1d")})
        .join(shops.rename(**{"the.name": "name"}), "k"),
        "text": dt.CSV(folder / "events-*.csv", time="at").select("Card", "amount", "at"),
        "empty": events.where(c("k") < 2).split(
            dt.TimeSplit(validate="1980-01-01", test="1990-01-01")
        ),
    }


@pytest.mark.parametrize(
    ("name", "few"),
    [(name, few) for few in (1000, 10) for name in ("rows", "first")]
    + [(name, 1000) for name in ("again", "windows", "odd names", "text", "empty")],
)
def test_the_digest_is_the_same_and_so_are_the_rows(
    spark: Any,
    lying: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    few: int,
) -> None:
    """Piece by piece, and on frames where a joined table is larger than executors hold."""
    monkeypatch.setattr(pieces, "PIECE_ROWS", 1000)
    monkeypatch.setattr(held, "FEW", few)
    table = plans(lying)[name]
    names = table.schema.names
    heard: list[Any] = []
    ours = prepare(table, names, tmp_path / "duckdb")
    theirs = prepare_on(spark, table, names, tmp_path / "spark", emit=heard.append)
    assert theirs.digest == ours.digest
    assert theirs.dropped == ours.dropped
    for split in SPLITS:
        rows = [pa.concat_tables(map(pq.read_table, one.files(split))) for one in (ours, theirs)]
        assert rows[0].equals(rows[1])
    if name == "rows":
        assert len(theirs.files("train")) == 3, "a piece each"
    assert sorted(path.name for path in (tmp_path / "spark").iterdir()) == sorted(
        [MANIFEST, *SPLITS]
    )
    assert {item.name for item in heard if hasattr(item, "name")} >= {"events/rows"}
    assert Prepared.open(tmp_path / "spark").digest == ours.digest


def test_the_driver_is_sent_no_row(
    spark: Any, lying: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    kind = type(spark.range(1))
    collect = kind.collect

    def counted(frame: Any) -> Any:
        rows = collect(frame)
        sent.append(sum(len(str(row)) for row in rows))
        return rows

    monkeypatch.setattr(kind, "collect", counted)
    for way in ("toArrow", "toPandas", "take", "toLocalIterator", "head", "first"):
        monkeypatch.setattr(kind, way, None)
    table = plans(lying)["rows"]
    prepared = prepare_on(spark, table, table.schema.names, tmp_path / "rows")
    rows = sum(prepared.rows(split) for split in SPLITS)
    assert rows > 2000
    assert sum(sent) < rows * 3  # names of files, counts and digests


def test_a_key_twice_in_a_joined_table_is_an_error_that_names_it(
    spark: Any, lying: Path, tmp_path: Path
) -> None:
    pq.write_table(pa.table({"k": [1, 2, 2], "x": [1, 2, 3]}), tmp_path / "twice.parquet")
    table = plans(lying)["empty"].join(dt.Parquet(tmp_path / "twice.parquet"), "k")
    with pytest.raises(ValueError, match=r"found the key k = 2 2 times in the other table"):
        prepare_on(spark, table, ["k", "x"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_value_that_cannot_be_computed_with_is_an_error_and_leaves_nothing(
    spark: Any, lying: Path, tmp_path: Path
) -> None:
    events = dt.Parquet(lying / "events.parquet", time="at")
    overflow = events.with_columns(big=c("k") * 2**62)
    with pytest.raises(ValueError, match=r"(?i)overflow"):
        prepare_on(spark, overflow, ["big"], tmp_path / "overflow")
    text = events.with_columns(number=c("Card").cast("int64"))
    with pytest.raises(ValueError, match="'c"):
        prepare_on(spark, text, ["number"], tmp_path / "text")
    with pytest.raises(ValueError, match="found 0 rows"):
        prepare_on(spark, events.where(c("k") < 0), ["k"], tmp_path / "none")
    assert not list(tmp_path.iterdir())


def test_a_torn_file_is_an_error_that_names_it(spark: Any, lying: Path, tmp_path: Path) -> None:
    file = tmp_path / "torn.jsonl"
    file.write_text('{"a": 1}\n' * 3 + '{"a": "x"\n')
    with pytest.raises(ValueError, match=r"torn\.jsonl, "):
        prepare_on(spark, dt.JSONLines(file, types={"a": "int64"}), ["a"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
