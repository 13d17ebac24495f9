"""Histories pooled by an item, as a part of every model: the formula, and what must hold."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from drivetrain.core.schema import FeatureField, FeatureSchema
from drivetrain.models import (
    MLP,
    Attention,
    ConvNet,
    DCNv2,
    DeepFM,
    FinalNet,
    MaskNet,
    WideAndDeep,
)
from drivetrain.models.attention import HistoryPool
from drivetrain.models.bind import build
from drivetrain.models.embedding import Inputs, Tables

DIN = Attention(history="recent", item="item", hidden=(5, 4))
EVERY: tuple[Any, ...] = (
    MLP(hidden=(8,)),
    MLP(hidden=(8,), members=2, dims={"item": 3}),
    WideAndDeep(hidden=(8,)),
    DeepFM(hidden=(8,)),
    DCNv2(hidden=(8,), layers=1),
    FinalNet(blocks=((8,), (6,)), gate=True),
    MaskNet(blocks=(8, 6), hidden=(4,)),
)


@pytest.fixture
def features() -> FeatureSchema:
    return FeatureSchema(
        (
            FeatureField(name="age", kind="dense"),
            FeatureField(name="user", kind="index", cardinality=7),
            FeatureField(name="item", kind="index", cardinality=9),
            FeatureField(name="words", kind="bag", width=2, cardinality=5),
            FeatureField(name="recent", kind="bag", width=4, cardinality=9),
        )
    )


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    """Five rows; the second has padding in the midst, the third no history."""
    random = np.random.default_rng(5)
    arrays = {
        "dense": random.normal(size=(5, 1)).astype(np.float32),
        "index": np.stack([random.integers(0, n, 5) for n in (7, 9)], 1),
        "words": random.integers(0, 5, (5, 2)),
        "recent": np.array([[3, 8, 1, 2], [4, 0, 0, 6], [0, 0, 0, 0], [5, 5, 0, 0], [7, 2, 8, 1]]),
    }
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def given(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(*inputs.values())


@pytest.mark.parametrize("normalize", [False, True])
def test_a_weight_is_what_a_network_says_of_both_their_difference_and_their_product(
    normalize: bool,
) -> None:
    torch.manual_seed(0)
    pool = HistoryPool(3, replace(DIN, normalize=normalize, activation="tanh"))
    w = {name: p.detach().double().numpy() for name, p in pool.named_parameters()}
    random = np.random.default_rng(0)
    history, item = random.normal(size=(6, 4, 3)), random.normal(size=(6, 3))
    there = random.random((6, 4)) < 0.6
    there[2] = False
    # A network over [h, q, h - q, h * q]: any weights for the difference, which h and q take up.
    on_difference = random.normal(size=(5, 3))
    on_history = w["history.weight"][:, :3] - on_difference
    on_item = w["item.weight"] + on_difference
    due = np.zeros((6, 1, 3))
    for row in range(6):
        q = item[row]
        scores = []
        for h in history[row]:
            x = on_history @ h + on_item @ q + on_difference @ (h - q)
            x = np.tanh(x + w["history.weight"][:, 3:] @ (h * q) + w["item.bias"])
            x = np.tanh(w["hidden.0.weight"] @ x + w["hidden.0.bias"])
            scores.append(float((w["head.weight"] @ x + w["head.bias"])[0]))
        chosen = np.flatnonzero(there[row])
        part = np.array(scores)[chosen]
        if normalize and len(chosen):
            part = np.exp(part) / np.exp(part).sum()
        due[row, 0] = part @ history[row][chosen]
    found = pool(
        torch.from_numpy(history).float(),
        torch.from_numpy(item).float(),
        torch.from_numpy(there),
    )
    np.testing.assert_allclose(found.detach().numpy(), due, rtol=1e-4, atol=1e-5)
    assert (found[2] == 0).all(), "nobody's history says nothing"


def test_history_and_item_have_the_same_rows_of_the_table(
    features: FeatureSchema, inputs: dict[str, torch.Tensor]
) -> None:
    tables = Tables(features, 3, attention=(DIN,))
    assert tables.table is not None
    assert tables.table.num_embeddings == 7 + 9 + 5
    ids, words, recent = tables.lookups(inputs)
    assert torch.equal(recent, inputs["recent"] + 7)
    assert torch.equal(ids[:, 1], inputs["index"][:, 1] + 7)
    assert torch.equal(words, inputs["words"] + 16)


@pytest.mark.parametrize("factory", EVERY, ids=lambda f: repr(f)[:40])
def test_every_weight_of_a_model_with_attention_gets_a_gradient(
    factory: Any, features: FeatureSchema, inputs: dict[str, torch.Tensor]
) -> None:
    model = build(replace(factory, attention=(DIN,)), features, seed=1)
    logits = model(*inputs.values())
    (logits * torch.arange(1.0, 1 + logits.numel()).view_as(logits)).sum().backward()
    pools = [name for name, _ in model.named_parameters() if ".pools." in name]
    assert len(pools) == 7
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("factory", EVERY, ids=lambda f: repr(f)[:40])
def test_a_row_says_the_same_wherever_padding_stands_and_whoever_is_beside_it(
    factory: Any, normalize: bool, features: FeatureSchema, inputs: dict[str, torch.Tensor]
) -> None:
    model = build(replace(factory, attention=(replace(DIN, normalize=normalize),)), features)
    whole = given(model, inputs)
    for row in range(5):
        alone = given(model, {name: tensor[row : row + 1] for name, tensor in inputs.items()})
        torch.testing.assert_close(alone, whole[row : row + 1], rtol=1e-5, atol=1e-6)
    moved = {**inputs, "recent": inputs["recent"].flip(1)}
    torch.testing.assert_close(given(model, moved), whole, rtol=1e-5, atol=1e-6)
    longer = torch.zeros(5, 9, dtype=torch.int64)
    longer[:, [0, 3, 4, 7]] = inputs["recent"]
    torch.testing.assert_close(
        given(model, {**inputs, "recent": longer}), whole, rtol=1e-5, atol=1e-6
    )
    assert whole.isfinite().all()


def test_an_image_may_stand_beside_a_history() -> None:
    features = FeatureSchema(
        (
            FeatureField(name="item", kind="index", cardinality=9),
            FeatureField(name="recent", kind="bag", width=4, cardinality=9),
            FeatureField(name="photo", kind="tensor", shape=(1, 4, 4)),
        )
    )
    model = build(ConvNet(channels=(2,), hidden=(3,), attention=(DIN,)), features)
    rows = torch.ones(2, 1, dtype=torch.int64), torch.ones(2, 4, dtype=torch.int64)
    assert model(*rows, torch.zeros(2, 1, 4, 4)).shape == (2,)


def test_the_history_has_the_width_of_its_item(features: FeatureSchema) -> None:
    inputs = Inputs(features, 8, {"item": 3}, attention=(DIN,))
    assert {table.dim: table.fields for table in inputs.tables} == {8: 2, 3: 2}  # pyright: ignore
    with pytest.raises(ValueError, match=r"dims\['recent'\]: found 4, allowed: 3, the width of"):
        Inputs(features, 8, {"item": 3, "recent": 4}, attention=(DIN,))


@pytest.mark.parametrize(
    ("attention", "says"),
    [
        (Attention(history="recen", item="item"), "Did you mean 'recent'"),
        (Attention(history="user", item="item"), "Attention.history 'user': found 'index'"),
        (Attention(history="recent", item="age"), "Attention.item 'age': found 'dense of 1'"),
        (Attention(history="recent", item="user"), "cardinalities 9 and 7"),
        (Attention(history="words", item="item"), "cardinalities 5 and 9"),
    ],
)
def test_what_cannot_attend_is_named(
    attention: Attention, says: str, features: FeatureSchema
) -> None:
    with pytest.raises(ValueError, match=says):
        build(MLP(attention=(attention,)), features)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Attention(history="a", item="b", hidden=()), "Attention.hidden"),
        (lambda: Attention(history="a", item="b", activation="rely"), "Did you mean 'relu'"),  # pyright: ignore
        (lambda: MLP(attention=DIN), "MLP.attention"),  # pyright: ignore
        (lambda: DCNv2(attention=(DIN, DIN)), "recent twice"),
    ],
)
def test_a_wrong_attention_is_named(make: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()
