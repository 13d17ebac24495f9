"""The training loop beside a raw PyTorch loop, Lightning and Accelerate, on rows in memory.

    python bench/loop.py --quick --json

All train the same model from the same weights, on one thread. Ours runs as it comes: the whole of
``Single.fit``, with metrics, progress, checks and checkpoints. Peers log, print and keep nothing.

``loop_vs_raw_torch``: the loop as one writes it by hand, with the same fused AdamW, over slices of
the same tensors in the same order.

``loop_vs_lightning`` and ``loop_vs_accelerate``: each as its documentation has it, a ``DataLoader``
with ``shuffle=True`` over a ``TensorDataset``, and ``torch.optim.AdamW`` as it comes; ours shuffles
rows too. Most of the difference is the ``DataLoader``, which fetches rows one by one, and the
optimizer: both are part of what a user gets.

``loop_vs_…_same_batches``: the peers are handed our batches, in their order, and fused AdamW. That
is the frameworks' own cost alone, for whoever tunes them so far. No loop can be faster there than
the raw one by more than what that wastes: ``raw_vs_…_same_batches`` is that floor.
"""

import logging
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader, TensorDataset

from bench.figure import Figure, figure, show, speed_ratios, words
from bench.made import InMemory, clicks
from drivetrain.core.seams import Run
from drivetrain.models import MLP
from drivetrain.models.bind import Bound, build
from drivetrain.train import BinaryCrossEntropy, Single

BATCH = 512
HIDDEN = (128, 64)
EPOCHS = 4

Tensors = tuple[Tensor, ...]
Batches = Callable[[], Iterable[Tensors]]
"""What an epoch goes through."""
Optimizer = Callable[[Iterable[Tensor]], torch.optim.Optimizer]
Fit = Callable[[Bound], None]


def fused(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    """AdamW with one kernel for all."""
    return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0, fused=True)


def default(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    """AdamW as it comes."""
    return torch.optim.AdamW(parameters, lr=1e-3)


def slices(tensors: Tensors) -> Iterable[Tensors]:
    """Batches as views, one behind another."""

    class Slices:
        def __iter__(self) -> Iterator[Tensors]:
            for first in range(0, len(tensors[-1]), BATCH):
                yield tuple(tensor[first : first + BATCH] for tensor in tensors)

        def __len__(self) -> int:
            return -(-len(tensors[-1]) // BATCH)

    return Slices()


def loader(tensors: Tensors) -> Iterable[Tensors]:
    """Batches as PyTorch's tutorials make them."""
    return DataLoader(TensorDataset(*tensors), batch_size=BATCH, shuffle=True)


def ours(model: Bound, examples: InMemory) -> None:
    """The whole of ``Single.fit``."""
    directory = Path(tempfile.mkdtemp())
    try:
        strategy = Single(loss=BinaryCrossEntropy("y"), epochs=EPOCHS, batch_size=BATCH)
        strategy.fit(model, examples, Run(directory=directory))
    finally:
        shutil.rmtree(directory)


def raw(model: Bound, tensors: Tensors) -> None:
    """The loop as one writes it by hand."""
    module, (dense, index, label) = model.module.train(), tensors
    optimizer = fused(module.parameters())
    for _ in range(EPOCHS):
        for first in range(0, len(label), BATCH):
            rows = slice(first, first + BATCH)
            optimizer.zero_grad()
            logits = module(dense=dense[rows], index=index[rows])
            loss = binary_cross_entropy_with_logits(logits, label[rows].float())
            loss.backward()
            optimizer.step()


def lightning(batches: Iterable[Tensors], optimizer: Optimizer) -> Fit:
    """Lightning's loop, with all that writes or prints switched off."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lightning as L

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(L.LightningModule):
        def __init__(self, model: Bound) -> None:
            super().__init__()
            self.model = model.module

        def training_step(self, batch: Tensors, number: int) -> Tensor:
            dense, index, label = batch
            logits = self.model(dense=dense, index=index)
            return binary_cross_entropy_with_logits(logits, label.float())

        def configure_optimizers(self) -> Any:
            return optimizer(self.parameters())

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
            ).fit(Module(model), batches)

    return fit


def accelerate(batches: Iterable[Tensors], optimizer: Optimizer) -> Fit:
    """A loop through Accelerate, as its quick tour has it."""
    from accelerate import Accelerator

    def fit(model: Bound) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            accelerator = Accelerator(cpu=True)
            inner: Any = model.module.train()
            module, stepper = accelerator.prepare(inner, optimizer(inner.parameters()))
            given = accelerator.prepare(batches) if isinstance(batches, DataLoader) else batches
            for _ in range(EPOCHS):
                for dense, index, label in given:
                    stepper.zero_grad()
                    logits = module(dense=dense, index=index)
                    loss = binary_cross_entropy_with_logits(logits, label.float())
                    accelerator.backward(loss)
                    stepper.step()

    return fit


PEERS: dict[str, Callable[[Iterable[Tensors], Optimizer], Fit]] = {
    "lightning": lightning,
    "accelerate": accelerate,
}


def figures(quick: bool) -> Iterator[Figure]:
    """Speed of the loop over speed of each peer, the median of alternating rounds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield from _beside_raw(quick)
        for name, peer in PEERS.items():
            yield from _beside(name, peer, quick)
    finally:
        torch.set_num_threads(threads)


def _beside_raw(quick: bool) -> Iterator[Figure]:
    examples = clicks((192 if quick else 512) * BATCH)
    tensors, rounds = _tensors(examples), 15 if quick else 25
    _same_weights(_model(examples), _model(examples), examples, tensors)
    ratios = speed_ratios(
        lambda: ours(_model(examples), examples), lambda: raw(_model(examples), tensors), rounds
    )
    peer = f"raw PyTorch {torch.__version__} loop, fused AdamW"
    yield figure("loop_vs_raw_torch", ratios, peer, 0.97)


def _beside(name: str, peer: Any, quick: bool) -> Iterator[Figure]:
    """As its users have it, then with our batches and optimizer."""
    label = f"{name.title()} {version(name)}"
    examples = clicks(48 * BATCH, shuffled=True)
    fit = peer(loader(_tensors(examples)), default)
    rounds = 5 if quick else 11
    ratios = speed_ratios(
        lambda: ours(_model(examples), examples), lambda: fit(_model(examples)), rounds
    )
    yield figure(f"loop_vs_{name}", ratios, f"{label}, DataLoader, AdamW as they come", 1.5)
    examples = clicks((96 if quick else 256) * BATCH)
    tensors = _tensors(examples)
    tuned = peer(slices(tensors), fused)
    sides = {
        "loop": lambda: ours(_model(examples), examples),
        "raw": lambda: raw(_model(examples), tensors),
    }
    for side, work in sides.items():
        ratios = speed_ratios(work, lambda: tuned(_model(examples)), 9 if quick else 15)
        goal = 1.5 if side == "loop" else 1.0
        yield figure(f"{side}_vs_{name}_same_batches", ratios, f"{label}, fused AdamW", goal)


def _model(examples: InMemory) -> Bound:
    return build(MLP(hidden=HIDDEN), examples.features, seed=0)


def _tensors(examples: InMemory) -> Tensors:
    return tuple(torch.from_numpy(examples.columns[n]) for n in ("dense", "index", "y"))


def _same_weights(one: Bound, two: Bound, examples: InMemory, tensors: Tensors) -> None:
    """Both loops end with the same weights, to rounding: they did the same work."""
    ours(one, examples)
    raw(two, tensors)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


if __name__ == "__main__":
    options = words(__doc__)
    for measured in figures(options.quick):
        show(measured, options.json)
