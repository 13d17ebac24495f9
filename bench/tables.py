"""A batch job declared and run, beside the same job in hand-written DuckDB SQL; and its memory.

    python bench/tables.py --quick --json

The rows are made (payments of cards in shops, seeded). The job: leave rows out, three windows by
card (how many in 7 days, the sum of the last 10 amounts, the amount before), two joins, two
computed columns, three splits, written as Parquet. What our declaration cannot say is left out on
both sides: a group-by. Ours also keeps the order of the rows and a digest of every column; the SQL
need not. Before anything is timed the two outputs are held against each other, value for value.

Memory is the peak of a process that prepares such rows from a Delta table of many commits.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.figure import Figure, figure, show, speed_ratios, words

ROOT = Path(__file__).resolve().parent.parent
MEMORY = "2GB"
CARDS, SHOPS, CHUNK = 100_000, 1_000, 131_072
START, YEAR = 1_767_225_600_000_000, 365 * 86_400_000_000  # 2026-01-01
ONCE = 500_000
"""Rows at once the size, of which memory is measured."""
GIVES = ("at", "amount", "seen", "last_ten", "before", "country", "category", "share", "night")


def figures(quick: bool) -> Iterator[Figure]:
    """``batch_job_vs_duckdb_sql`` and ``memory_16x_vs_1x``."""
    with tempfile.TemporaryDirectory() as folder:
        yield _batch_job(Path(folder), 2_000_000 if quick else 10_000_000, 3 if quick else 5)
    yield _memory(3 if quick else 5)


# -- the rows --------------------------------------------------------------------------------------


def payments(rows: int, step: int, cards: int = CARDS, seed: int = 0) -> Iterator[pa.Table]:
    """Made payments in order of time, one in each ``step`` microseconds."""
    names = pa.array([f"shop-{number:04d}" for number in range(SHOPS)])
    for number, first in enumerate(range(0, rows, CHUNK)):
        random = np.random.default_rng((seed, number))
        count = min(CHUNK, rows - first)
        shops = pa.array(random.integers(0, SHOPS, count), pa.int32())
        at = START + np.arange(first, first + count) * step + random.integers(0, step, count)
        # Some cards pay far more often than most.
        card = (cards * random.random(count) ** 2).astype(np.int64)
        yield pa.table(
            {
                "at": pa.array(at, pa.timestamp("us")),
                "card": card,
                "shop": pa.DictionaryArray.from_arrays(shops, names).cast(pa.string()),
                "amount": np.round(random.lognormal(3, 1, count), 2) - 2,
            }
        )


def _write(folder: Path, rows: int) -> None:
    """The payments as Parquet, and what is known of cards and shops."""
    made = payments(rows, YEAR // rows)
    first = next(made)
    with pq.ParquetWriter(folder / "payments.parquet", first.schema, compression="zstd") as writer:
        writer.write_table(first)
        for table in made:
            writer.write_table(table)
    random = np.random.default_rng(1)
    countries = [f"C{number}" for number in random.integers(0, 60, CARDS)]
    limits = random.integers(1, 50, CARDS) * 100.0
    cards = {"card": np.arange(CARDS), "country": countries, "limit": limits}
    pq.write_table(pa.table(cards), folder / "cards.parquet")
    shops = {
        "shop": [f"shop-{number:04d}" for number in range(SHOPS)],
        "category": [f"kind {number}" for number in random.integers(0, 40, SHOPS)],
    }
    pq.write_table(pa.table(shops), folder / "shops.parquet")


# -- the job, twice --------------------------------------------------------------------------------


def declared(source: Any, folder: Path) -> Any:
    """The job as a table."""
    import drivetrain as dt

    return (
        source.where(dt.col("amount") > 0)
        .with_windows(
            seen=dt.Window(by="card", stat="count", over="7d"),
            last_ten=dt.Window("amount", by="card", stat="sum", rows=10),
            before=dt.Window("amount", by="card", stat="last"),
        )
        .join(dt.Parquet(folder / "cards.parquet"), on="card")
        .join(dt.Parquet(folder / "shops.parquet"), on="shop")
        .with_columns(
            share=dt.col("amount") / dt.col("limit"),
            night=dt.col("at").hour() < 6,
        )
        .split(dt.TimeSplit(validate="2026-10-01", test="2026-11-15"))
    )


def ours(folder: Path) -> None:
    """The declared job, prepared anew."""
    import drivetrain as dt
    from drivetrain.events.prepared import prepare

    rmtree(folder / "ours", ignore_errors=True)
    table = declared(dt.Parquet(folder / "payments.parquet", time="at"), folder)
    prepare(table, GIVES, folder / "ours", memory=MEMORY)


SQL = """
COPY (
    SELECT w.at, w.amount, w.seen, coalesce(w.last_ten, 0) AS last_ten, w.before, c.country,
           s.category, w.amount / c."limit" AS share, CAST(hour(w.at) < 6 AS BIGINT) AS night,
           CASE WHEN w.at < TIMESTAMP '2026-10-01' THEN 'train'
                WHEN w.at < TIMESTAMP '2026-11-15' THEN 'validate' ELSE 'test' END AS split
    FROM (
        SELECT *, count(*) OVER (PARTITION BY card ORDER BY "at" RANGE BETWEEN
                   INTERVAL 7 DAYS PRECEDING AND INTERVAL 1 MICROSECOND PRECEDING) AS seen,
               sum(amount) OVER (PARTITION BY card ORDER BY "at"
                   ROWS BETWEEN 10 PRECEDING AND 1 PRECEDING) AS last_ten,
               lag(amount) OVER (PARTITION BY card ORDER BY "at") AS before
        FROM read_parquet('{folder}/payments.parquet') WHERE amount > 0
    ) w
    LEFT JOIN read_parquet('{folder}/cards.parquet') c USING (card)
    LEFT JOIN read_parquet('{folder}/shops.parquet') s USING (shop)
) TO '{folder}/theirs' (FORMAT parquet, COMPRESSION snappy, PARTITION_BY (split))
"""


def theirs(folder: Path) -> None:
    """The same in SQL."""
    import duckdb

    rmtree(folder / "theirs", ignore_errors=True)
    settings = {"memory_limit": MEMORY, "temp_directory": str(folder / "spill")}
    with duckdb.connect(":memory:", config=settings) as connection:
        # As the authors advise for results larger than memory; the order is then anyone's.
        connection.execute("SET preserve_insertion_order = false")
        connection.execute(SQL.replace("w.at", 'w."at"').format(folder=folder))


def check(folder: Path) -> None:
    """Hold the two outputs against each other; raises where they differ."""
    for split in ("train", "validate", "test"):
        mine = _sorted(folder / "ours" / split)
        other = _sorted(folder / "theirs" / f"split={split}")
        assert len(mine) == len(other) > 0, (split, len(mine), len(other))
        for name in GIVES:
            a, b = mine[name].combine_chunks(), other[name].combine_chunks()
            if pa.types.is_floating(a.type):
                left, right = (side.to_numpy(zero_copy_only=False) for side in (a, b))
                assert np.allclose(left, right, rtol=1e-9, atol=1e-6, equal_nan=True), name
            else:
                assert a.equals(b.cast(a.type)), name


def _sorted(folder: Path) -> pa.Table:
    files = [pq.read_table(file, columns=list(GIVES)) for file in sorted(folder.glob("*.parquet"))]
    return pa.concat_tables(files).sort_by("at")


def _batch_job(folder: Path, rows: int, rounds: int) -> Figure:
    _write(folder, rows)
    ours(folder)
    theirs(folder)
    check(folder)
    ratios = speed_ratios(partial(ours, folder), partial(theirs, folder), rounds)
    peer = f"hand-written DuckDB SQL with the same output, {rows // 10**6} million made rows"
    return figure("batch_job_vs_duckdb_sql", ratios, peer, goal=0.8)


# -- memory ----------------------------------------------------------------------------------------


def _memory(rounds: int) -> Figure:
    peaks: dict[int, list[float]] = {1: [], 16: []}
    for _ in range(rounds):
        for times, found in peaks.items():
            with tempfile.TemporaryDirectory() as folder:
                rows = str(ONCE * times)
                for step in ("--lay", "--child"):  # laid elsewhere: the peak is that of preparing
                    command = [sys.executable, __file__, step, folder, rows]
                    done = subprocess.run(
                        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
                    )
            found.append(json.loads(done.stdout.splitlines()[-1])["peak_mb"])
    for times, found in peaks.items():
        print(f"{times:>3} x: {min(found):,.0f} MB", file=sys.stderr)
    ratios = [b / a for a in peaks[1] for b in peaks[16]]
    peer = "itself with a sixteenth of the rows, from a Delta table"
    return figure("memory_16x_vs_1x", ratios, peer, 1.1, min(peaks[16]) / min(peaks[1]))


def lay(folder: Path, rows: int) -> None:
    """A Delta table of many commits, and what it is joined with."""
    from drivetrain.events.lake.lake import Lake

    _write(folder, 1000)
    lake = Lake.open(folder / "payments")
    # The more rows the longer their time, and so as many in each window.
    for table in payments(rows, YEAR // ONCE, cards=10_000):
        lake.append(table)


def child(folder: Path) -> None:
    """Prepare from the table and print the peak of this process."""
    import drivetrain as dt
    from drivetrain.events.prepared import prepare

    table = declared(dt.Delta(folder / "payments", time="at"), folder)
    prepare(table, GIVES, folder / "ours", memory="200MB", threads=2)
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"peak_mb": peak / 1024}))


if __name__ == "__main__":
    if "--lay" in sys.argv:
        lay(Path(sys.argv[2]), int(sys.argv[3]))
    elif "--child" in sys.argv:
        child(Path(sys.argv[2]))
    else:
        options = words(__doc__)
        for measured in figures(options.quick):
            show(measured, options.json)
