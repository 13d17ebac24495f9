"""Purchases as messages, windows of every kind over them, and tables by their bits."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

import drivetrain as dt
from drivetrain.events.spark.source import RECORDS
from drivetrain.events.table import Table

TYPES: Any = {
    "n": "int64",
    "card": "string",
    "shop": "int64",
    "amount": "float64",
    "at": "timestamp",
    "settled": "timestamp",
}
START = 1_700_000_000_000_000
Row = dict[str, Any]


def of_every_kind(table: Table) -> Table:
    """Tracks of several keys, kinds of values, resolutions and times of knowledge."""
    return table.where(dt.col("n") % 11 != 0).with_windows(
        lateness="20s",
        spent=dt.Window("amount", by="card", over="1m", stat="sum"),
        mean=dt.Window("amount", by=("card", "shop"), stat="mean"),
        seen=dt.Window(by="card", over="30s", stat="count"),
        most=dt.Window("amount", by="shop", over="1m", stat="max", resolution="5s"),
        last=dt.Window("amount", by="shop", stat="last", known="settled"),
        three=dt.Window("amount", by="card", rows=3, stat="recent"),
        shops=dt.Window("shop", by="card", over="1m", stat="distinct"),
        cards=dt.Window("card", by="shop", rows=5, stat="distinct"),
        fading=dt.Window("amount", by="card", stat="sum", half_life="10s"),
        quiet=dt.Window(by="shop", stat="since"),
    )


def behind(table: Table) -> Table:
    """Windows of what is made of windows, and a step behind that fails on some cards."""
    return (
        of_every_kind(table)
        .with_columns(more=dt.col("spent") + 1.0)
        .with_windows(
            lateness="5s",
            of_spent=dt.Window("more", by="shop", over="1m", stat="mean"),
            before=dt.Window(by="card", rows=4, stat="count"),
        )
        .with_columns(number=dt.col("card").cast("int64"))
        .drop("mean", "most")
    )


def purchases(count: int, seed: int, cards: Sequence[str | None]) -> list[Row]:
    """Made rows whose times go on, but not in order; some keys, values and times are missing."""
    draw = np.random.default_rng(seed)
    at = START + np.arange(count) * 1_000_000 - draw.integers(0, 40_000_000, count)
    known = at + draw.integers(-3_000_000, 30_000_000, count)
    return [
        {
            "n": n,
            "card": cards[draw.integers(len(cards))],
            "shop": int(draw.integers(4)) if draw.random() > 0.1 else None,
            "amount": [None, 1e19, -0.0, 0.1 * n, -1e17, 3.0][draw.integers(6)],
            "at": _iso(at[n]) if draw.random() > 0.05 else None,
            "settled": _iso(known[n]) if draw.random() > 0.2 else None,
        }
        for n in range(count)
    ]


def _iso(micros: int) -> str:
    return str(np.datetime64(int(micros), "us"))


def records(rows: Sequence[Row], partitions: int = 1, clock: int = 1) -> list[pa.RecordBatch]:
    """Rows as messages, dealt out to partitions in turn, ``clock`` of them with one time each."""
    found = [
        {
            "partition": row["n"] % partitions,
            "offset": row["n"] // partitions,
            "timestamp": (1 + row["n"] // clock) * 1000,
            "key": None,
            "value": json.dumps(row).encode(),
        }
        for row in rows
    ]
    parts = [[r for r in found if r["partition"] == n] for n in range(partitions)]
    return [pa.RecordBatch.from_pylist(part, schema=RECORDS) for part in parts if part]


def bits(table: pa.Table) -> list[Any]:
    """Every value of a table, floats by their bits."""
    found: list[Any] = []
    for column in table.combine_chunks().columns:
        kind = column.type
        if pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind):
            found.append([None if v is None else [_bits(x) for x in v] for v in column.to_pylist()])
        else:
            found.append([_bits(value) for value in column.to_pylist()])
    return found


def _bits(value: Any) -> Any:
    return value.hex() if isinstance(value, float) else value
