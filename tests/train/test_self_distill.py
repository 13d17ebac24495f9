"""The loss whose outputs teach one another, against its formula and through a training."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from drivetrain.core.seams import Run
from drivetrain.models import FinalNet
from drivetrain.models.bind import build
from drivetrain.train import (
    BinaryCrossEntropy,
    CrossEntropy,
    MeanSquaredError,
    SelfDistill,
    Single,
)

Y = torch.tensor([0, 1, 1, 0, 1])
LOGITS = torch.randn(5, 2, generator=torch.manual_seed(0))


def test_the_mean_learns_from_the_truth_and_every_block_from_the_mean() -> None:
    logits = LOGITS.clone().requires_grad_()
    mean = logits.mean(1)
    taught = mean.detach().sigmoid()
    due = F.binary_cross_entropy_with_logits(mean, Y.float())
    for block in range(2):
        due = due + 0.5 * F.binary_cross_entropy_with_logits(logits[:, block], taught)
    (expected,) = torch.autograd.grad(due, logits)
    other = LOGITS.clone().requires_grad_()
    loss = SelfDistill(BinaryCrossEntropy("y"), weight=0.5)(other, {"y": Y})
    torch.testing.assert_close(loss, due)
    (found,) = torch.autograd.grad(loss, other)
    torch.testing.assert_close(found, expected)


def test_classes_and_numbers_are_taught_as_well() -> None:
    classes = torch.randn(5, 3, 4, generator=torch.manual_seed(1))
    mean = classes.mean(1)
    due = F.cross_entropy(mean, Y)
    for block in range(3):
        due = due + F.cross_entropy(classes[:, block], mean.softmax(-1))
    found = SelfDistill(CrossEntropy("y"))(classes, {"y": Y})
    torch.testing.assert_close(found, due, rtol=1e-5, atol=1e-5)
    mean = LOGITS.mean(1)
    due = F.mse_loss(mean, Y.float()) + sum(F.mse_loss(LOGITS[:, b], mean) for b in range(2))
    torch.testing.assert_close(SelfDistill(MeanSquaredError("y"))(LOGITS, {"y": Y}), due)


def test_what_is_served_validated_and_taught_on_is_the_mean() -> None:
    hard = BinaryCrossEntropy("y")
    loss, mean = SelfDistill(hard), LOGITS.mean(1)
    assert loss.target == "y"
    torch.testing.assert_close(loss.predictions(LOGITS)["y"], mean.sigmoid())
    assert loss.scores(LOGITS, {"y": Y}) == hard.scores(mean, {"y": Y})
    teacher = torch.tensor([0.1, 0.9, 0.8, 0.2, 0.5])
    torch.testing.assert_close(loss.toward(LOGITS, teacher, 2.0), hard.toward(mean, teacher, 2.0))
    with pytest.raises(ValueError, match="row 0 of a batch: found 2"):
        loss.check({"y": np.array([2])})


def test_a_training_serves_one_probability_of_two_blocks(made: Any, tmp_path: Path) -> None:
    examples = made(1500)
    loss = SelfDistill(BinaryCrossEntropy("y"))
    strategy = Single(loss=loss, epochs=4, batch_size=128, lr=1e-2)
    model = build(FinalNet(blocks=((16,), (16,)), dim=4), examples.features)
    heard: list[Any] = []
    fitted = strategy.fit(model, examples, Run(directory=tmp_path, emit=heard.append))
    losses = [m.value for m in heard if getattr(m, "name", "") == "validate/loss"]
    assert losses[-1] < losses[0] < 0.75
    table = examples.tables["validate"]
    with torch.no_grad():
        logits = fitted(*(torch.from_numpy(table[n]) for n in examples.features.tensors.names))  # pyright: ignore
    assert logits.shape == (500, 2)
    served = strategy.predictions(logits)["y"]
    torch.testing.assert_close(served, logits.mean(1).sigmoid())


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: SelfDistill(len), "SelfDistill.hard"),  # pyright: ignore
        (lambda: SelfDistill(BinaryCrossEntropy("y"), weight=-1), "SelfDistill.weight: found -1"),
        (
            lambda: SelfDistill(BinaryCrossEntropy("y"))(LOGITS[:, 0], {"y": Y}),
            r"outputs of a model with SelfDistill: found \(5,\), allowed: \[rows, blocks\]",
        ),
        (
            lambda: SelfDistill(CrossEntropy("y"))(LOGITS, {"y": Y}),
            r"allowed: \[rows, blocks, classes\]",
        ),
    ],
)
def test_a_wrong_option_or_output_is_named(make: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()
