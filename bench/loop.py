"""The training loop beside a raw PyTorch loop and beside Lightning, on batches in memory.

    python bench/loop.py --quick --json

All three train the same model from the same weights, with the same fused AdamW, over the same
made batches in the same order, on one thread. The raw loop calls the module directly and logs
nothing; Lightning runs without logger, checkpoints and progress bar. Ours runs as it comes: the
whole of ``Single.fit``, with metrics, progress, checks and checkpoints.
"""

import logging
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from bench.figure import Figure, figure, show, speed_ratios, words
from drivetrain.core.batch import Batch
from drivetrain.core.schema import FeatureField, FeatureSchema, Field, Schema
from drivetrain.core.seams import Order, Run, Shard, Source, Split
from drivetrain.models import MLP
from drivetrain.models.bind import Bound, build
from drivetrain.train import BinaryCrossEntropy, Single

BATCH = 512
HIDDEN = (128, 64)
DENSE = 13
INDEX = (7, 24, 3, 16, 105, 4_000, 50, 200, 1_000, 12)
EPOCHS = 4


class Made:
    """Made examples: click-like rows, all in memory, in their own order."""

    def __init__(self, rows: int) -> None:
        generator = np.random.default_rng(0)
        self.features = FeatureSchema(
            (
                FeatureField(name="numbers", kind="dense", width=DENSE),
                *(
                    FeatureField(name=f"category_{i}", kind="index", cardinality=size)
                    for i, size in enumerate(INDEX)
                ),
            )
        )
        self.targets = Schema((Field("y", "int64"),))
        dense = generator.normal(size=(rows, DENSE)).astype(np.float32)
        index = np.stack([generator.integers(0, size, rows) for size in INDEX], 1)
        label = (dense[:, 0] + index[:, 0] % 2 > generator.normal(size=rows)).astype(np.int64)
        self.columns = {"dense": dense, "index": index, "y": label}

    @property
    def events(self) -> Source:
        raise AssertionError("these examples have no events")

    def rows(self, split: Split) -> int | None:
        return len(self.columns["y"]) if split == "train" else 0

    def batches(
        self,
        split: Split,
        shard: Shard = Shard(),
        *,
        size: int,
        order: Order | None = None,
        start: int = 0,
    ) -> Iterator[Batch]:
        whole = Batch(self.columns)
        for first in range(start, self.rows(split) or 0, size):
            yield whole.slice(first, first + size)


def raw(model: Bound, tensors: tuple[Tensor, Tensor, Tensor]) -> None:
    """The loop as one writes it by hand."""
    module, (dense, index, label) = model.module.train(), tensors
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    for _ in range(EPOCHS):
        for first in range(0, len(label), BATCH):
            rows = slice(first, first + BATCH)
            optimizer.zero_grad()
            logits = module(dense=dense[rows], index=index[rows])
            loss = binary_cross_entropy_with_logits(logits, label[rows].float())
            loss.backward()
            optimizer.step()


def ours(model: Bound, examples: Made) -> None:
    """The whole of ``Single.fit``."""
    directory = Path(tempfile.mkdtemp())
    try:
        strategy = Single(loss=BinaryCrossEntropy("y"), epochs=EPOCHS, batch_size=BATCH)
        strategy.fit(model, examples, Run(directory=directory))
    finally:
        shutil.rmtree(directory)


def lightning(tensors: tuple[Tensor, Tensor, Tensor]) -> Callable[[Bound], None]:
    """Lightning's loop, with all that can be switched off switched off."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lightning as L

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(L.LightningModule):
        def __init__(self, model: Bound) -> None:
            super().__init__()
            self.model = model.module

        def training_step(self, batch: tuple[Tensor, Tensor, Tensor], number: int) -> Tensor:
            dense, index, label = batch
            logits = self.model(dense=dense, index=index)
            return binary_cross_entropy_with_logits(logits, label.float())

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=0.0, fused=True)

    class Batches:
        def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
            for first in range(0, len(tensors[2]), BATCH):
                yield tuple(tensor[first : first + BATCH] for tensor in tensors)

        def __len__(self) -> int:
            return -(-len(tensors[2]) // BATCH)

    def fit(model: Bound) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            L.Trainer(
                max_epochs=EPOCHS,
                accelerator="cpu",
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            ).fit(Module(model), Batches())

    return fit


def figures(quick: bool) -> Iterator[Figure]:
    """Speed of the loop over speed of each peer, the median of alternating rounds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield from _figures(quick)
    finally:
        torch.set_num_threads(threads)


def _figures(quick: bool) -> Iterator[Figure]:
    examples = Made((192 if quick else 512) * BATCH)
    rounds = 15 if quick else 25
    tensors = tuple(torch.from_numpy(examples.columns[n]) for n in ("dense", "index", "y"))
    assert len(tensors) == 3

    def model() -> Bound:
        return build(MLP(hidden=HIDDEN), examples.features, seed=0)

    _same_weights(model(), model(), examples, tensors)
    ratios = speed_ratios(lambda: ours(model(), examples), lambda: raw(model(), tensors), rounds)
    peer = f"raw PyTorch {torch.__version__} loop, fused AdamW"
    yield figure("loop_vs_raw_torch", ratios, peer, 0.97)
    fit = lightning(tensors)
    ratios = speed_ratios(lambda: ours(model(), examples), lambda: fit(model()), rounds)
    from lightning import __version__ as version

    yield figure("loop_vs_lightning", ratios, f"Lightning {version}, fused AdamW", 1.2)


def _same_weights(
    one: Bound, two: Bound, examples: Made, tensors: tuple[Tensor, Tensor, Tensor]
) -> None:
    """Both loops end with the same weights, to rounding: they did the same work."""
    ours(one, examples)
    raw(two, tensors)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


if __name__ == "__main__":
    options = words(__doc__)
    for measured in figures(options.quick):
        show(measured, options.json)
