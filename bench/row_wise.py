"""Large embedding tables trained by the rows that a batch takes, beside Adam over all of them.

    python bench/row_wise.py --quick --json

DCN-V2 over 26 categories and 13 numbers of made clicks, 1.5 million rows of width 16 in all tables,
batches of 4096. The peer is what FuxiCTR does: one Adam over all weights, as ``torch.optim.Adam``
comes, whose gradient of a table is as large as the table, in float32; its torch loop is written out
here. Ours is the whole of ``Single.fit`` with ``rows=RowWise(…)`` and products in bfloat16 where
the processor has them.

``ctr_train_vs_dense_adam``: samples per CPU second, ours over the peer's, in turn.
``ctr_train_vs_fused_adam``: the peer with torch's fused kernel, which it does not use.
``ctr_train_auc_gain``: AUC on rows that neither saw, ours less the peer's, after one pass over the
same rows, for each seed.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from bench.figure import Figure, figure, show, words
from bench.made import InMemory
from drivetrain.core.schema import FeatureField, FeatureSchema
from drivetrain.core.seams import Run
from drivetrain.models import DCNv2
from drivetrain.models.bind import Bound, build
from drivetrain.train import BinaryCrossEntropy, Single
from drivetrain.train.loop.device import check_bfloat16
from drivetrain.train.row_wise import RowWise

BATCH = 4096
DIM = 16
SIZES = (
    *(600_000, 400_000, 250_000, 120_000, 60_000, 30_000, 15_000, 8_000, 5_000, 4_000, 3_000),
    *(2_000, 1_000, 800, 500, 300, 200, 100, 60, 40, 24, 16, 10, 7, 4, 3),
)
NUMBERS = 13


def clicks(rows: int, held_out: int, seed: int) -> InMemory:
    """Made clicks: categories by Zipf's law, each value with a weight of its own for the label."""
    random = np.random.default_rng(seed)
    total = rows + held_out
    dense = random.normal(size=(total, NUMBERS)).astype(np.float32)
    index = np.empty((total, len(SIZES)), np.int64)
    score = dense[:, 0] - 0.5 * dense[:, 1]
    for column, size in enumerate(SIZES):
        ranks = random.zipf(1.3, total) - 1
        index[:, column] = np.where(ranks < size, ranks, random.integers(0, size, total))
        score += random.normal(size=size, scale=0.35)[index[:, column]]
    label = (random.random(total) < 1 / (1 + np.exp(-score))).astype(np.int64)
    features = FeatureSchema(
        (
            FeatureField(name="numbers", kind="dense", width=NUMBERS),
            *(
                FeatureField(name=f"category_{i}", kind="index", cardinality=size)
                for i, size in enumerate(SIZES)
            ),
        )
    )
    columns = {"dense": dense, "index": index, "y": label}
    splits: Any = {
        "train": {name: column[:rows] for name, column in columns.items()},
        "test": {name: column[rows:] for name, column in columns.items()},
    }
    return InMemory(features, splits)


def model(examples: InMemory, seed: int) -> Bound:
    """The same weights on both sides."""
    return build(DCNv2(dim=DIM, hidden=(256, 128), layers=2), examples.features, seed=seed)


def precision() -> Literal["float32", "bfloat16"]:
    """What the processor multiplies fastest."""
    try:
        check_bfloat16("cpu")
    except ValueError:
        return "float32"
    return "bfloat16"


def ours(examples: InMemory, seed: int) -> Bound:
    """A pass over the rows."""
    strategy = Single(
        loss=BinaryCrossEntropy("y"),
        batch_size=BATCH,
        optimizer="adam",
        lr=1e-3,
        rows=RowWise(lr=0.05),
        precision=precision(),
    )
    with tempfile.TemporaryDirectory() as directory:
        return strategy.fit(model(examples, seed), examples, Run(directory=Path(directory)))  # pyright: ignore[reportReturnType]


def peer(examples: InMemory, seed: int, fused: bool = False) -> Bound:
    """A pass over the rows, every table a dense gradient and dense moments."""
    made = model(examples, seed)
    module: Any = made.module.train()
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3, fused=fused)
    columns = {name: torch.from_numpy(column) for name, column in examples.columns.items()}
    for first in range(0, len(columns["y"]), BATCH):
        part = {name: column[first : first + BATCH] for name, column in columns.items()}
        label = part.pop("y")
        loss = binary_cross_entropy_with_logits(module(**part), label.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return made


def auc(fitted: Bound, examples: InMemory) -> float:
    """On the rows that were held out."""
    part = {n: torch.from_numpy(c) for n, c in examples.splits["test"].items()}
    label = part.pop("y").numpy()
    module: Any = fitted.module.eval()
    with torch.no_grad():
        score = module(**part).float().numpy()
    ranks = np.empty(len(score))
    ranks[np.argsort(score, kind="stable")] = np.arange(1, len(score) + 1)
    positive = int(label.sum())
    rest = len(label) - positive
    return float((ranks[label == 1].sum() - positive * (positive + 1) / 2) / (positive * rest))


def figures(quick: bool) -> Iterator[Figure]:
    """Both, in turn."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = (48 if quick else 120) * BATCH
        ratios: dict[str, list[float]] = {"dense_adam": [], "fused_adam": []}
        gains: list[float] = []
        sides: dict[str, Callable[[InMemory, int], Bound]] = {
            "ours": ours,
            "dense_adam": peer,
            "fused_adam": partial(peer, fused=True),
        }
        for seed in range(3 if quick else 5):
            examples = clicks(rows, 20 * BATCH, seed)
            spent: dict[str, float] = {}
            quality: dict[str, float] = {}
            for name in list(sides)[:: 1 if seed % 2 else -1]:
                begin = time.process_time()
                fitted = sides[name](examples, seed)
                spent[name] = time.process_time() - begin
                quality[name] = auc(fitted, examples)
            for name, found in ratios.items():
                found.append(spent[name] / spent["ours"])
            gains.append(quality["ours"] - quality["dense_adam"])
        label = f"a torch {torch.__version__} loop, Adam over 1.5 million rows"
        for name, found in ratios.items():
            yield figure(f"ctr_train_vs_{name}", found, label, 3.5)
        yield figure("ctr_train_auc_gain", gains, label, 0.0)
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    options = words(__doc__)
    for measured in figures(options.quick):
        show(measured, options.json)
