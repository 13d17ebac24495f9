"""The features of bench/transform.py as an expert would write them by hand, and in scikit-learn."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.made import TEXT

Tensors = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]

SCALED = ("temperature", "humidity", "pressure", "seats")
LOGGED = ("distance", "wind_speed")
ROUTES = 20_000
"""How many routes get a position of their own."""
DAY = 86_400_000_000
TURNS = {"hour": (DAY, 0), "weekday": (7 * DAY, 4 * DAY)}


def polars(files: Sequence[str]) -> Tensors:
    """One lazy query for the statistics, one for the tensors; vocabularies as Enums."""
    import polars as pl

    frame = pl.scan_parquet(files)
    logs = {name: pl.col(name).cast(pl.Float64).log1p() for name in LOGGED}
    numbers = {**{name: pl.col(name) for name in SCALED}, **logs}
    fitted = frame.select(
        *(x.mean().alias(f"{name}_mean") for name, x in numbers.items()),
        *(x.std(ddof=0).alias(f"{name}_std") for name, x in numbers.items()),
        *(pl.col(name).drop_nulls().value_counts().implode().alias(name) for name in TEXT),
    ).collect()
    vocabularies: dict[str, pl.Series] = {}
    for name in TEXT:
        counts = fitted[name][0].struct.unnest().sort(["count", name], descending=[True, False])
        vocabularies[name] = counts[name][: ROUTES if name == "route" else None]
    dense = [
        ((x - fitted[f"{name}_mean"][0]) / fitted[f"{name}_std"][0]).fill_null(0.0).alias(name)
        for name, x in numbers.items()
    ]
    dense.append(pl.col("seats").is_null().alias("no_seats"))
    at = pl.col("at").cast(pl.Int64)
    for name, (period, start) in TURNS.items():
        turn = (at - start) % period * (2 * np.pi / period)
        dense += [turn.sin().alias(f"{name}_sin"), turn.cos().alias(f"{name}_cos")]
    index = [
        pl.when(pl.col(name).is_null())
        .then(0)
        .otherwise(
            pl.col(name)
            .cast(pl.Enum(vocabularies[name]), strict=False)
            .to_physical()
            .cast(pl.Int64)
            .add(2)
            .fill_null(1)
        )
        .alias(name)
        for name in TEXT
    ]
    tensors = frame.select(*(x.cast(pl.Float32) for x in dense), *index).collect()
    width = len(dense)
    return (
        tensors[:, :width].to_numpy(order="c"),
        tensors[:, width:].to_numpy(order="c"),
    )


def duckdb(files: Sequence[str]) -> Tensors:
    """One query for the moments, a table for each vocabulary, one query that joins them."""
    import duckdb as engine

    source = f"read_parquet([{', '.join(repr(file) for file in files)}])"
    logs = {name: f"ln(1 + {name})" for name in LOGGED}
    numbers = {**{name: name for name in SCALED}, **logs}
    with engine.connect() as connection:
        moments = ", ".join(f"avg({x}), stddev_pop({x})" for x in numbers.values())
        found = connection.execute(f"SELECT {moments} FROM {source}").fetchall()[0]
        for name in TEXT:
            limit = f"LIMIT {ROUTES}" if name == "route" else ""
            connection.execute(
                f"CREATE TEMP TABLE {name}_values AS "
                f"SELECT value, row_number() OVER () + 1 AS position FROM "
                f"(SELECT {name} AS value FROM {source} WHERE {name} IS NOT NULL "
                f"GROUP BY {name} ORDER BY count(*) DESC, {name} {limit})"
            )
        dense = [
            f"coalesce(({x} - {found[2 * i]!r}) / {found[2 * i + 1]!r}, 0)"
            for i, x in enumerate(numbers.values())
        ]
        dense.append("(seats IS NULL)::INT")
        for period, start in TURNS.values():
            turn = f'((epoch_us("at") - {start}) % {period}) * {2 * np.pi / period!r}'
            dense += [f"sin({turn})", f"cos({turn})"]
        index = [
            f"CASE WHEN {name} IS NULL THEN 0 ELSE coalesce({name}_values.position, 1) END"
            for name in TEXT
        ]
        columns = [f"({x})::FLOAT AS d{i}" for i, x in enumerate(dense)]
        columns += [f"({x})::BIGINT AS i{i}" for i, x in enumerate(index)]
        joins = " ".join(f"LEFT JOIN {n}_values ON {n} = {n}_values.value" for n in TEXT)
        query = f"SELECT {', '.join(columns)} FROM {source} {joins}"
        tensors = connection.execute(query).fetchnumpy()
    return (
        np.column_stack([tensors[f"d{i}"] for i in range(len(dense))]),
        np.column_stack([tensors[f"i{i}"] for i in range(len(index))]),
    )


def scikit_learn(files: Sequence[str]) -> Tensors:
    """A ColumnTransformer over a pandas frame; positions are then put in order of frequency."""
    import pandas as pd
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import MissingIndicator, SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, OrdinalEncoder, StandardScaler

    frame = pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)

    def cyclic(column: Any) -> Any:
        at = column["at"].to_numpy().astype("datetime64[us]").astype(np.int64)
        turns = [(at - start) % period * (2 * np.pi / period) for period, start in TURNS.values()]
        return np.column_stack([f(turn) for turn in turns for f in (np.sin, np.cos)])

    zero = SimpleImputer(strategy="constant", fill_value=0.0)
    dense = ColumnTransformer([
        ("scale", make_pipeline(StandardScaler(), zero), list(SCALED)),
        ("log", make_pipeline(FunctionTransformer(np.log1p), StandardScaler(), zero), list(LOGGED)),
        ("missing", MissingIndicator(features="all"), ["seats"]),
        ("at", FunctionTransformer(cyclic), ["at"]),
    ])  # fmt: skip
    encoder = OrdinalEncoder(dtype=np.int64, encoded_missing_value=-1)
    index = ColumnTransformer([("index", encoder, list(TEXT))])
    numbers = dense.fit_transform(frame).astype(np.float32)
    codes = index.fit_transform(frame)
    for column, name in enumerate(TEXT):
        codes[:, column] = _by_frequency(codes[:, column], ROUTES if name == "route" else None)
    return numbers, codes


def _by_frequency(codes: np.ndarray[Any, Any], size: int | None) -> np.ndarray[Any, Any]:
    """Codes with -1 for missing as positions: 0 missing, 1 rare, 2 the commonest and so on."""
    counts = np.bincount(codes + 1)[1:]
    order = np.argsort(-counts, kind="stable")[:size]
    position = np.ones(len(counts) + 1, dtype=np.int64)
    position[order] = np.arange(2, len(order) + 2)
    position[-1] = 0
    return position[codes]
