"""What ranking models learn and a linear one cannot: planted in made rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drivetrain.core.batch import Batch
from drivetrain.core.schema import FeatureField, FeatureSchema, Field, Schema
from drivetrain.core.seams import Order, Run, Shard, Source, Split
from drivetrain.models import (
    Attention,
    DeepFM,
    FinalNet,
    LogisticRegression,
    MaskNet,
)
from drivetrain.models.bind import build
from drivetrain.train import BinaryCrossEntropy, RowWise, SelfDistill, Single

ITEMS, PLACES = 20, 6
BCE = BinaryCrossEntropy("y")
DIN = (Attention(history="recent", item="item", hidden=(16,)),)


class Clicks:
    """Users of two kinds see items of two kinds; ``y`` is whether the kinds are the same.

    Of half of the rows the user is known by what they had, of the others by a column.
    """

    def __init__(self, rows: int, by_history: bool) -> None:
        self.features = FeatureSchema(
            (
                FeatureField(name="user", kind="index", cardinality=12),
                FeatureField(name="item", kind="index", cardinality=ITEMS),
                FeatureField(name="recent", kind="bag", width=PLACES, cardinality=ITEMS),
            )
        )
        self.targets = Schema((Field("y", "int64"),))
        random = np.random.default_rng(0)
        user, item = random.integers(2, 12, rows), random.integers(2, ITEMS, rows)
        kind = random.integers(0, 2, rows) if by_history else user % 2
        recent = random.integers(1, ITEMS // 2, (rows, PLACES)) * 2
        recent = np.where(by_history, np.minimum(recent + kind[:, None], ITEMS - 1), 0)
        recent[random.random(recent.shape) < 0.3] = 0
        self.columns = {
            "index": np.stack([user, item], 1),
            "recent": recent,
            "y": ((item % 2) == kind).astype(np.int64),
        }

    @property
    def events(self) -> Source:
        raise AssertionError("the loop needs no events")

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
    ) -> Any:
        for first in range(start, self.rows(split) or 0, size):
            yield Batch({n: c[first : first + size].copy() for n, c in self.columns.items()})


def right(factory: Any, clicks: Clicks, folder: Path, loss: Any = BCE, **options: Any) -> float:
    """The share of rows that a trained model is right about, on its own rows."""
    strategy = Single(loss=loss, epochs=6, batch_size=100, lr=2e-2, **options)
    model = build(factory, clicks.features, seed=3)
    fitted: Any = strategy.fit(model, clicks, Run(directory=folder))  # pyright: ignore
    with torch.no_grad():
        outputs = fitted(*(torch.from_numpy(clicks.columns[n]) for n in ("index", "recent")))
    found = strategy.predictions(outputs)["y"].numpy()
    return float(((found > 0.5) == clicks.columns["y"]).mean())


@pytest.mark.parametrize(
    ("factory", "loss"),
    [
        (FinalNet(blocks=((16, 8), (16,))), SelfDistill(BCE)),
        (FinalNet(blocks=((16,),), gate=True, norm="none"), BCE),
        (MaskNet(blocks=(16, 16), hidden=(8,)), BCE),
        (MaskNet(blocks=(16, 16), structure="serial", hidden=()), BCE),
    ],
)
def test_a_product_of_two_columns_is_learnt(factory: Any, loss: Any, tmp_path: Path) -> None:
    assert right(factory, Clicks(1500, by_history=False), tmp_path, loss) > 0.97


def test_a_linear_model_learns_no_product(tmp_path: Path) -> None:
    assert right(LogisticRegression(), Clicks(1500, by_history=False), tmp_path / "a") < 0.65
    assert right(LogisticRegression(), Clicks(1500, by_history=True), tmp_path / "b") < 0.65


@pytest.mark.parametrize("rows", [None, RowWise(at_least=10, lr=0.1)], ids=["dense", "by rows"])
@pytest.mark.parametrize(
    "factory",
    [DeepFM(hidden=(16,), attention=DIN), MaskNet(blocks=(16,), hidden=(), attention=DIN)],
    ids=["DeepFM", "MaskNet"],
)
def test_whether_an_item_is_like_the_history_is_learnt(
    factory: Any, rows: RowWise | None, tmp_path: Path
) -> None:
    assert right(factory, Clicks(1500, by_history=True), tmp_path, rows=rows) > 0.9


def test_by_rows_a_shared_table_is_trained_as_a_dense_adagrad_does(tmp_path: Path) -> None:
    """Gradients of the history's lookups and of the item's are summed before the update."""
    clicks, weights = Clicks(400, by_history=True), list[Any]()
    for rows in (None, RowWise(at_least=2, optimizer="adagrad")):
        strategy = Single(loss=BCE, optimizer="adagrad", lr=0.05, batch_size=64, rows=rows)
        model = build(FinalNet(blocks=((8,),), norm="none", attention=DIN), clicks.features, seed=1)
        fitted: Any = strategy.fit(model, clicks, Run(directory=tmp_path / str(rows is None)))  # pyright: ignore
        weights.append(fitted.state_dict())
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=2e-4, atol=2e-6, msg=name)


def test_the_same_training_gives_the_same_bits(tmp_path: Path) -> None:
    clicks = Clicks(300, by_history=True)
    factory = FinalNet(blocks=((8,), (8,)), gate=True, dropout=0.1, attention=DIN)
    found = []
    for name in ("one", "other"):
        strategy = Single(loss=SelfDistill(BCE), batch_size=64)
        model = build(factory, clicks.features)
        found.append(strategy.fit(model, clicks, Run(directory=tmp_path / name)).state_dict())  # pyright: ignore
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
