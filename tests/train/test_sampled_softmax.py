"""The softmax over some of all items: its gradient, and that it speaks of all."""

from collections.abc import Iterator
from itertools import permutations, product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.train.sampled_softmax import SampledSoftmax
from drivetrain.train.towers import softmax
from drivetrain.train.towers.softmax import Sampled, drawn, softmax_loss


def plain(found: Sampled, scale: float, weights: torch.Tensor) -> torch.Tensor:
    """The definition: the own item's score is as it is, the others' are corrected."""
    scores = scale * found.users @ found.items.T
    rows = torch.arange(len(scores))
    logits = scores + found.correction
    logits[rows, found.own] = scores[rows, found.own]
    losses = torch.nn.functional.cross_entropy(logits, found.own, reduction="none")
    return (losses * weights).mean()


def some(rows: int, candidates: int, dim: int, seed: int) -> Sampled:
    made = torch.Generator().manual_seed(seed)
    users, items = (torch.randn(n, dim, generator=made) for n in (rows, candidates))
    own = torch.randint(candidates, (rows,), generator=made)
    correction = 3 * torch.randn(candidates, generator=made)
    return Sampled(users.requires_grad_(), items.requires_grad_(), own, correction)


@settings(max_examples=40)
@given(
    rows=st.integers(1, 40),
    candidates=st.integers(1, 30),
    dim=st.integers(1, 5),
    seed=st.integers(0, 1000),
    at_once=st.sampled_from([1, 64, 1 << 18]),
)
def test_loss_and_gradients_are_those_of_the_definition(
    rows: int, candidates: int, dim: int, seed: int, at_once: int
) -> None:
    found = some(rows, candidates, dim, seed)
    weights = torch.rand(rows, generator=torch.Generator().manual_seed(seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(softmax, "NUMBERS", at_once)
        loss = softmax_loss(found, 5.0, weights)
    due = plain(found, 5.0, weights)
    torch.testing.assert_close(loss, due, rtol=1e-4, atol=1e-5)
    ours = torch.autograd.grad(3 * loss, [found.users, found.items])
    theirs = torch.autograd.grad(3 * due, [found.users, found.items])
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_only_vectors_that_want_a_gradient_cost_one() -> None:
    found = some(4, 3, 2, 0)
    with torch.no_grad():
        assert not softmax_loss(found, 1.0).requires_grad
    assert softmax_loss(found, 1.0).requires_grad


ROWS_OF = (4, 2, 1, 1)
"""In how many of the training rows each of the items 1 to 4 is; an id 0 is none."""


def batches(own: int, others: int, mixed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """All that a row with an item can meet in a batch, each as often as any other."""
    rows = [item for item, count in enumerate(ROWS_OF, start=1) for _ in range(count)]
    rows.remove(own)
    items = range(1, len(ROWS_OF) + 1)
    for rest, negatives in product(permutations(rows, others), product(items, repeat=mixed)):
        yield torch.tensor([own, *rest]), torch.tensor(negatives, dtype=torch.int64)


def times(ids: torch.Tensor, negatives: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """How often each came: what a softmax over a batch goes by that corrects nothing."""
    return torch.bincount(torch.cat([ids, negatives]))[candidates]


@pytest.mark.parametrize(("others", "mixed"), [(2, 1), (2, 0), (1, 2)])
def test_the_mean_of_the_sum_over_candidates_is_the_sum_over_all_items(
    others: int, mixed: int
) -> None:
    scores = torch.tensor([0.0, 0.3, -1.2, 2.0, 0.9])
    frequency = torch.tensor([0, *ROWS_OF]) / (sum(ROWS_OF) - 1)
    whole = scores[1:].exp().sum().item()
    for item in range(1, 5):
        found: dict[bool, list[float]] = {True: [], False: []}
        for ids, negatives in batches(item, others, mixed):
            candidates, own, correction = drawn(ids, frequency, negatives, len(ROWS_OF))
            for corrected, sums in found.items():
                term = correction if corrected else times(ids, negatives, candidates).log()
                logits = scores[candidates] + term
                logits[own[0]] = scores[item]
                sums.append(logits.exp().sum().item())
        mean = {corrected: sum(sums) / len(sums) for corrected, sums in found.items()}
        assert mean[True] == pytest.approx(whole, rel=1e-5)
        assert mean[False] != pytest.approx(whole, rel=0.05)


@pytest.mark.parametrize("mixed", [0, 200])
def test_gradients_are_those_of_the_full_softmax_with_the_correction_alone(mixed: int) -> None:
    made = torch.Generator().manual_seed(1)
    share = torch.tensor([0.62, 0.2, 0.1, 0.05, 0.03])
    scores = torch.tensor([0.5, 0.0, 1.0, -0.5, 0.7])
    frequency = torch.cat([torch.zeros(1), share])
    total = {True: torch.zeros(5), False: torch.zeros(5)}
    due = torch.zeros(5)
    for _ in range(200):
        ids = torch.multinomial(share, 400, replacement=True, generator=made) + 1
        negatives = torch.randint(1, 6, (mixed,), generator=made)
        candidates, own, correction = drawn(ids, frequency, negatives, 5)
        for corrected, sums in total.items():
            vectors = scores[candidates - 1, None].clone().requires_grad_()
            term = correction if corrected else times(ids, negatives, candidates).log()
            softmax_loss(Sampled(torch.ones(len(ids), 1), vectors, own, term), 1.0).backward()
            assert vectors.grad is not None
            sums[candidates - 1] += vectors.grad[:, 0]
        due += scores.softmax(0) - torch.bincount(ids - 1, minlength=5) / len(ids)
    size = due.abs().max()
    assert (total[True] - due).abs().max() < 0.02 * size
    assert (total[False] - due).abs().max() > 0.1 * size


def test_what_came_of_the_own_item_by_accident_is_no_negative() -> None:
    frequency = torch.tensor([0.0, 0.5, 0.25, 0.25])
    alike = torch.tensor([2, 2, 2])
    candidates, own, correction = drawn(alike, frequency, torch.tensor([2, 2]), 3)
    assert candidates.tolist() == [2]
    assert own.tolist() == [0, 0, 0]
    found = Sampled(torch.ones(3, 2), torch.ones(1, 2), own, correction)
    assert softmax_loss(found, 1.0).item() == 0
    lone = drawn(torch.tensor([3]), frequency, torch.tensor([], dtype=torch.int64), 3)
    found = Sampled(torch.ones(1, 2), torch.ones(1, 2), lone[1], lone[2])
    assert softmax_loss(found, 1.0).item() == pytest.approx(0, abs=1e-5), "nothing else is there"


def test_an_item_is_a_candidate_once_however_often_it_came() -> None:
    frequency = torch.tensor([0.0, 0.6, 0.3, 0.1])
    ids, negatives = torch.tensor([1, 2, 1]), torch.tensor([3, 1])
    candidates, own, correction = drawn(ids, frequency, negatives, 3)
    assert candidates.tolist() == [1, 2, 3]
    assert own.tolist() == [0, 1, 0]
    expected = 2 * frequency[1:] + 2 / 3
    torch.testing.assert_close(correction, (torch.tensor([3, 1, 1]) / expected).log())


def test_weights_say_how_much_a_row_counts() -> None:
    found = some(6, 4, 3, 2)
    weights = torch.tensor([0.0, 0.0, 3.0, 0.0, 3.0, 0.0])
    loss = SampledSoftmax(temperature=0.5)
    two = found._replace(users=found.users[[2, 4]], own=found.own[[2, 4]])
    torch.testing.assert_close(loss(found, {"weight": weights}), loss(two, {}))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mixed": -1}, r"SampledSoftmax\.mixed: found -1"),
        ({"mixed": 1.5}, r"SampledSoftmax\.mixed: found 1\.5"),
        ({"temperature": 0}, r"SampledSoftmax\.temperature: found 0"),
        ({"temperature": float("nan")}, r"SampledSoftmax\.temperature: found nan"),
    ],
)
def test_options_out_of_range_are_refused_where_they_are_declared(
    options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        SampledSoftmax(**options)
