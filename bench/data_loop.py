"""The whole path from Parquet to weights beside a raw PyTorch loop over tensors in memory.

    python bench/data_loop.py --quick --json

Ours reads Parquet, runs the feature graph, keeps the tensors and trains for five epochs, with all
its checks and checkpoints. The raw loop is given the tensors for nothing and shuffles them with one
gather an epoch. Same model, same initial weights, same fused AdamW, one thread.
"""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

import drivetrain as dt
from bench import made
from bench.figure import Figure, figure, show, speed_ratios, words
from drivetrain.core.seams import Run
from drivetrain.events.prepared import Prepared, prepare
from drivetrain.features.compile import compile
from drivetrain.features.engines.duckdb import DuckDB
from drivetrain.features.examples import Examples
from drivetrain.features.transform import Transform
from drivetrain.models import MLP
from drivetrain.models.bind import Bound, build

EPOCHS = 5
BATCH = 1024
FEATURES = (
    *(dt.Scale(name) for name in made.NUMERIC),
    *(dt.Index(name, min_count=2) for name in made.TEXT),
    dt.Cyclic("at", period="hour", name="hour"),
    dt.Cyclic("at", period="weekday", name="weekday"),
)
MODEL = MLP(hidden=(256, 128), dim=16)


def figures(quick: bool) -> Iterator[Figure]:
    """``loop_with_data_vs_raw_torch``."""
    torch.set_num_threads(1)
    rows, rounds = (200_000, 3) if quick else (1_000_000, 5)
    with tempfile.TemporaryDirectory() as folder:
        path = made.flights(Path(folder) / "made.parquet", rows)
        split = dt.HashSplit(columns=("at", "route"), validate=0.0001, test=0.0001)
        columns = sorted({c for f in FEATURES for c in f.columns})
        events = prepare(dt.Parquet(path).split(split), [*columns, "late"], Path(folder) / "events")
        statistics = list(dict.fromkeys(s for f in FEATURES for s in f.statistics()))
        fitted = DuckDB().aggregate(events, statistics)
        transform = Transform(*compile(FEATURES, events.schema.select(columns), fitted))
        tensors = _in_memory(events, transform, Path(folder) / "memory")
        ratios = speed_ratios(
            lambda: _ours(events, transform, Path(folder)), lambda: _raw(transform, tensors), rounds
        )
    yield figure("loop_with_data_vs_raw_torch", ratios, "a raw PyTorch loop, tensors given", 0.9)


def _examples(events: Prepared, transform: Transform, cache: Path) -> Examples:
    return Examples(events, transform, events.schema.select(["late"]), cache)


def _in_memory(events: Prepared, transform: Transform, cache: Path) -> list[torch.Tensor]:
    batches = list(_examples(events, transform, cache).batches("train", size=1 << 16))
    names = (*transform.features.tensors.names, "late")
    return [torch.from_numpy(np.concatenate([b[name] for b in batches])) for name in names]


def _ours(events: Prepared, transform: Transform, folder: Path) -> None:
    work = Path(tempfile.mkdtemp(dir=folder))
    train = dt.Single(
        loss=dt.BinaryCrossEntropy("late"), epochs=EPOCHS, batch_size=BATCH, weight_decay=0.01
    )
    model = build(MODEL, transform.features)
    train.fit(model, _examples(events, transform, work / "examples"), Run(directory=work / "run"))
    shutil.rmtree(work)


def _raw(transform: Transform, tensors: list[torch.Tensor]) -> None:
    model: Any = build(MODEL, transform.features)
    module = model.module if isinstance(model, Bound) else model
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, weight_decay=0.01, fused=True)
    rows = len(tensors[0])
    for epoch in range(EPOCHS):
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(epoch))
        dense, index, late = (tensor[order] for tensor in tensors)
        labels = late.float()
        for start in range(0, rows, BATCH):
            stop = start + BATCH
            logits = model(dense[start:stop], index[start:stop])
            loss = binary_cross_entropy_with_logits(logits, labels[start:stop])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


if __name__ == "__main__":
    options = words(__doc__)
    for measured in figures(options.quick):
        show(measured, options.json)
