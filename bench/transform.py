"""Feature fitting and transform beside hand-written Polars, hand-written DuckDB and scikit-learn.

Every side reads the same made Parquet files and ends with the same tensors in memory: a float32
block and an int64 block of the same rows. Fitting is included. That the tensors are the same is
checked before anything is timed.
"""

import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from bench.figure import Figure, figure, show, speed_ratios, words
from bench.made import NUMERIC, TEXT, flights
from bench.transform_peers import ROUTES, Tensors, duckdb, polars, scikit_learn
from drivetrain.core.ahead import in_parallel
from drivetrain.events.files import Parquet
from drivetrain.events.prepared import Prepared, prepare
from drivetrain.events.split import HashSplit
from drivetrain.features.categorical import Index
from drivetrain.features.compile import compile
from drivetrain.features.engines.duckdb import DuckDB
from drivetrain.features.numeric import Log, Missing, Scale
from drivetrain.features.temporal import Cyclic
from drivetrain.features.transform import Transform

FEATURES = (
    *(Scale(name) for name in ("temperature", "humidity", "pressure", "seats")),
    *(Log(name) for name in ("distance", "wind_speed")),
    Missing("seats", name="no_seats"),
    Cyclic("at", period="hour", name="hour"),
    Cyclic("at", period="weekday", name="weekday"),
    *(Index(name, size=ROUTES if name == "route" else None) for name in TEXT),
)


def ours(source: Prepared) -> Tensors:
    """Fit, compile and run the graph over every batch."""
    asked = [s for feature in FEATURES for s in feature.statistics()]
    fitted = DuckDB().aggregate(source, asked)
    graph, features = compile(FEATURES, source.schema, fitted)
    transform = Transform(graph, features, threads=1)
    rows = source.rows("train")
    dense = np.empty((rows, features.dense_width), np.float32)
    index = np.empty((rows, len(features.cardinalities)), np.int64)
    at = 0
    for tensors in in_parallel(transform.run, source.batches("train"), os.cpu_count() or 1):
        dense[at : at + len(tensors)] = tensors["dense"]
        index[at : at + len(tensors)] = tensors["index"]
        at += len(tensors)
    return dense, index


def figures(quick: bool) -> Iterator[Figure]:
    """Speed over speed of the same work; above 1 we are faster."""
    rows, rounds = (2_000_000, 5) if quick else (4_000_000, 7)
    with tempfile.TemporaryDirectory(prefix="drivetrain-bench-") as directory:
        source = _prepared(Path(directory), rows)
        files = list(source.files("train"))
        peers: dict[str, Callable[[], Tensors]] = {
            "Polars": lambda: polars(files),
            "DuckDB": lambda: duckdb(files),
            "scikit-learn": lambda: scikit_learn(files),
        }
        _check(ours(source), peers)
        ratios = {
            name: speed_ratios(lambda: ours(source), peer, rounds) for name, peer in peers.items()
        }
        best = min(("Polars", "DuckDB"), key=lambda name: statistics.median(ratios[name]))
        yield figure("transform_vs_best_handwritten", ratios[best], f"hand-written {best}", 0.8)
        peer = "scikit-learn ColumnTransformer"
        yield figure("transform_vs_sklearn", ratios["scikit-learn"], peer, 10)


def _prepared(directory: Path, rows: int) -> Prepared:
    """Made flights as the events stage lays them down, all of them for training."""
    made = flights(directory / "flights.parquet", rows)
    table = Parquet(made).split(HashSplit(columns=("at",), validate=0, test=0))
    return prepare(table, ("at", *NUMERIC, *TEXT), directory / "prepared")


def _check(expected: Tensors, peers: dict[str, Callable[[], Tensors]]) -> None:
    for name, peer in peers.items():
        found = peer()
        assert [block.dtype for block in found] == [np.float32, np.int64], name
        for one, other in zip(_sorted(found), _sorted(expected), strict=True):
            np.testing.assert_allclose(one, other, atol=3e-5, rtol=3e-5, err_msg=name)


def _sorted(tensors: Tensors) -> list[np.ndarray]:
    """Every column sorted, and one number for each row, sorted: a join may change their order."""
    dense, index = tensors
    weights = np.sqrt(np.arange(1, index.shape[1] + 1))
    rows = np.sort(dense.sum(axis=1, dtype=np.float64) + index @ weights)
    return [np.sort(dense, axis=0), np.sort(index, axis=0), rows]


if __name__ == "__main__":
    options = words(__doc__)
    for measured in figures(options.quick):
        show(measured, options.json)
