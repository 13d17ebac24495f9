"""The prepared optimizers give the bits of torch's own, whatever happens between steps."""

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from drivetrain.train.loop import fused

KINDS = {"adam": (fused.Adam, torch.optim.Adam), "adamw": (fused.AdamW, torch.optim.AdamW)}


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(n, 3, generator=generator)) for n in (2, 5, 7)]


def groups(found: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [{"params": found[:2], "weight_decay": 0.3}, {"params": found[2:], "weight_decay": 0.0}]


def gradients(found: Iterable[Tensor], step: int, missing: bool = False) -> None:
    generator = torch.Generator().manual_seed(step)
    for number, parameter in enumerate(found):
        gradient = torch.randn(parameter.shape, generator=generator)
        parameter.grad = None if missing and number == 1 else gradient


@pytest.mark.parametrize("kind", KINDS)
def test_the_bits_are_those_of_torch_with_missing_gradients_and_other_rates(kind: str) -> None:
    ours, theirs = parameters(), parameters()
    options: dict[str, Any] = {"lr": 0.1, "betas": (0.8, 0.95), "fused": True}
    one, two = (
        make(groups(found), **options)
        for make, found in zip(KINDS[kind], (ours, theirs), strict=True)
    )
    straight: list[bool] = []
    for step in range(12):
        for optimizer, found in ((one, ours), (two, theirs)):
            gradients(found, step, missing=step in (4, 5))
            for group in optimizer.param_groups:
                group["lr"] = 0.1 / (1 + step)
        if step == 8:  # as a resumed training has it
            one.load_state_dict(one.state_dict())
        before = one._ready
        one.step()
        straight.append(before is not None)
        two.step()
        assert all(map(torch.equal, ours, theirs)), step
    assert straight == [False, *[True] * 7, False, True, True, True]
    states = [optimizer.state_dict()["state"] for optimizer in (one, two)]
    assert all(
        torch.equal(mine[name], yours[name])
        for mine, yours in zip(*(state.values() for state in states), strict=True)
        for name in yours
    )


@pytest.mark.parametrize("options", [{"foreach": True}, {"fused": True, "maximize": True}])
def test_what_it_does_not_know_is_left_to_torch(options: dict[str, Any]) -> None:
    ours, theirs = parameters(), parameters()
    one, two = fused.AdamW(ours, **options), torch.optim.AdamW(theirs, **options)
    for step in range(4):
        for optimizer, found in ((one, ours), (two, theirs)):
            gradients(found, step)
            optimizer.step()
        assert one._ready is None
    assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("first", [0, 1])
def test_a_hook_is_called_at_each_step_from_then_on(first: int) -> None:
    found, called = parameters(), []
    optimizer = fused.AdamW(found, fused=True)
    for step in range(3):
        if step == first:
            optimizer.register_step_post_hook(lambda *_: called.append(1))
        gradients(found, step)
        optimizer.step()
    assert len(called) == 3 - first
