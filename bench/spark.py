"""The batch path on Spark against the same job written by hand in PySpark's DataFrames.

Made card payments (seeded): a filter, two columns, a join by key, the shop's last fee before each
payment, the first row of each payment number, a split by a hash; laid down as Parquet by split.
Both run in one session with two threads, and give the same rows, which is checked. Ours also keeps
the order of the rows and digests every column; the one by hand does neither.
"""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import drivetrain as dt
from bench.figure import Figure, figure, show, speed_ratios, words
from drivetrain.core.seams import SPLITS
from drivetrain.core.site import EngineSite
from drivetrain.core.spark import session
from drivetrain.events.spark.laying import prepare_on
from drivetrain.events.table import Table

CARDS, SHOPS, FEES = 20_000, 5_000, 50_000
YEAR = 366 * 86_400_000_000
COLUMNS = ["number", "at", "card", "amount", "net", "day", "country", "rate"]


def made(folder: Path, rows: int) -> None:
    """Payments in order of time, one in fifty twice; shops; their fees as they changed."""
    random = np.random.default_rng(0)
    number = np.arange(rows)
    number[::50] = np.maximum(number[::50] - 1, 0)
    payments = {
        "number": number,
        "at": pa.array(np.sort(random.integers(0, YEAR, rows)), pa.timestamp("us")),
        "card": random.integers(0, CARDS, rows),
        "shop": random.integers(0, SHOPS, rows),
        "amount": random.lognormal(3, 1, rows),
    }
    pq.write_table(pa.table(payments), folder / "payments.parquet", row_group_size=1 << 17)
    shops = {"shop": np.arange(SHOPS), "country": [f"c{i % 40}" for i in range(SHOPS)]}
    pq.write_table(pa.table(shops), folder / "shops.parquet")
    fees = {
        "at": pa.array(np.sort(random.integers(0, YEAR, FEES)), pa.timestamp("us")),
        "shop": random.integers(0, SHOPS, FEES),
        "rate": random.lognormal(0, 0.1, FEES),
    }
    pq.write_table(pa.table(fees), folder / "fees.parquet")


def declared(folder: Path) -> Table:
    """The job as a declaration."""
    return (
        dt.Parquet(folder / "payments.parquet", time="at")
        .where(dt.col("amount") > 5)
        .drop_duplicates("number")
        .join(dt.Parquet(folder / "shops.parquet"), "shop")
        .join_asof(dt.Parquet(folder / "fees.parquet", time="at"), "at", by="shop")
        .with_columns(net=dt.col("amount") * dt.col("rate"), day=dt.col("at").truncate("day"))
        .split(dt.HashSplit(columns=("card",)))
    )


def by_hand(spark: Any, folder: Path, into: Path) -> None:
    """The same job as a careful user of PySpark writes it."""
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    payments = spark.read.parquet(str(folder / "payments.parquet")).filter("amount > 5")
    first = Window.partitionBy("number").orderBy("at")
    payments = payments.withColumn("n", F.row_number().over(first)).filter("n = 1").drop("n")
    shops = spark.read.parquet(str(folder / "shops.parquet"))
    payments = payments.join(F.broadcast(shops), "shop", "left")
    # Fees become intervals in which each is the last one, and the join is on these.
    fees = spark.read.parquet(str(folder / "fees.parquet"))
    following = Window.partitionBy("shop").orderBy("at")
    fees = fees.withColumn("until", F.lead("at").over(following)).withColumnRenamed("at", "since")
    match = [
        payments["shop"] == fees["shop"],
        payments["at"] > fees["since"],
        fees["until"].isNull() | (payments["at"] <= fees["until"]),
    ]
    rows = payments.join(F.broadcast(fees), match, "left").drop(fees["shop"])
    rows = rows.withColumn("net", rows["amount"] * rows["rate"])
    rows = rows.withColumn("day", F.date_trunc("day", rows["at"]).cast("timestamp_ntz"))
    bucket = F.conv(
        F.substring(F.md5(F.concat(F.lit("0,"), rows["card"].cast("string"))), 1, 13), 16, 10
    )
    share = bucket.cast("double") / float(16**13)
    split = F.when(share < 0.1, "test").when(share < 0.2, "validate").otherwise("train")
    rows.select(*COLUMNS, split.alias("split")).write.partitionBy("split").parquet(str(into))


def same(ours: Path, theirs: Path) -> None:
    """See that both laid down the same rows.

    Raises:
        ValueError: they did not.
    """
    for split in SPLITS:
        sides = [
            pq.read_table(folder, columns=COLUMNS).sort_by("number")
            for folder in (ours / split, theirs / f"split={split}")
        ]
        if len(sides[0]) != len(sides[1]):
            raise ValueError(f"{split}: found {len(sides[0])} rows, by hand {len(sides[1])}")
        for name in ("number", "card", "net"):
            left, right = (side[name].to_numpy() for side in sides)
            if not np.array_equal(left, right, equal_nan=name == "net"):
                raise ValueError(f"{split}: the column {name} differs from the one by hand")


def figures(quick: bool) -> Iterator[Figure]:
    """`spark_batch_vs_handwritten`: speed over speed."""
    rows, rounds = (500_000, 3) if quick else (4_000_000, 5)
    site = EngineSite(kind="spark", master="local[2]", memory="3GB")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-spark-")))
        made(folder, rows)
        spark = stack.enter_context(session(site))
        ours, theirs = folder / "ours", folder / "theirs"

        def run_ours() -> None:
            shutil.rmtree(ours, ignore_errors=True)
            prepare_on(spark, declared(folder), COLUMNS, ours)

        def run_theirs() -> None:
            shutil.rmtree(theirs, ignore_errors=True)
            by_hand(spark, folder, theirs)

        ratios = speed_ratios(run_ours, run_theirs, rounds)
        same(ours, theirs)
    yield figure("spark_batch_vs_handwritten", ratios, "PySpark 4.3 by hand", 1.0)


if __name__ == "__main__":
    options = words(__doc__)
    for measured in figures(options.quick):
        show(measured, options.json)
