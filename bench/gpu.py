"""The loop on a GPU beside raw PyTorch: samples a second, how busy the device is, and why not.

    python bench/gpu.py --quick --json

DeepFM over click-like rows, a convolutional net over images and BERT over tokens, made rows, in
bfloat16, through ``torch.compile``, with fused AdamW and kernels that need not be deterministic,
on both sides. Rows lie in the host's memory and travel batch by batch. The clock runs from an
update after the compiler's to the last, and the device has then finished. Without a GPU nothing is
printed; ``peer`` names the device.

``gpu_…_samples_per_second`` is the whole of ``Single.fit``; ``gpu_…_vs_raw_torch`` its speed over
that of a loop by hand. ``gpu_…_mfu`` is the arithmetic of the model's products, forward and
backward, as torch counts it, in a second, over what the maker states for dense bfloat16; absent for
a device whose figure is not in :data:`PEAKS`. ``gpu_…_wait_share`` is the share of the loop's time
beyond what the same updates take by hand when the batch lies on the device already: what the device
waits for data, and for whatever else the loop does.
"""

import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.flop_counter import FlopCounterMode

from bench.figure import Figure, figure, show, words
from bench.made import InMemory, clicks
from drivetrain.core.batch import Batch
from drivetrain.core.schema import FeatureField, FeatureSchema
from drivetrain.core.seams import ModelFactory, Run, Shard, Split
from drivetrain.models import ConvNet, DeepFM, HuggingFace
from drivetrain.models.bind import Bound, build
from drivetrain.train import BinaryCrossEntropy, Single

PEAKS: Mapping[str, float] = {
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
}
"""Dense bfloat16 operations a second by NVIDIA's data sheets; the first name that fits counts."""
WARM = 10
"""Updates before the clock runs; the compiler works in the first."""
LR = 1e-3


@dataclass(frozen=True, kw_only=True)
class Way:
    """How models are trained.

    Attributes:
        device: as torch names it.
        precision: of products.
        compile: through ``torch.compile``.
    """

    device: str
    precision: str = "bfloat16"
    compile: bool = True

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Products in the precision."""
        on = self.precision == "bfloat16"
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=on)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A model and made rows for it.

    Attributes:
        model: makes it.
        rows: made rows of a number.
        batch: rows of an update.
    """

    model: ModelFactory
    rows: Any
    batch: int


class Timed(InMemory):
    """Rows whose batches say when an update after the first few began, and when the last ended."""

    def __init__(self, examples: InMemory, way: Way) -> None:
        super().__init__(examples.features, examples.splits)
        self.way = way
        self.begun = self.ended = 0.0
        self.taken = 0

    def batches(
        self, split: Split, shard: Shard = Shard(), *, size: int, **options: Any
    ) -> Iterator[Batch]:
        """As they come, with the time taken down."""
        for batch in super().batches(split, shard, size=size, **options):
            if self.taken == WARM:
                self.way.wait()
                self.begun = time.perf_counter()
            self.taken += 1
            yield batch
        self.way.wait()
        self.ended = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Of an update."""
        return (self.ended - self.begun) / (self.taken - WARM)


def images(rows: int) -> InMemory:
    """Made images of 3 by 32 by 32, and labels that depend on them."""
    random = np.random.default_rng(0)
    image = random.normal(size=(rows, 3, 32, 32)).astype(np.float32)
    features = FeatureSchema((FeatureField(name="image", kind="tensor", shape=(3, 32, 32)),))
    label = (image[:, 0].mean((1, 2)) > 0).astype(np.int64)
    return InMemory(features, {"train": {"image": image, "y": label}})


def texts(rows: int, tokens: int = 128, words: int = 30_522) -> InMemory:
    """Made texts of so many tokens, and labels that depend on them."""
    tokens_of = np.random.default_rng(0).integers(1, words, (rows, tokens))
    field = FeatureField(name="tokens", kind="bag", width=tokens, cardinality=words)
    label = (tokens_of.mean(1) > words / 2).astype(np.int64)
    return InMemory(FeatureSchema((field,)), {"train": {"tokens": tokens_of, "y": label}})


TASKS: Mapping[str, Task] = {
    "deepfm": Task(model=DeepFM(hidden=(1024, 1024, 1024), dim=16), rows=clicks, batch=16_384),
    "conv": Task(model=ConvNet(channels=(128, 256, 512)), rows=images, batch=1024),
    "transformer": Task(model=HuggingFace(config={"model_type": "bert"}), rows=texts, batch=256),
}
"""BERT as it comes: twelve layers of 768 numbers."""


def ours(task: Task, examples: InMemory, way: Way) -> float:
    """Seconds of an update in the whole of ``Single.fit``."""
    timed = Timed(examples, way)
    strategy = Single(
        loss=BinaryCrossEntropy("y"),
        batch_size=task.batch,
        lr=LR,
        precision=way.precision,  # pyright: ignore[reportArgumentType]
        compile=way.compile,
        deterministic=False,
        checkpoint_seconds=None,
    )
    with tempfile.TemporaryDirectory() as folder:
        strategy.fit(_model(task, examples), timed, Run(directory=Path(folder), device=way.device))
    return timed.seconds


def raw(task: Task, examples: InMemory, way: Way, *, there: bool = False) -> float:
    """Seconds of an update in a loop as one writes it by hand.

    Args:
        task: with its model.
        examples: with its rows.
        way: of training.
        there: take the first batch again and again, which lies on the device.
    """
    module = _model(task, examples).to(way.device).train()
    forward = torch.compile(module) if way.compile else module
    optimizer = torch.optim.AdamW(module.parameters(), lr=LR, weight_decay=0.0, fused=True)
    timed = Timed(examples, way)
    first: tuple[list[Tensor], Tensor] | None = None
    for batch in timed.batches("train", size=task.batch):
        if first is None or not there:
            first = _tensors(batch, examples, way)
        inputs, label = first
        optimizer.zero_grad()
        with way.autocast():
            logits = forward(*inputs)
        binary_cross_entropy_with_logits(logits.float(), label.float()).backward()
        optimizer.step()
    return timed.seconds


def operations(task: Task, examples: InMemory, way: Way) -> int:
    """Multiplications and additions in the products of an update."""
    module = _model(task, examples).to(way.device).train()
    batch = next(iter(examples.batches("train", size=task.batch)))
    inputs, label = _tensors(batch, examples, way)
    with FlopCounterMode(display=False) as counted:
        with way.autocast():
            logits = module(*inputs)
        binary_cross_entropy_with_logits(logits.float(), label.float()).backward()
    return counted.get_total_flops()


def _model(task: Task, examples: InMemory) -> Bound:
    return build(task.model, examples.features, seed=0)


def _tensors(batch: Batch, examples: InMemory, way: Way) -> tuple[list[Tensor], Tensor]:
    def given(name: str) -> Tensor:
        return torch.from_numpy(batch[name]).to(way.device, non_blocking=True)

    return [given(name) for name in examples.features.tensors.names], given("y")


def of_task(
    name: str, task: Task, way: Way, device: str, updates: int, rounds: int
) -> Iterator[Figure]:
    """The figures of a model: all sides in turns, round by round.

    Args:
        name: of the model, in the figures.
        task: the model and its rows.
        way: of training.
        device: what the figures call it.
        updates: that are timed.
        rounds: of all sides.
    """
    examples = task.rows((WARM + updates) * task.batch)
    loop, hand, alone = list[float](), list[float](), list[float]()
    for _ in range(rounds):
        loop.append(ours(task, examples, way))
        hand.append(raw(task, examples, way))
        alone.append(raw(task, examples, way, there=True))
    peer = f"{device}, {way.precision}, {task.batch} rows an update"
    rates = [task.batch / seconds for seconds in loop]
    yield figure(f"gpu_{name}_samples_per_second", rates, f"none: stated; {peer}", 0.0)
    ratios = [b / a for a, b in zip(loop, hand, strict=True)]
    yield figure(
        f"gpu_{name}_vs_raw_torch", ratios, f"raw PyTorch {torch.__version__}; {peer}", 0.97
    )
    peak = next((value for known, value in PEAKS.items() if known in device), None)
    if peak is not None:
        count = operations(task, examples, way)
        by_hand = statistics.median(count / seconds / peak for seconds in hand)
        told = f"raw PyTorch {by_hand:.3f}; {count / 1e9:.4g} billion an update; {peer}"
        yield figure(f"gpu_{name}_mfu", [count / seconds / peak for seconds in loop], told, 0.0)
    waits = [max(0.0, 1 - b / a) for a, b in zip(loop, alone, strict=True)]
    yield figure(f"gpu_{name}_wait_share", waits, f"the batch on the device already; {peer}", 0.0)


def figures(quick: bool) -> Iterator[Figure]:
    """Those of each model, where there is a GPU."""
    if not torch.cuda.is_available():
        print("no figures of a GPU: there is none", file=sys.stderr)
        return
    way, device = Way(device="cuda"), torch.cuda.get_device_name()
    for name, task in TASKS.items():
        yield from of_task(name, task, way, device, *((50, 3) if quick else (200, 5)))


if __name__ == "__main__":
    options = words(__doc__)
    for measured in figures(options.quick):
        show(measured, options.json)
