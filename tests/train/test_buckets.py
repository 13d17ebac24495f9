"""Buckets of gradients: in which order they go."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from drivetrain.train.together import buckets
from drivetrain.train.together.group import Alone


class Done:
    """A sum that has come."""

    def wait(self) -> None: ...


@pytest.mark.parametrize("rows", [True, False])
def test_buckets_go_in_one_order_whichever_is_complete_first(
    monkeypatch: pytest.MonkeyPatch, rows: bool
) -> None:
    sent: list[int] = []

    def sum_up(flat: Tensor, **_: Any) -> Done:
        sent.append(len(flat))
        return Done()

    monkeypatch.setattr(buckets.dist, "all_reduce", sum_up)
    alone: Any = Alone()
    alone.channel = None
    early, late = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    sums = buckets.Sums([early, late], alone, 1)  # the last parameter's bucket is the first
    if rows:
        loss = late.sum() + early.sum()  # backward may come to either first
        sums.begin(loss.detach())
        early.register_hook(lambda gradient: gradient)
        loss.backward()
    sums.finish(torch.zeros(()))
    assert sent == [4, 2]  # three and the loss, then two
