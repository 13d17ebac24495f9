from typing import Any

import pytest
import torch
from torch import Tensor, nn

from drivetrain.core.schema import FeatureSchema
from drivetrain.models import MLP
from drivetrain.models.bind import build


class Named(nn.Module):
    """Keeps what it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3))
        self.seen: dict[str, Tensor] = {}


def test_the_same_seed_gives_the_same_weights_and_leaves_the_generator(
    features: FeatureSchema,
) -> None:
    before = torch.get_rng_state()
    one, two, other = (build(MLP(), features, seed=seed) for seed in (4, 4, 5))
    assert torch.equal(torch.get_rng_state(), before)
    pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(one.module.head.weight, other.module.head.weight)  # pyright: ignore


def test_forward_is_fed_by_the_names_of_features(
    features: FeatureSchema, inputs: dict[str, Tensor]
) -> None:
    class Model(Named):
        def forward(
            self,
            carrier: Tensor,
            hour: Tensor,
            amount: Tensor,
            pair: Tensor,
            words: Tensor,
            photo: Tensor,
            scale: float = 2.0,
        ) -> Tensor:
            self.seen = dict(locals())
            return amount

    model = build(Model, features)
    model(*inputs.values())
    seen = model.module.seen
    assert torch.equal(seen["amount"], inputs["dense"][:, :1])
    assert torch.equal(seen["hour"], inputs["dense"][:, 1:])
    assert torch.equal(seen["carrier"], inputs["index"][:, 0])
    assert torch.equal(seen["pair"], inputs["index"][:, 1:])
    assert torch.equal(seen["words"], inputs["words"])
    assert torch.equal(seen["photo"], inputs["photo"])
    assert seen["scale"] == 2.0


def test_rest_takes_what_no_parameter_names(
    features: FeatureSchema, inputs: dict[str, Tensor]
) -> None:
    class Model(Named):
        def forward(self, carrier: Tensor, dense: Tensor, **rest: Tensor) -> Tensor:
            self.seen = rest
            return dense

    model = build(Model, features)
    model(*inputs.values())
    assert list(model.module.seen) == ["index", "words", "photo"]


def test_a_factory_may_take_nothing_or_the_features(features: FeatureSchema) -> None:
    class Model(Named):
        def __init__(self, hidden: int = 4) -> None:
            super().__init__()
            self.hidden = hidden

        def forward(self, **rest: Tensor) -> Tensor:
            return rest["dense"]

    class Knowing(Model):
        def __init__(self, features: FeatureSchema | None = None) -> None:
            super().__init__()
            self.features = features

    assert build(Model, features).module.hidden == 4
    assert build(Knowing, features).module.features is features
    assert build(lambda schema: Knowing(schema), features).module.features is features


def test_a_parameter_that_is_no_feature_is_refused(features: FeatureSchema) -> None:
    class Model(Named):
        def forward(self, carier: Tensor, **rest: Tensor) -> Tensor:
            return carier

    with pytest.raises(ValueError, match=r"'carier' in Model.forward. Did you mean 'carrier'"):
        build(Model, features)


def test_a_feature_that_enters_no_parameter_is_refused(features: FeatureSchema) -> None:
    class Model(Named):
        def forward(self, dense: Tensor, carrier: Tensor, words: Tensor, photo: Tensor) -> Tensor:
            return dense

    with pytest.raises(ValueError, match=r"feature 'pair' enters no parameter of Model.forward"):
        build(Model, features)


def test_a_factory_must_make_a_module(features: FeatureSchema) -> None:
    factory: Any = lambda features: 3  # noqa: E731
    with pytest.raises(ValueError, match="model factory: found 3"):
        build(factory, features)
