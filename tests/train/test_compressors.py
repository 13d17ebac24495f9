"""Compressed sums: what went through, and what is still owed, add up to the truth."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from drivetrain.train import FP16, Int8, PowerSGD, TopK
from drivetrain.train.compression import Compression

COMPRESSIONS = (FP16(), Int8(), TopK(0.1), PowerSGD(2))
SHAPES = ((6, 5), (7,), (3, 4, 2), ())


class Together:
    """Group of several threads of this process, which meet at a barrier."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._meet = threading.Barrier(size, timeout=30)
        self._given: list[Tensor] = [torch.empty(0)] * size
        self._local = threading.local()

    @property
    def rank(self) -> int:
        return self._local.rank

    def gather(self, values: Tensor) -> list[Tensor]:
        self._given[self.rank] = values.clone()
        self._meet.wait()
        found = [given.clone() for given in self._given]
        self._meet.wait()
        assert len({(part.dtype, part.shape) for part in found}) == 1
        return found

    def sum(self, values: Tensor) -> Tensor:
        values.copy_(torch.stack(self.gather(values)).sum(0))
        return values

    def run(self, work: Callable[[int], Any]) -> list[Any]:
        """What each rank's work gives."""
        results: list[Any] = [None] * self.size

        def one(rank: int) -> None:
            self._local.rank = rank
            results[rank] = work(rank)

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(result is not None for result in results)
        return results


def updates(rank: int, step: int, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 * rank + step)
    return [scale * torch.randn(shape, generator=generator) for shape in SHAPES]


def exchange(compression: Compression, group: Together, rank: int, steps: int) -> Any:
    """All that went through, and what this rank owes, after some updates of an own memory."""
    compressor = compression.compressor()
    owed = [torch.zeros(shape) for shape in SHAPES]
    through = [torch.zeros(shape).double() for shape in SHAPES]
    for step in range(steps):
        for mine, update in zip(owed, updates(rank, step), strict=True):
            mine += update
        total, own = compressor(owed, group)
        for all_of, part in zip(through, total, strict=True):
            all_of += part.double()
        owed = [mine - sent for mine, sent in zip(owed, own, strict=True)]
    return through, owed


@pytest.mark.parametrize("compression", COMPRESSIONS, ids=lambda c: type(c).__name__)
@given(size=st.integers(1, 4), steps=st.integers(1, 6))
def test_what_went_through_and_what_is_owed_is_the_sum_of_all(
    compression: Compression, size: int, steps: int
) -> None:
    group = Together(size)
    results = group.run(lambda rank: exchange(compression, group, rank, steps))
    for number, shape in enumerate(SHAPES):
        truth = torch.zeros(shape).double()
        for rank in range(size):
            for step in range(steps):
                truth += updates(rank, step)[number]
        through = [found[number] for found, _ in results]
        assert all(torch.equal(through[0], other) for other in through)
        owed = sum((owes[number].double() for _, owes in results), torch.zeros(shape).double())
        # float16's own sum rounds once more, which nobody owes.
        limit = 2e-2 if isinstance(compression, FP16) else 1e-4
        torch.testing.assert_close(through[0] + owed, truth, rtol=limit, atol=limit)


@pytest.mark.parametrize("compression", COMPRESSIONS, ids=lambda c: type(c).__name__)
def test_what_is_owed_stays_bounded(compression: Compression) -> None:
    group = Together(2)
    few, many = (
        group.run(lambda rank, steps=steps: exchange(compression, group, rank, steps))
        for steps in (20, 200)
    )

    def size(results: Any) -> float:
        return float(sum(part.norm() for _, owed in results for part in owed))

    assert size(many) < 3 * size(few) + 1e-6


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 1e6, 1e30])
@pytest.mark.parametrize("compression", COMPRESSIONS, ids=lambda c: type(c).__name__)
def test_gradients_of_any_size_go_through(compression: Compression, scale: float) -> None:
    group = Together(2)
    results = group.run(lambda rank: compression.compressor()(updates(rank, 0, scale), group))
    total, own = results[0]
    assert all(part.isfinite().all() for part in (*total, *own))
    assert sum(float(part.abs().max()) for part in total) > 0.1 * scale


@pytest.mark.parametrize("compression", COMPRESSIONS, ids=lambda c: type(c).__name__)
def test_zeros_stay_zeros(compression: Compression) -> None:
    group = Together(1)
    zeros = [torch.zeros(shape) for shape in SHAPES]
    ((total, own),) = group.run(lambda rank: compression.compressor()(zeros, group))
    assert all(not part.any() for part in (*total, *own))


def test_a_matrix_of_low_rank_goes_through_once_the_iteration_has_found_it() -> None:
    """To float16, in which the left sides travel; the rest is owed."""
    group, compressor = Together(1), PowerSGD(2).compressor()
    generator = torch.Generator().manual_seed(0)
    update = torch.randn(30, 2, generator=generator) @ torch.randn(2, 20, generator=generator)
    for _ in range(2):
        ((total, _),) = group.run(lambda rank: compressor([update], group))
    torch.testing.assert_close(total[0], update, rtol=0, atol=2**-10 * float(update.abs().max()))


def test_the_state_brings_an_iteration_back() -> None:
    group = Together(1)
    one, two = PowerSGD(1).compressor(), PowerSGD(1).compressor()
    group.run(lambda rank: one(updates(0, 0), group))
    state = one.state()
    assert state["0"].shape == (5, 1), "as checkpoints have had it since the first"
    two.load(state)
    ((first, _),), ((second, _),) = (
        group.run(lambda rank, c=c: c(updates(0, 1), group)) for c in (one, two)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: TopK(0.0), "TopK.share: found 0.0, allowed: above 0 to 1"),
        (lambda: PowerSGD(0), "PowerSGD.rank: found 0, allowed: 1 or more"),
    ],
)
def test_an_option_out_of_range_is_refused(make: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()
