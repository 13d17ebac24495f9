"""A client of Spark Connect: prepares made rows there and by DuckDB, and prints both digests."""

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

import drivetrain as dt
from drivetrain.core.site import EngineSite
from drivetrain.core.spark import session
from drivetrain.events.prepared import prepare
from drivetrain.events.spark.laying import prepare_on

if __name__ == "__main__":
    master, folder = sys.argv[1], Path(sys.argv[2])
    rows = pa.table({"a": range(500), "s": [f"x{i}" for i in range(500)]})
    pq.write_table(rows, folder / "rows.parquet")
    table = (
        dt.Parquet(folder / "rows.parquet")
        .where(dt.col("a") > 7)
        .with_columns(b=dt.col("s").upper(), n=dt.col("s").length())
        .drop_duplicates("n", "b")
    )
    names = table.schema.names
    with session(EngineSite(kind="spark", master=master)) as spark:
        theirs = prepare_on(spark, table, names, folder / "spark")
    ours = prepare(table, names, folder / "duckdb")
    assert theirs.dropped == ours.dropped
    print(theirs.digest, ours.digest)
