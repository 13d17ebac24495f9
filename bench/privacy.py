"""Private training beside opacus: rows a CPU second of the whole of ``Single.fit``.

    python bench/privacy.py --quick --json

Both train the same model from the same weights, over Poisson batches of the same mean size with
the same cut, noise and optimizer, on one thread. Ours runs as it comes, with metrics, checks and
checkpoints; its accountant runs before the clock, as opacus's own is not asked at all. The peer is
opacus's fastest mode for the model, found in a warm-up: hooks, ghost or functorch.
"""

import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bench.figure import Figure, figure, show, words
from bench.made import InMemory
from drivetrain.core.schema import FeatureField, FeatureSchema
from drivetrain.core.seams import Run
from drivetrain.models.bind import build
from drivetrain.train import CrossEntropy, Private, Single

BATCH = 256
CLASSES = 10
NOISE = 1.0
CLIP = 1.0
MODES = ("hooks", "ghost", "functorch")


class Perceptron(nn.Module):
    """Three linear layers over 64 numbers."""

    shape: tuple[int, ...] = (64,)

    def __init__(self) -> None:
        super().__init__()
        widths = (64, 256, 128, CLASSES)
        layers: list[nn.Module] = []
        for width, out in pairwise(widths):
            layers += [nn.Linear(width, out), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[rows, classes]``."""
        return self.layers(x)


class Convolutions(nn.Module):
    """Two convolutions with group norm over 16 × 16 images of three channels."""

    shape: tuple[int, ...] = (3, 16, 16)

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels, out in ((3, 16), (16, 32)):
            norm = nn.GroupNorm(4, out)
            layers += [nn.Conv2d(channels, out, 3, padding=1), norm, nn.ReLU(), nn.MaxPool2d(2)]
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[rows, classes]``."""
        return self.layers(x)


def made(rows: int, shape: tuple[int, ...]) -> InMemory:
    """Noise, each row with the number of a class."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(rows, *shape)).astype(np.float32)
    features = FeatureSchema((FeatureField(name="x", kind="tensor", shape=shape),))
    return InMemory(features, {"train": {"x": x, "y": generator.integers(0, CLASSES, rows)}})


def ours(model: Callable[[], nn.Module], examples: InMemory) -> float:
    """CPU seconds of ``Single.fit``."""
    private = Private(clip_norm=CLIP, delta=1e-6, noise_multiplier=NOISE)
    loss = CrossEntropy("y")
    strategy = Single(loss=loss, batch_size=BATCH, optimizer="sgd", lr=0.1, privacy=private)
    bound = build(model, examples.features)
    directory = Path(tempfile.mkdtemp())
    try:
        begin = time.process_time()
        strategy.fit(bound, examples, Run(directory=directory))
        return time.process_time() - begin
    finally:
        shutil.rmtree(directory)


def opacus(model: Callable[[], nn.Module], examples: InMemory, mode: str) -> float:
    """CPU seconds of a loop as opacus's documentation has it."""
    from opacus import PrivacyEngine

    tensors = [torch.from_numpy(column) for column in examples.columns.values()]
    rows = TensorDataset(*tensors)
    module = build(model, examples.features).module.train()
    optimizer: Any = torch.optim.SGD(module.parameters(), lr=0.1)
    made = PrivacyEngine().make_private(
        module=module,
        optimizer=optimizer,
        data_loader=DataLoader(rows, batch_size=BATCH),
        criterion=nn.CrossEntropyLoss(),
        noise_multiplier=NOISE,
        max_grad_norm=CLIP,
        grad_sample_mode=mode,
    )
    if mode == "ghost":
        private, optimizer, criterion, loader = made
    else:
        (private, optimizer, loader), criterion = made, nn.CrossEntropyLoss()
    begin = time.process_time()
    for x, y in loader:
        optimizer.zero_grad()
        criterion(private(x), y).backward()
        optimizer.step()
    return time.process_time() - begin


def figures(quick: bool) -> Iterator[Figure]:
    """Speed of ours over speed of opacus, and over that of the same training without privacy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # opacus warns of its own defaults
            models = (("mlp", Perceptron), ("cnn", Convolutions))
            measured = [_beside_opacus(name, model, quick) for name, model in models]
    finally:
        torch.set_num_threads(threads)
    yield from measured
    # One word for both models: the worse of the two.
    least = min(measured, key=lambda each: each["value"])
    yield Figure({**least, "figure": "dp_vs_opacus"})


def _beside_opacus(name: str, model: Any, quick: bool) -> Figure:
    examples = made((32 if quick else 128) * BATCH, model.shape)
    ours(model, examples)  # the accountant's answer is kept from here on
    warm = {mode: opacus(model, examples, mode) for mode in MODES}
    best = min(warm, key=lambda mode: warm[mode])
    ratios: list[float] = []
    for number in range(5 if quick else 11):
        sides = (lambda: ours(model, examples), lambda: opacus(model, examples, best))
        first = number % 2
        seconds = {first: sides[first](), 1 - first: sides[1 - first]()}
        ratios.append(seconds[1] / seconds[0])
    return figure(f"dp_vs_opacus_{name}", ratios, f"opacus {version('opacus')}, {best}", 1.0)


if __name__ == "__main__":
    options = words(__doc__)
    for measured in figures(options.quick):
        show(measured, options.json)
