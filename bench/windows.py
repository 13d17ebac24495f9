"""Windows over made payments beside DuckDB's and Polars' own, and one row at a time.

    python bench/windows.py --quick --json

Payments of cards over 30 days, in order of time, as an Arrow table in memory: 10 million of
100,000 cards, with ``--quick`` 2 million of 20,000. Six windows of each payment's card, of what was
there before it: ``count_1h``, ``sum_1h``, ``mean_24h`` and ``max_24h`` of the amount, the ``last``
amount, and the seconds ``since`` the last payment. Every side gives the six columns of all rows.
All use both processors, take turns, and are timed by the clock. Before that answers are compared.

``windows_vs_duckdb``: the six as SQL, with ``RANGE`` frames that share three named windows.

``windows_vs_polars``: the faster of two forms: ``rolling_*_by`` over the card, and ``rolling``
groups of the card. Its ``last`` and ``since`` are a ``shift``, which is cheaper than the rule: a
payment at the very moment of another one counts there.

``window_online_us``: microseconds of processor time to ask the six windows of one row and then to
tell it, from Python, with all cards in the state. ``window_bytes_per_key``: what a card takes then.
"""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pyarrow as pa

from bench.figure import Figure, figure, seconds_of, show, speed_ratios, words
from drivetrain.core.batch import Batch
from drivetrain.core.schema import Field, Schema
from drivetrain.core.tracks import Tracks
from drivetrain.core.window import Window, Windows

DAY = 86_400_000_000
SCHEMA = Schema((Field("at", "timestamp"), Field("card", "int64"), Field("amount", "float64")))
WINDOWS = Windows(
    "at",
    (
        ("count_1h", Window(by="card", stat="count", over="1h")),
        ("sum_1h", Window("amount", by="card", stat="sum", over="1h")),
        ("mean_24h", Window("amount", by="card", stat="mean", over="24h")),
        ("max_24h", Window("amount", by="card", stat="max", over="24h")),
        ("last", Window("amount", by="card", stat="last")),
        ("since", Window(by="card", stat="since")),
    ),
)
SQL = """
    SELECT
        count(*) OVER hour AS count_1h,
        coalesce(sum(amount) OVER hour, 0) AS sum_1h,
        avg(amount) OVER day AS mean_24h,
        max(amount) OVER day AS max_24h,
        last_value(amount) OVER ever AS "last",
        ("at" - max("at") OVER ever) / 1e6 AS since,
        "row"
    FROM payments
    WINDOW
        cards AS (PARTITION BY card ORDER BY "at"),
        hour AS (cards RANGE BETWEEN 3600000000 PRECEDING AND 1 PRECEDING),
        day AS (cards RANGE BETWEEN 86400000000 PRECEDING AND 1 PRECEDING),
        ever AS (cards RANGE BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
"""


def payments(rows: int, cards: int) -> pa.Table:
    """Made payments in order of time; ``at`` is in microseconds, ``row`` counts them."""
    random = np.random.default_rng(11)
    return pa.table(
        {
            "at": np.sort(random.integers(0, 30 * DAY, rows)),
            "card": random.integers(0, cards, rows),
            "amount": np.round(random.lognormal(3.0, 1.0, rows), 2),
            "row": np.arange(rows),
        }
    )


def by_ours(table: pa.Table) -> dict[str, Any]:
    """The six columns, in the order of the rows."""
    times = table.set_column(0, "at", table.column("at").cast(pa.timestamp("us")))
    return Tracks(WINDOWS, SCHEMA).replay(Batch.from_arrow(times, SCHEMA))


def by_duckdb(table: pa.Table) -> pa.Table:
    """The six columns and ``row``: DuckDB gives them card by card."""
    import duckdb

    with duckdb.connect(config={"threads": 2, "preserve_insertion_order": False}) as connection:
        connection.register("payments", table)
        return connection.sql(SQL).to_arrow_table()


def polars_over(table: pa.Table) -> pa.Table:
    """By ``rolling_*_by`` expressions over the card."""
    import polars as pl

    amount, at = pl.col("amount"), pl.col("at")
    moment = at.cast(pl.Datetime("us"))
    hour: dict[str, Any] = {"by": "moment", "window_size": "1h", "closed": "left"}
    day: dict[str, Any] = {"by": "moment", "window_size": "24h", "closed": "left"}
    frame = pl.DataFrame(table).lazy().with_columns(moment=moment, one=pl.lit(1, pl.Int64))
    return (
        frame.select(
            count_1h=pl.col("one").rolling_sum_by(**hour).over("card").fill_null(0),
            sum_1h=amount.rolling_sum_by(**hour).over("card").fill_null(0.0),
            mean_24h=amount.rolling_mean_by(**day).over("card"),
            max_24h=amount.rolling_max_by(**day).over("card"),
            last=amount.shift(1).over("card"),
            since=(at - at.shift(1).over("card")) / 1e6,
            row="row",
        )
        .collect()
        .to_arrow()
    )


def polars_groups(table: pa.Table) -> pa.Table:
    """By ``rolling`` groups of the card, one for each length; the columns are put side by side."""
    import polars as pl

    amount, at = pl.col("amount"), pl.col("at")
    frame = pl.DataFrame(table).with_columns(moment=at.cast(pl.Datetime("us")))
    common: dict[str, Any] = {"index_column": "moment", "group_by": "card", "closed": "left"}
    hour = frame.rolling(period="1h", **common).agg(count_1h=pl.len(), sum_1h=amount.sum())
    day = frame.rolling(period="24h", **common).agg(mean_24h=amount.mean(), max_24h=amount.max())
    # Groups come one after another, each in order of time: so does a stable sort by the card.
    plain = frame.sort("card", maintain_order=True).select(
        last=amount.shift(1).over("card"), since=(at - at.shift(1).over("card")) / 1e6, row="row"
    )
    order = {"by": "card", "maintain_order": True}
    hour, day = hour.sort(**order), day.sort(**order)
    return pl.concat(
        [hour.drop("card", "moment"), day.drop("card", "moment"), plain], how="horizontal"
    ).to_arrow()


def check(ours: dict[str, Any], peer: pa.Table, name: str, ties: np.ndarray) -> None:
    """Stop where a peer's answers are others: of what it takes together, to a rounding.

    Args:
        ours: by column.
        peer: with ``row``.
        name: of the peer.
        ties: bool ``[rows]``: where its rule for one moment is another one.
    """
    order = np.argsort(peer.column("row").to_numpy())
    for column in WINDOWS.names:
        found = peer.column(column).to_numpy(zero_copy_only=False).astype(np.float64)[order]
        wrong = ~np.isclose(found, ours[column], rtol=1e-9, atol=1e-6, equal_nan=True)
        if column in ("last", "since"):
            wrong &= ~ties
        if wrong.any():
            raise AssertionError(f"{name} gives another {column} in {wrong.sum()} rows")


def online(table: pa.Table, rounds: int, calls: int = 20_000) -> tuple[list[float], float]:
    """Microseconds to ask and tell one row, round by round, and bytes a card."""
    batch = Batch.from_arrow(table.select(["card", "amount"]), SCHEMA.select(["card", "amount"]))
    times = np.asarray(table.column("at"))
    tracks = Tracks(WINDOWS, SCHEMA)
    tracks.observe(batch.with_columns({"at": times}))
    size = tracks.bytes / len(np.unique(batch["card"]))
    random, now = np.random.default_rng(12), int(times[-1])
    found: list[float] = []
    assert WINDOWS.asked == ("at", "card")
    assert WINDOWS.observed == ("card", "at", "amount")
    for _ in range(rounds + 1):
        cards = batch["card"][random.integers(0, len(batch), calls)].tolist()
        begin = time.process_time()
        for card in cards:
            now += 1_000
            tracks.ask((now, card))
            tracks.tell((card, now, 12.5))
        found.append((time.process_time() - begin) / calls * 1e6)
    return found[1:], size


def figures(quick: bool) -> Iterator[Figure]:
    """The four figures."""
    rows, cards, rounds = (2_000_000, 20_000, 3) if quick else (10_000_000, 100_000, 5)
    table = payments(rows, cards)
    ours = by_ours(table)
    same = np.lexsort((table.column("at"), table.column("card")))
    at, card = np.asarray(table.column("at"))[same], np.asarray(table.column("card"))[same]
    ties = np.zeros(rows, bool)
    ties[same[1:]] = (np.diff(at) == 0) & (np.diff(card) == 0)
    # A shift is wrong for the row behind two of one moment as well, where these differ in order.
    ties[same[1:]] |= np.r_[False, ties[same[1:-1]]]

    check(ours, by_duckdb(table), "DuckDB", ties & False)
    forms = (polars_over, polars_groups)
    for form in forms:
        check(ours, form(table), form.__name__, ties)
    best: Callable[[pa.Table], Any] = min(forms, key=lambda form: seconds_of(lambda: form(table)))

    ratios = speed_ratios(lambda: by_ours(table), lambda: by_duckdb(table), rounds)
    shape = f"{rows:,} rows, {cards:,} keys, six windows"
    yield figure("windows_vs_duckdb", ratios, f"DuckDB RANGE windows, {shape}", 3.0)
    ratios = speed_ratios(lambda: by_ours(table), lambda: best(table), rounds)
    yield figure("windows_vs_polars", ratios, f"Polars {best.__name__}, {shape}", 1.0)
    held = payments(rows, 100_000) if quick else table
    microseconds, size = online(held, rounds)
    yield figure("window_online_us", microseconds, "ask and tell one row, 100,000 keys", 20.0)
    told = f"six windows, {rows // 100_000} payments a key in 30 days; less is better"
    yield figure("window_bytes_per_key", [size], told, 4096.0)


if __name__ == "__main__":
    options = words(__doc__)
    for measured in figures(options.quick):
        show(measured, options.json)
