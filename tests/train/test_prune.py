"""What pruning takes out of a model, what it leaves, and how the training goes on."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from drivetrain.core.metric import Emitted, Metric, silent
from drivetrain.core.schema import FeatureField, FeatureSchema
from drivetrain.core.seams import Reduced, Run
from drivetrain.models import MLP, ConvNet, DCNv2, DeepFM, LogisticRegression, WideAndDeep
from drivetrain.models.bind import build
from drivetrain.train import BinaryCrossEntropy, Single
from drivetrain.train.export import export
from drivetrain.train.prune import Prune

BCE = BinaryCrossEntropy("y")
IMAGES = FeatureSchema(
    (
        FeatureField(name="picture", kind="tensor", shape=(3, 8, 8)),
        FeatureField(name="b", kind="dense"),
    )
)


def sizes(model: nn.Module, kind: type[nn.Module]) -> list[tuple[int, ...]]:
    return [tuple(m.weight.shape) for m in model.modules() if isinstance(m, kind)]  # pyright: ignore[reportArgumentType, reportCallIssue]


@pytest.mark.parametrize(
    "factory",
    [
        MLP(hidden=(16, 8), dim=4, norm="batch", dropout=0.1),
        MLP(hidden=(16, 8), dim=4, norm="layer", outputs=3),
        MLP(hidden=(16, 8), dim=4, members=3),
        DeepFM(hidden=(16, 8)),
        DCNv2(hidden=(16, 8)),
        WideAndDeep(hidden=(16, 8)),
    ],
    ids=["batch norm", "three outputs", "members", "deepfm", "dcn", "wide and deep"],
)
def test_hidden_layers_get_narrower_and_their_ends_stay(factory: Any, made: Any) -> None:
    features = made(10).features
    model = build(factory, features, seed=1).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pruned = Prune(channels=0.5)(model, features.tensors, silent)
    count = [sum(p.numel() for p in each.parameters()) for each in (model, pruned)]
    assert count[1] < 0.9 * count[0]
    assert sizes(pruned, nn.Embedding) == sizes(model, nn.Embedding)
    generator = torch.Generator().manual_seed(0)
    rows = [
        torch.randn(3, 3, generator=generator),
        torch.randint(0, 5, (3, 2), generator=generator),
        torch.randint(0, 11, (3, 3), generator=generator),
    ]
    assert pruned(*rows).shape == model(*rows).shape
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    again = Prune(channels=0.5)(model, features.tensors, silent)
    pairs = zip(pruned.state_dict().values(), again.state_dict().values(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs), "all processes take the same ones"


def test_convolutions_lose_channels_and_what_hangs_on_them() -> None:
    model = build(ConvNet(channels=(8, 16), hidden=(12,)), IMAGES, seed=1)
    pruned = Prune(channels=0.75)(model, IMAGES.tensors, silent)
    assert sizes(pruned, nn.Conv2d) == [(2, 3, 3, 3), (4, 2, 3, 3)]
    assert sizes(pruned, nn.BatchNorm2d) == [(2,), (4,)]
    assert sizes(pruned, nn.Linear) == [(3, 5), (1, 3)]  # four channels and the number b
    assert len(export(pruned, IMAGES).model) < 12_000, "runs, and answers what torch answers"


def test_the_weakest_channels_go_and_the_others_stay_as_they_were() -> None:
    features = FeatureSchema((FeatureField(name="a", kind="dense", width=3),))
    model = build(MLP(hidden=(4,)), features, seed=1)
    first: Any = model.module.hidden[0]  # pyright: ignore[reportIndexIssue, reportAttributeAccessIssue]
    with torch.no_grad():
        first.weight[[1, 2]] *= 0.001  # pyright: ignore[reportIndexIssue]
        model.module.head.weight[:, [1, 2]] *= 0.001  # pyright: ignore[reportAttributeAccessIssue, reportIndexIssue]
    rows = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    pruned = Prune(channels=0.5)(model, features.tensors, silent)
    assert torch.equal(pruned.module.hidden[0].weight, first.weight[[0, 3]])  # pyright: ignore[reportIndexIssue, reportAttributeAccessIssue]
    torch.testing.assert_close(pruned(rows), model.eval()(rows), atol=1e-4, rtol=0)


def test_layers_that_are_kept_stay_and_nothing_to_prune_is_an_error(made: Any) -> None:
    features = made(10).features
    model = build(MLP(hidden=(16, 8), dim=4), features)
    pruned = Prune(keep=("*hidden.0",))(model, features.tensors, silent)
    assert sizes(pruned, nn.Linear) == [(16, 15), (4, 16), (1, 4)]
    with pytest.raises(ValueError, match="can be pruned: found 'none'"):
        Prune(keep=("*",))(model, features.tensors, silent)
    with pytest.raises(ValueError, match="can be pruned: found 'none'"):
        Prune()(build(LogisticRegression(), features), features.tensors, silent)


def test_a_model_that_counts_on_its_width_is_refused_with_the_way_out(made: Any) -> None:
    class Rigid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 8), nn.Linear(8, 1)

        def forward(self, dense: Tensor, **rest: Tensor) -> Tensor:
            return self.second(self.first(dense) + torch.ones(8)).squeeze(1)

    features = made(10).features
    with pytest.raises(ValueError, match=r"does not run without its channels: .* in keep"):
        Prune()(build(Rigid, features), features.tensors, silent)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 0.0}, r"Prune\.channels"),
        ({"channels": 1.0}, r"Prune\.channels"),
        ({"epochs": 0}, r"Prune\.epochs"),
        ({"lr": -1.0}, r"Prune\.lr"),
        ({"keep": "head"}, r"Prune\.keep"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Prune(**options)


# -- on the loop -----------------------------------------------------------------------------------


def test_fine_tuning_brings_back_what_pruning_cost_and_a_restart_ends_alike(
    made: Any, tmp_path: Path
) -> None:
    examples = made(1500)
    factory = MLP(hidden=(32, 16), dim=4, dropout=0.1)
    prune = Prune(channels=0.6, epochs=4)
    strategy = Single(loss=BCE, epochs=8, batch_size=64, lr=0.01, prune=prune, checkpoint_steps=20)

    def fit(name: str, emit: Any = silent) -> Reduced:
        run = Run(directory=tmp_path / name, emit=emit)
        fitted = strategy.fit(build(factory, examples.features, seed=1), examples, run)
        assert isinstance(fitted, Reduced)
        return fitted

    def loss(model: nn.Module) -> float:
        table = examples.tables["validate"]
        with torch.no_grad():
            outputs = model(*(torch.from_numpy(table[n]) for n in examples.features.tensors.names))
            return float(BCE(outputs, {"y": torch.from_numpy(table["y"])}))

    heard: list[Emitted] = []
    fitted = fit("whole", heard.append)
    cut = prune(fitted.before, examples.features.tensors, silent)
    before, worst, after = map(loss, (fitted.before, cut, fitted.model))
    assert worst > before + 0.05
    assert after < before + 0.2 * (worst - before)
    found = {h.name for h in heard if isinstance(h, Metric)}
    assert {"prune/parameters_before", "prune/parameters_after", "prune/train/loss"} <= found

    def stopping(item: Emitted) -> None:
        if isinstance(item, Metric) and item.name.startswith("prune/validate") and item.step == 48:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit("cut", stopping)
    again = fit("cut").model.state_dict().values()
    pairs = zip(fitted.model.state_dict().values(), again, strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)


def test_layers_that_are_joined_lose_their_own_weakest_channels() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.head = nn.Linear(3, 8), nn.Linear(3, 8), nn.Linear(16, 1)

        def forward(self, a: Tensor) -> Tensor:
            return self.head(torch.relu(torch.cat([self.left(a), self.right(a)], 1))).squeeze(1)

    features = FeatureSchema((FeatureField(name="a", kind="dense", width=3),))
    model: Any = build(Two, features, seed=1)
    with torch.no_grad():
        for part, first in ((model.module.left, 0), (model.module.right, 8)):
            part.weight[:4] *= 1e-3
            model.module.head.weight[:, first : first + 4] *= 1e-3
    kept = [getattr(model.module, name).weight[4:].clone() for name in ("left", "right")]
    pruned: Any = Prune(channels=0.5)(model, features.tensors, silent)
    assert torch.equal(pruned.module.left.weight, kept[0])
    assert torch.equal(pruned.module.right.weight, kept[1])
