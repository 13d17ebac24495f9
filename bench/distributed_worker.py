"""One process of a training that `bench/distributed.py` times: KIND STEPS [STEPS AN EPOCH].

Its place is in the environment. It prints one line of JSON: updates a second after a warm-up, and
the loss on held-out rows.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.parallel import DistributedDataParallel

from bench.made import InMemory
from drivetrain.core.batch import Batch
from drivetrain.core.schema import FeatureField, FeatureSchema
from drivetrain.core.seams import Run, Shard, Split
from drivetrain.core.world import World
from drivetrain.models import MLP
from drivetrain.models.bind import build
from drivetrain.train import (
    FP16,
    AllReduce,
    BinaryCrossEntropy,
    Constant,
    Cosine,
    DiLoCo,
    PowerSGD,
    TopK,
)

BATCH = 512
WIDTH = 200
HIDDEN = (512, 512)
WARM = 5
LR = 1e-3


class Timed(InMemory):
    """Rows whose label a network of this kind can learn; the batches say when they were taken.

    Args:
        steps: updates in all.
        again: updates an epoch; the rows are those of one.
    """

    def __init__(self, steps: int, again: int | None = None) -> None:
        generator = np.random.default_rng(0)
        way = generator.normal(size=(WIDTH, 8)).astype(np.float32) / np.sqrt(WIDTH)
        self.epochs = steps // (again or steps)
        rows = (again or steps) * BATCH
        made = {"train": _made(rows, way, generator), "test": _made(8192, way, generator)}
        features = FeatureSchema((FeatureField(name="x", kind="dense", width=WIDTH),))
        super().__init__(features, {"train": made["train"]}, shuffled=self.epochs > 1)
        self.test = made["test"]
        self.began = self.ended = 0.0
        self.taken = 0

    def batches(self, split: Split, *arguments: Any, **options: Any) -> Iterator[Batch]:
        """As they come, with the time taken down."""
        for batch in super().batches(split, *arguments, **options):
            if self.taken == WARM:
                self.began = time.perf_counter()
            self.taken += 1
            yield batch
        self.ended = time.perf_counter()

    @property
    def rate(self) -> float:
        """Updates a second, after the first few."""
        return (self.taken - WARM) / (self.ended - self.began)


def _made(rows: int, way: Any, generator: np.random.Generator) -> dict[str, Any]:
    dense = generator.normal(size=(rows, WIDTH)).astype(np.float32)
    score = np.abs(dense @ way).sum(1) - 8 * np.sqrt(2 / np.pi)
    label = (score + 0.3 * generator.normal(size=rows) > 0).astype(np.int64)
    return {"dense": dense, "y": label}


def ddp(examples: Timed, world: World) -> Any:
    """PyTorch's own way, as its documentation writes it."""
    model = build(MLP(hidden=HIDDEN), examples.features, seed=0).module.train()
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://{world.address}:{world.port}",
        rank=world.rank,
        world_size=world.size,
        timeout=timedelta(seconds=120),
    )
    wrapped = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0, fused=True)
    shard = Shard(world.rank, world.size)
    for batch in examples.batches("train", shard, size=BATCH):
        dense, label = torch.from_numpy(batch["dense"]), torch.from_numpy(batch["y"])
        optimizer.zero_grad()
        loss = binary_cross_entropy_with_logits(wrapped(dense=dense), label.float())
        loss.backward()
        optimizer.step()
    dist.destroy_process_group()
    return model.eval()


def ours(kind: str, examples: Timed, world: World) -> Any:
    """A strategy as a user declares it; checkpoints are off, as the peer writes none.

    Over several epochs the learning rate goes down to nothing, so that a training comes to an end.
    """
    options: dict[str, Any] = {
        "loss": BinaryCrossEntropy("y"),
        "epochs": examples.epochs,
        "schedule": Cosine() if examples.epochs > 1 else Constant(),
        "batch_size": BATCH,
        "lr": LR,
        "checkpoint_seconds": None,
        "wait_seconds": 120,
    }
    strategies = {
        "plain": AllReduce(**options),
        "fp16": AllReduce(compression=FP16(), **options),
        "powersgd": AllReduce(compression=PowerSGD(8), **options),
        "topk": AllReduce(compression=TopK(0.01), **options),
        "diloco": DiLoCo(every=20, **options),
    }
    model = build(MLP(hidden=HIDDEN), examples.features, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(directory=Path(folder), world=world)
        return strategies[kind].fit(model, examples, run).module


def main() -> None:
    torch.set_num_threads(1)
    kind, steps, *again = sys.argv[1], *map(int, sys.argv[2:])
    world, examples = World.of(), Timed(steps, *again)
    module = ddp(examples, world) if kind == "ddp" else ours(kind, examples, world)
    test = examples.test
    with torch.no_grad():
        logits = module(dense=torch.from_numpy(test["dense"]))
        loss = binary_cross_entropy_with_logits(logits, torch.from_numpy(test["y"]).float())
    print(json.dumps({"rate": examples.rate, "loss": float(loss)}), flush=True)


if __name__ == "__main__":
    main()
