import pytest
import torch
from torch import nn

from drivetrain.models.layers import MemberLinear
from drivetrain.train.loop.optimizer import OPTIMIZERS, make

REFERENCE = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5, betas=(0.8, 0.9)),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.5, betas=(0.8, 0.9)),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.5, momentum=0.9),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, weight_decay=0.5),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_optimizer_is_torchs_own_and_fused(name: str) -> None:
    found, expected = (nn.Linear(3, 2, bias=False) for _ in range(2))
    expected.load_state_dict(found.state_dict())
    ours = make(found, name, lr=0.1, weight_decay=0.5, momentum=0.9, betas=(0.8, 0.9))
    theirs = REFERENCE[name](expected.parameters())
    x = torch.randn(8, 3, generator=torch.manual_seed(0))
    for model, optimizer in ((found, ours), (expected, theirs)):
        for _ in range(5):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(found.weight, expected.weight)
    assert ours.param_groups[0]["fused"]


def test_decay_is_for_weights_and_apart_for_tables() -> None:
    model = nn.ModuleDict(
        {
            "table": nn.Embedding(4, 2),
            "linear": nn.Linear(2, 3),
            "norm": nn.LayerNorm(3),
            "member": MemberLinear(3, 3, 2, first=True),
        }
    )
    groups = make(model, "adamw", lr=1, weight_decay=0.1, embedding_decay=0.01).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    found = {name: decay[id(parameter)] for name, parameter in model.named_parameters()}
    assert found == {
        "table.weight": 0.01,
        "linear.weight": 0.1,
        "linear.bias": 0.0,
        "norm.weight": 0.0,
        "norm.bias": 0.0,
        "member.scale_in": 0.0,
        "member.scale_out": 0.0,
        "member.bias": 0.0,
        "member.linear.weight": 0.1,
    }


def test_frozen_parameters_stay_out() -> None:
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    assert [len(g["params"]) for g in make(model, "sgd", lr=1).param_groups] == [1]
    model.weight.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        make(model, "sgd", lr=1)


def test_an_unknown_optimizer_suggests_the_nearest() -> None:
    with pytest.raises(ValueError, match="Did you mean 'adamw'"):
        make(nn.Linear(1, 1), "adamww", lr=1)
