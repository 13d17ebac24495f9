from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from drivetrain.core.seams import Order, Shard
from drivetrain.train.privacy.poisson import Poisson
from drivetrain.train.privacy.secret import Secret
from drivetrain.train.together.group import Alone


def test_secrets_differ_unless_they_are_of_one_seed() -> None:
    noise = [Secret(Alone()).noise(0, 8) for _ in range(2)]
    assert not torch.equal(*noise)
    assert torch.equal(Secret(Alone(), 3).noise(0, 8), Secret(Alone(), 3).noise(0, 8))
    assert not torch.equal(Secret(Alone(), 3).noise(0, 8), Secret(Alone(), 4).noise(0, 8))


def test_updates_share_no_noise_and_a_repeated_one_has_the_same() -> None:
    secret = Secret(Alone())
    first, second = secret.noise(0, 1000), secret.noise(1, 1000)
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 0.2
    other = Secret(Alone())
    other.load(*secret.state())
    assert torch.equal(other.noise(1, 1000), second)
    assert np.array_equal(other.rows(5, 1000, 0.1), secret.rows(5, 1000, 0.1))


def test_noise_is_standard_normal() -> None:
    drawn = Secret(Alone(), 0).noise(7, 200_000).double()
    assert abs(float(drawn.mean())) < 0.01
    assert float(drawn.var()) == pytest.approx(1, rel=0.02)
    assert float((drawn.abs() < 1).double().mean()) == pytest.approx(0.6827, abs=0.005)


@given(st.integers(0, 500), st.floats(0, 1), st.integers(0, 10**6))
def test_drawn_rows_ascend_and_are_rows(rows: int, probability: float, update: int) -> None:
    drawn = Secret(Alone(), 1).rows(update, rows, probability)
    assert (np.diff(drawn) > 0).all()
    assert not len(drawn) or (drawn[0] >= 0 and drawn[-1] < rows)


def test_each_row_is_drawn_by_itself_with_the_probability() -> None:
    secret, rows, updates, probability = Secret(Alone(), 2), 50, 4000, 0.1
    taken = np.zeros((updates, rows))
    for update in range(updates):
        taken[update, secret.rows(update, rows, probability)] = 1
    sizes = taken.sum(1)
    assert np.allclose(taken.mean(0), probability, atol=0.03)
    assert sizes.var() == pytest.approx(rows * probability * (1 - probability), rel=0.1)
    together = np.corrcoef(taken.T)[~np.eye(rows, dtype=bool)]
    assert np.abs(together).max() < 0.1
    assert (sizes == 0).any()


@given(st.integers(1, 5), st.integers(0, 3))
def test_shards_share_each_drawn_batch_whatever_their_number(
    made: Any, count: int, skip: int
) -> None:
    examples = Poisson(made(101), 101, Secret(Alone(), 5))
    order, start = Order(9, 2), skip * 20
    alone = list(examples.batches("train", size=20, order=order, start=start))
    assert len(alone) == 6 - skip
    parts = [
        list(examples.batches("train", Shard(i, count), size=20, order=order, start=start))
        for i in range(count)
    ]
    for number, batch in enumerate(alone):
        joined = np.concatenate([part[number]["dense"] for part in parts])
        assert np.array_equal(joined, batch["dense"])


def test_an_epoch_has_batches_of_its_own_and_validation_is_read_in_order(made: Any) -> None:
    examples = Poisson(made(100), 100, Secret(Alone(), 5))
    first, second = (
        [len(b) for b in examples.batches("train", size=10, order=Order(0, epoch))]
        for epoch in (0, 1)
    )
    assert first != second
    validated = np.concatenate([b["y"] for b in examples.batches("validate", size=64)])
    assert np.array_equal(validated, made(100).tables["validate"]["y"])
    assert examples.rows("validate") == 500
