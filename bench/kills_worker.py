"""One process of a training that `bench/kills.py` kills again and again: FOLDER EPOCHS.

It writes a byte for each batch, to a file that names its generation, rank, process and agent.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from safetensors.torch import save_file

from drivetrain.core.batch import Batch
from drivetrain.core.job import LOST
from drivetrain.core.schema import FeatureField, FeatureSchema, Field, Schema
from drivetrain.core.seams import Order, Run, Shard, Source, Split
from drivetrain.core.world import World
from drivetrain.models import MLP
from drivetrain.models.bind import build
from drivetrain.train import AllReduce, BinaryCrossEntropy

BATCH = 64
BATCHES = 100
"""Of an epoch."""
WIDTH = 16


class Made:
    """Made rows in memory, in a seeded order; each batch that is taken is noted."""

    def __init__(self, seen: Path) -> None:
        generator = np.random.default_rng(0)
        self.features = FeatureSchema((FeatureField(name="x", kind="dense", width=WIDTH),))
        self.targets = Schema((Field("y", "int64"),))
        dense = generator.normal(size=(BATCH * BATCHES, WIDTH)).astype(np.float32)
        label = (dense[:, 0] * dense[:, 1] + dense[:, 2] > 0).astype(np.int64)
        self.table = {"dense": dense, "y": label}
        self.seen = seen

    @property
    def events(self) -> Source:
        raise AssertionError("these examples have no events")

    def rows(self, split: Split) -> int | None:
        return len(self.table["y"]) if split == "train" else 0

    def batches(
        self,
        split: Split,
        shard: Shard = Shard(),
        *,
        size: int,
        order: Order | None = None,
        start: int = 0,
    ) -> Iterator[Batch]:
        if split != "train":
            return
        rows = np.arange(len(self.table["y"]))
        if order is not None:
            np.random.default_rng((order.seed, order.epoch)).shuffle(rows)
        with self.seen.open("ab", buffering=0) as seen:
            for first in range(start, len(rows), size):
                part = np.array_split(rows[first : first + size], shard.count)[shard.index]
                yield Batch({name: column[part] for name, column in self.table.items()})
                seen.write(b".")


def main(folder: Path, epochs: int) -> None:
    torch.set_num_threads(1)
    world = World.of()
    place = (world.generation, world.rank, os.getpid(), os.getppid())
    examples: Any = Made(folder / "-".join(["seen", *map(str, place)]))
    strategy = AllReduce(
        loss=BinaryCrossEntropy("y"),
        epochs=epochs,
        batch_size=BATCH,
        lr=0.01,
        checkpoint_seconds=None,
        checkpoint_steps=10,
        wait_seconds=5,
    )
    model = build(MLP(hidden=(32,), dropout=0.2), examples.features, seed=0)
    try:
        fitted: Any = strategy.fit(model, examples, Run(directory=folder / "run", world=world))
    except (ConnectionError, InterruptedError):
        os._exit(LOST)  # as the command line does
    weights = {name: tensor.contiguous() for name, tensor in fitted.state_dict().items()}
    save_file(weights, folder / f"weights-{world.rank}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
