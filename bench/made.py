"""Made data: flights-like Parquet of any number of rows, and examples that are held in memory."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from drivetrain.core.batch import Array, Batch
from drivetrain.core.schema import FeatureField, FeatureSchema, Field, Schema
from drivetrain.core.seams import Order, Shard, Source, Split

NUMERIC = ("distance", "seats", "temperature", "humidity", "wind_speed", "pressure")
TEXT = {"origin": 3, "carrier": 16, "dest": 105, "tail": 4_000, "route": 50_000}
"""String columns and how many distinct values each has."""
CHUNK = 131_072
START = 1_356_998_400_000_000  # 2013-01-01 in microseconds since 1970
YEAR = 365 * 86_400 * 1_000_000


def flights(path: Path, rows: int, seed: int = 0) -> Path:
    """Write ``rows`` made flights to one Parquet file; the same seed gives the same rows.

    Six numeric columns with nulls (two of them integers), five string columns whose values
    follow Zipf's law, a timestamp, and the target ``late`` (int64 0 or 1).
    """
    with pq.ParquetWriter(path, _SCHEMA, compression="zstd") as writer:
        for table in _tables(rows, seed):
            writer.write_table(table)
    return path


_SCHEMA = pa.schema(
    [
        ("at", pa.timestamp("us")),
        ("distance", pa.int64()),
        ("seats", pa.int64()),
        *((name, pa.float64()) for name in NUMERIC[2:]),
        *((name, pa.string()) for name in TEXT),
        ("late", pa.int64()),
    ]
)


def _tables(rows: int, seed: int) -> Iterator[pa.Table]:
    vocabularies = {name: _vocabulary(name, size) for name, size in TEXT.items()}
    for number, start in enumerate(range(0, rows, CHUNK)):
        random = np.random.default_rng((seed, number))
        yield _table(random, min(CHUNK, rows - start), vocabularies)


def _vocabulary(name: str, size: int) -> pa.Array:
    return pa.array([f"{name}-{i:05d}" for i in range(size)])


def _table(random: np.random.Generator, n: int, vocabularies: dict[str, pa.Array]) -> pa.Table:
    numbers = {
        "distance": (random.lognormal(6.8, 0.6, n).astype(np.int64), 0.0),
        "seats": (random.choice([2, 20, 55, 95, 140, 182, 200, 330, 450], n), 0.15),
        "temperature": (np.round(random.normal(57, 18, n), 2), 0.01),
        "humidity": (random.beta(5, 3, n) * 100, 0.01),
        "wind_speed": (random.gamma(3, 3.5, n), 0.03),
        "pressure": (np.round(random.normal(1017, 7.5, n), 1), 0.1),
    }
    columns: dict[str, pa.Array] = {"at": pa.array(START + random.integers(0, YEAR, n))}
    for name, (values, missing) in numbers.items():
        columns[name] = pa.array(values, mask=random.random(n) < missing)
    for name, vocabulary in vocabularies.items():
        ranks = np.minimum(random.zipf(1.2, n) - 1, 2**40)
        codes = np.where(ranks < len(vocabulary), ranks, random.integers(0, len(vocabulary), n))
        missing = random.random(n) < (0.02 if name == "tail" else 0.0)
        column = pa.DictionaryArray.from_arrays(
            pa.array(codes, pa.int32(), mask=missing), vocabulary
        )
        columns[name] = column.cast(pa.string())
    logit = (numbers["wind_speed"][0] - 10) / 5 + (codes % 7 - 3) / 3 - 1
    columns["late"] = pa.array((random.random(n) < 1 / (1 + np.exp(-logit))).astype(np.int64))
    return pa.table({name: columns[name] for name in _SCHEMA.names}).cast(_SCHEMA)


# -- examples --------------------------------------------------------------------------------------


class InMemory:
    """The :class:`drivetrain.core.seams.Examples` of made columns, with a target ``y`` (int64).

    Args:
        features: what the columns are.
        splits: the columns of each split.
        shuffled: rows come in a new order each epoch, gathered; else as they lie, as views.
    """

    def __init__(
        self,
        features: FeatureSchema,
        splits: Mapping[Split, Mapping[str, Array]],
        *,
        shuffled: bool = False,
    ) -> None:
        self.features = features
        self.targets = Schema((Field("y", "int64"),))
        self.splits = splits
        self.shuffled = shuffled

    @property
    def columns(self) -> Mapping[str, Array]:
        """Those of the training rows."""
        return self.splits["train"]

    @property
    def events(self) -> Source:
        """Nobody asks for it."""
        raise AssertionError("these examples have no events")

    def rows(self, split: Split) -> int | None:
        """How many rows a split has."""
        return len(self.splits[split]["y"]) if split in self.splits else 0

    def batches(
        self,
        split: Split,
        shard: Shard = Shard(),
        *,
        size: int,
        order: Order | None = None,
        start: int = 0,
    ) -> Iterator[Batch]:
        """Batches of ``size`` rows, which the shards share."""
        rows = self.rows(split) or 0
        if not rows:
            return
        whole, places = Batch(self.splits[split]), None
        if self.shuffled and order is not None:
            places = np.random.default_rng((order.seed, order.epoch)).permutation(rows)
        for first in range(start, rows, size):
            count = min(size, rows - first)
            low = first + count * shard.index // shard.count
            high = first + count * (shard.index + 1) // shard.count
            yield whole.slice(low, high) if places is None else whole.take(places[low:high])

    def take(self, split: Split, rows: Array) -> Batch:
        """The rows of these numbers."""
        return Batch(self.splits[split]).take(rows)


CATEGORIES = (7, 24, 3, 16, 105, 4_000, 50, 200, 1_000, 12)
NUMBERS = 13


def clicks(rows: int, *, shuffled: bool = False) -> InMemory:
    """Click-like rows: 13 numbers, ten categories, and a label that depends on both."""
    generator = np.random.default_rng(0)
    features = FeatureSchema(
        (
            FeatureField(name="numbers", kind="dense", width=NUMBERS),
            *(
                FeatureField(name=f"category_{i}", kind="index", cardinality=size)
                for i, size in enumerate(CATEGORIES)
            ),
        )
    )
    dense = generator.normal(size=(rows, NUMBERS)).astype(np.float32)
    index = np.stack([generator.integers(0, size, rows) for size in CATEGORIES], 1)
    label = (dense[:, 0] + index[:, 0] % 2 > generator.normal(size=rows)).astype(np.int64)
    columns = {"dense": dense, "index": index, "y": label}
    return InMemory(features, {"train": columns}, shuffled=shuffled)
