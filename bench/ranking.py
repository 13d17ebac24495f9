"""Ranking models on one made log of clicks, of which it is known how well anybody can do.

    python bench/ranking.py --quick --json

The log is made and seeded, no real one. Items have kinds, which nothing tells. A user likes some
kinds, of which most of their last 20 items are. A click goes with whether one of those items is of
the kind of the item at hand, with an hour and a kind, a price and a device, and with the item; it
is drawn from a known probability, whose AUC on the test rows is the best there is on average
(``Bayes``). Users have no column of their own: all that is known of them is what they had.

``ctr_auc_x`` and ``ctr_auc_x_attention``: test AUC of a model after the same epochs over the same
rows, with the history's vectors averaged, or weighed by the item (``Attention``, DIN). The goal is
what that probability has itself. ``ctr_share_best``: of the gain from logistic regression to Bayes,
what the best model has.
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from bench.figure import Figure, figure, show, words
from bench.made import InMemory
from drivetrain.core.schema import FeatureField, FeatureSchema
from drivetrain.core.seams import Run
from drivetrain.models import (
    Attention,
    DCNv2,
    DeepFM,
    FinalNet,
    LogisticRegression,
    MaskNet,
    WideAndDeep,
)
from drivetrain.models.bind import build
from drivetrain.train import BinaryCrossEntropy, SelfDistill, Single

ITEMS, KINDS, LIKED, PLACES, HOURS, DEVICES = 500, 20, 3, 20, 24, 4
DIM, HIDDEN = 16, (64, 32)
DIN = (Attention(history="recent", item="item", hidden=(32, 16)),)
LOSS = BinaryCrossEntropy("y")
MODELS: dict[str, Any] = {
    "logistic_regression": LogisticRegression(),
    "wide_and_deep": WideAndDeep(dim=DIM, hidden=HIDDEN),
    "deepfm": DeepFM(dim=DIM, hidden=HIDDEN),
    "dcn_v2": DCNv2(dim=DIM, hidden=HIDDEN, layers=2),
    "final_net": FinalNet(dim=DIM, blocks=(HIDDEN, HIDDEN)),
    "mask_net": MaskNet(dim=DIM, blocks=(64, 64), hidden=(32,)),
}


def log(rows: int, held_out: int, seed: int) -> tuple[InMemory, float]:
    """Made impressions, and the AUC of the probability that their clicks were drawn from."""
    random = np.random.default_rng(seed)
    total = rows + held_out
    kind = random.integers(0, KINDS, ITEMS)
    likes = random.random((total, KINDS)).argsort(1)[:, :LIKED]
    of_kind = np.argsort(kind, kind="stable")
    starts, sizes = np.searchsorted(kind[of_kind], range(KINDS)), np.bincount(kind, minlength=KINDS)

    def some(kinds: Any) -> Any:
        return of_kind[starts[kinds] + (sizes[kinds] * random.random(kinds.shape)).astype(int)]

    wanted = np.take_along_axis(likes, random.integers(0, LIKED, (total, PLACES)), 1)
    stray = random.integers(0, KINDS, wanted.shape)
    recent = some(np.where(random.random(wanted.shape) < 0.8, wanted, stray))
    empty = np.arange(PLACES) >= random.integers(0, PLACES + 1, total)[:, None]
    at_hand = np.where(random.random(total) < 0.3, wanted[:, 0], random.integers(0, KINDS, total))
    item = some(at_hand)
    hour, device = random.integers(0, HOURS, total), random.integers(0, DEVICES, total)
    price = random.normal(size=total).astype(np.float32)
    by_hour = random.normal(size=(HOURS, KINDS)) * 0.7
    alike = ((kind[recent] == kind[item][:, None]) & ~empty).any(1)
    score = (
        *(-2.0 + 2.0 * alike, by_hour[hour, kind[item]], random.normal(size=ITEMS)[item] * 0.5),
        price * np.array([1.0, 0.3, -0.3, -1.0])[device],
    )
    chance = 1 / (1 + np.exp(-sum(score)))
    columns = {
        "dense": price[:, None],
        "index": np.stack([item + 2, hour + 2, device + 2], 1),
        "recent": np.where(empty, 0, recent + 2),
        "y": (random.random(total) < chance).astype(np.int64),
    }
    features = FeatureSchema(
        (
            FeatureField(name="price", kind="dense"),
            FeatureField(name="item", kind="index", cardinality=ITEMS + 2),
            FeatureField(name="hour", kind="index", cardinality=HOURS + 2),
            FeatureField(name="device", kind="index", cardinality=DEVICES + 2),
            FeatureField(name="recent", kind="bag", width=PLACES, cardinality=ITEMS + 2),
        )
    )
    splits: Any = {
        "train": {name: column[:rows] for name, column in columns.items()},
        "test": {name: column[rows:] for name, column in columns.items()},
    }
    return InMemory(features, splits, shuffled=True), _auc(chance[rows:], columns["y"][rows:])


def _auc(score: Any, label: Any) -> float:
    ranks = np.empty(len(score))
    ranks[np.argsort(score, kind="stable")] = np.arange(1, len(score) + 1)
    positive = int(label.sum())
    over = ranks[label == 1].sum() - positive * (positive + 1) / 2
    return float(over / (positive * (len(label) - positive)))


def measured(name: str, factory: Any, examples: InMemory, seed: int, epochs: int) -> float:
    """The AUC of a trained model on the test rows."""
    loss = SelfDistill(LOSS) if isinstance(factory, FinalNet) else LOSS
    strategy = Single(loss=loss, epochs=epochs, batch_size=512, lr=1e-2, seed=seed)
    model: Any = build(factory, examples.features, seed=seed)
    begin = time.process_time()
    with tempfile.TemporaryDirectory() as directory:
        fitted: Any = strategy.fit(model, examples, Run(directory=Path(directory)))
    seconds = time.process_time() - begin
    part = {n: torch.from_numpy(c) for n, c in examples.splits["test"].items()}
    label = part.pop("y").numpy()
    with torch.no_grad():
        found = strategy.predictions(fitted.eval().module(**part))["y"].numpy()
    value = _auc(found, label)
    print(f"{name}: AUC {value:.4f}, {seconds:.1f} CPU s", file=sys.stderr, flush=True)
    return value


def figures(quick: bool) -> Iterator[Figure]:
    """Every model without attention and with it, on the same rows."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found: dict[str, list[float]] = {}
        best: list[float] = []
        for seed in range(1 if quick else 3):
            examples, bayes = log(150_000 if quick else 600_000, 40_000, seed)
            best.append(bayes)
            for name, factory in MODELS.items():
                sides = {name: factory}
                if not isinstance(factory, LogisticRegression):
                    sides[f"{name}_attention"] = replace(factory, attention=DIN)
                for side, made in sides.items():
                    value = measured(side, made, examples, seed, 3)
                    found.setdefault(side, []).append(value)
        label = "Bayes AUC of the made log"
        for side, values in found.items():
            yield figure(f"ctr_auc_{side}", values, label, float(np.median(best)))
        plain = found["logistic_regression"]
        shares = [
            (max(values[i] for values in found.values()) - plain[i]) / (best[i] - plain[i])
            for i in range(len(best))
        ]
        yield figure("ctr_share_best", shares, label, 1.0)
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    options = words(__doc__)
    for each in figures(options.quick):
        show(each, options.json)
