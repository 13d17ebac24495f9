"""Fitting, filling the cache and reading epochs take no more memory for sixteen times the rows."""

import subprocess
import sys
from pathlib import Path

import pytest

CHILD = """
import os, sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import drivetrain.features.order as order
from drivetrain.core.batch import Batch
from drivetrain.core.schema import Field, Schema
from drivetrain.core.seams import Order
from drivetrain.features.categorical import Index
from drivetrain.features.compile import compile
from drivetrain.features.engines.duckdb import DuckDB
from drivetrain.features.examples import Examples
from drivetrain.features.numeric import Scale
from drivetrain.features.transform import Transform

CHUNK = 50_000
order.WINDOW_BYTES = 2 << 20  # so that one times the rows fills several windows too

class Made:
    schema = Schema((
        *(Field(f"x{i}", "float64") for i in range(6)), Field("s", "string"), Field("y", "int64")
    ))

    def __init__(self, path, rows):
        self.path = path
        random = np.random.default_rng(0)
        words = np.array([f"word {i}" for i in range(1000)])
        with pq.ParquetWriter(path, self.table(random, words, 1).schema) as writer:
            for _ in range(0, rows, CHUNK):
                writer.write_table(self.table(random, words, CHUNK))

    def table(self, random, words, rows):
        columns = {f"x{i}": random.normal(size=rows) for i in range(6)}
        return pa.table({**columns, "s": random.choice(words, rows), "y": np.arange(rows) % 2})

    def files(self, split):
        return [self.path]

    def batches(self, split, shard=None):
        with pq.ParquetFile(self.path, read_dictionary=["s"]) as file:
            for group in range(file.metadata.num_row_groups):
                yield Batch.from_arrow(file.read_row_group(group), self.schema)

rows, folder = int(sys.argv[1]), Path(sys.argv[2])
source = Made(str(folder / "made.parquet"), rows)
features = (*(Scale(f"x{i}") for i in range(6)), Index("s"))
statistics = [s for feature in features for s in feature.statistics()]
fitted = DuckDB(memory="200MB", threads=2).aggregate(source, statistics)
transform = Transform(*compile(features, source.schema, fitted), threads=1)
examples = Examples(source, transform, source.schema.select(["y"]), folder / "cache")
for epoch in range(2):
    batches = examples.batches("train", size=1024, order=Order(0, epoch))
    assert sum(len(batch) for batch in batches) == rows
# not ru_maxrss, which remembers the peak of the process that started this one
status = open("/proc/self/status").read().splitlines()
print(next(int(line.split()[1]) for line in status if line.startswith("VmHWM")))
"""


def peak_kilobytes(rows: int, folder: Path) -> int:
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(rows), str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    peaks = [peak_kilobytes(times * 150_000, tmp_path / str(times)) for times in (1, 4, 16)]
    sixteen_times_the_tensors = 16 * 150_000 * (6 * 4 + 8 + 8) // 1024
    assert max(peaks) - peaks[0] < sixteen_times_the_tensors / 2, peaks
    assert max(peaks) < 1.25 * peaks[0], peaks
