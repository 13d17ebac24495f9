"""The zoo against formulas written anew in numpy, from the papers."""

from typing import Any

import numpy as np
import pytest
import torch

from drivetrain.core.schema import FeatureField, FeatureSchema
from drivetrain.models import (
    MLP,
    DCNv2,
    DeepFM,
    FinalNet,
    LogisticRegression,
    MaskNet,
    Periodic,
    WideAndDeep,
)
from drivetrain.models.bind import build
from drivetrain.models.embedding import PeriodicColumns, Tables

Arrays = dict[str, Any]


@pytest.fixture
def arrays(inputs: dict[str, torch.Tensor]) -> Arrays:
    return {name: tensor.numpy().astype(np.float64) for name, tensor in inputs.items()}


def weights(model: torch.nn.Module) -> Arrays:
    """Double weights by name, every one of them redrawn so that none is zero or one."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return {n: p.detach().numpy().astype(np.float64) for n, p in model.named_parameters()}


def vectors(table: np.ndarray, arrays: Arrays) -> np.ndarray:
    """Vectors of the features fixture, one column, one value and one bag at a time."""
    rows = []
    for i in range(4):
        row = []
        for column, offset in ((0, 0), (1, 5), (2, 9)):
            row.append(table[offset + int(arrays["index"][i, column])])
        words = [int(w) for w in arrays["words"][i] if w]
        zero = np.zeros(table.shape[1])
        row.append(sum((table[13 + w] for w in words), zero) / max(len(words), 1))
        rows.append(row)
    return np.array(rows)


def linear(w: Arrays, prefix: str, x: np.ndarray) -> np.ndarray:
    return x @ w[f"{prefix}.weight"].T + w.get(f"{prefix}.bias", 0)


def first_order(w: Arrays, prefix: str, arrays: Arrays) -> np.ndarray:
    numbers = np.concatenate([arrays["dense"], arrays["photo"].reshape(4, -1)], 1)
    total = numbers @ w[f"{prefix}.linear.weight"].T + w[f"{prefix}.bias"]
    return total + vectors(w[f"{prefix}.weights.table.weight"], arrays).sum(1)


def flat(w: Arrays, arrays: Arrays) -> np.ndarray:
    embedded = vectors(w["module.inputs.tables.0.table.weight"], arrays).reshape(4, -1)
    return np.concatenate([arrays["dense"], embedded, arrays["photo"].reshape(4, -1)], 1)


def check(model: torch.nn.Module, inputs: dict[str, torch.Tensor], expected: np.ndarray) -> None:
    found = model(*inputs.values()).detach().numpy()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


def test_tables_gather_and_average(
    features: FeatureSchema, inputs: dict[str, torch.Tensor], arrays: Arrays
) -> None:
    tables = Tables(features, 3)
    w = weights(tables)
    check_vectors = tables(inputs).detach().numpy()
    np.testing.assert_allclose(check_vectors, vectors(w["table.weight"], arrays), rtol=1e-6)


def test_field_dropout_drops_whole_vectors_in_training_only(
    features: FeatureSchema, inputs: dict[str, torch.Tensor]
) -> None:
    tables = Tables(features, 3, dropout=0.5)
    plain = tables.eval()(inputs)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dropped = tables.train()(inputs)
    kept = (dropped != 0).all(2)
    assert torch.equal(kept, (dropped != 0).any(2))
    torch.testing.assert_close(dropped[kept], 2 * plain[kept])
    assert 0 < int(kept.sum()) < kept.numel()


def test_logistic_regression(
    features: FeatureSchema, inputs: dict[str, torch.Tensor], arrays: Arrays
) -> None:
    model = build(LogisticRegression(), features)
    w = weights(model)
    check(model, inputs, first_order(w, "module.linear", arrays)[:, 0])


def test_mlp(features: FeatureSchema, inputs: dict[str, torch.Tensor], arrays: Arrays) -> None:
    model = build(MLP(hidden=(6,), dim=3), features)
    w = weights(model)
    hidden = np.maximum(linear(w, "module.hidden.0", flat(w, arrays)), 0)
    check(model, inputs, linear(w, "module.head", hidden)[:, 0])


def test_wide_and_deep(
    features: FeatureSchema, inputs: dict[str, torch.Tensor], arrays: Arrays
) -> None:
    model = build(WideAndDeep(hidden=(6,), dim=3), features)
    w = weights(model)
    deep = linear(w, "module.head", np.maximum(linear(w, "module.hidden.0", flat(w, arrays)), 0))
    check(model, inputs, (first_order(w, "module.wide", arrays) + deep)[:, 0])


def test_deepfm_sums_all_pairs_of_fields(
    features: FeatureSchema, inputs: dict[str, torch.Tensor], arrays: Arrays
) -> None:
    model = build(DeepFM(hidden=(6,), dim=3), features)
    w = weights(model)
    dense = arrays["dense"][:, :, None] * w["module.dense"]
    v = np.concatenate([vectors(w["module.tables.table.weight"], arrays), dense], 1)
    pairs = np.zeros(4)
    for i in range(v.shape[1]):
        for j in range(i):
            pairs += (v[:, i] * v[:, j]).sum(1)
    x = np.concatenate([v.reshape(4, -1), arrays["photo"].reshape(4, -1)], 1)
    deep = linear(w, "module.head", np.maximum(linear(w, "module.hidden.0", x), 0))[:, 0]
    check(model, inputs, first_order(w, "module.first", arrays)[:, 0] + pairs + deep)


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("structure", ["parallel", "stacked"])
def test_dcn_v2(
    rank: int | None,
    structure: Any,
    features: FeatureSchema,
    inputs: dict[str, torch.Tensor],
    arrays: Arrays,
) -> None:
    model = build(DCNv2(layers=2, rank=rank, structure=structure, hidden=(6,), dim=3), features)
    w = weights(model)
    x0 = x = flat(w, arrays)
    for layer in range(2):
        prefix = f"module.crosses.{layer}"
        matrix = w[f"{prefix}.up.weight"]
        if rank is not None:
            matrix = matrix @ w[f"{prefix}.down.weight"]
        x = x0 * (x @ matrix.T + w[f"{prefix}.up.bias"]) + x
    deep = np.maximum(linear(w, "module.hidden.0", x0 if structure == "parallel" else x), 0)
    last = np.concatenate([x, deep], 1) if structure == "parallel" else deep
    expected = linear(w, "module.head", last)[:, 0]
    found = model(*inputs.values()).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gate", [False, True])
def test_final_net(
    gate: bool, features: FeatureSchema, inputs: dict[str, torch.Tensor], arrays: Arrays
) -> None:
    config = FinalNet(blocks=((6, 5), (4,)), factors=3, gate=gate, dim=3, norm="none")
    model = build(config, features)
    w = weights(model)
    x = plain = flat(w, arrays)
    if gate:
        vectors_ = plain[:, 3:15].reshape(4, 4, 3)  # three numbers lie before the four fields
        gates = np.zeros_like(vectors_)
        for number in range(3):
            gates[:, :, number] = linear(w, "module.gate.gates.0", vectors_[:, :, number])
        x = np.concatenate([plain, (vectors_ * gates).reshape(4, -1)], 1)
    expected = []
    for block, (first, sizes) in enumerate(((x, (6, 5)), (plain, (4,)))):
        at = first
        for layer, size in enumerate(sizes):
            parts = linear(w, f"module.blocks.{block}.{layer}.linear", at)
            one, two, three = (parts[:, i * size : (i + 1) * size] for i in range(3))
            two = one * np.maximum(two, 0)
            at = one + two + two * np.maximum(three, 0)
        expected.append(linear(w, f"module.heads.{block}", at)[:, 0])
    found = model(*inputs.values()).detach().numpy()
    np.testing.assert_allclose(found, np.stack(expected, 1), rtol=1e-4, atol=1e-4)


def normal(x: np.ndarray) -> np.ndarray:
    """Layer normalisation over the last dimension, without weights."""
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)


@pytest.mark.parametrize("structure", ["parallel", "serial"])
def test_mask_net(
    structure: Any, features: FeatureSchema, inputs: dict[str, torch.Tensor], arrays: Arrays
) -> None:
    config = MaskNet(blocks=(6, 5), structure=structure, hidden=(4,), dim=3, reduction=1.5)
    model = build(config, features)
    w = weights(model)
    embeddings = flat(w, arrays)
    fields = normal(embeddings[:, 3:15].reshape(4, 4, 3))
    fields = fields * w["module.normal.scales.0"] + w["module.normal.shifts.0"]
    x = np.concatenate([embeddings[:, :3], fields.reshape(4, -1), embeddings[:, 15:]], 1)
    found, at = [], x
    for block in range(2):
        prefix = f"module.blocks.{block}"
        assert w[f"{prefix}.mask.0.weight"].shape[0] == round(1.5 * at.shape[1])
        mask = linear(
            w, f"{prefix}.mask.2", np.maximum(linear(w, f"{prefix}.mask.0", embeddings), 0)
        )
        out = normal((mask * at) @ w[f"{prefix}.hidden.0.weight"].T)
        out = np.maximum(out * w[f"{prefix}.hidden.1.weight"] + w[f"{prefix}.hidden.1.bias"], 0)
        found.append(out)
        at = out if structure == "serial" else x
    behind = np.concatenate(found, 1) if structure == "parallel" else at
    deep = np.maximum(linear(w, "module.hidden.0", behind), 0)
    expected = linear(w, "module.head", deep)[:, 0]
    found_ = model(*inputs.values()).detach().numpy()
    np.testing.assert_allclose(found_, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("adapters", ["all", "first"])
def test_each_member_is_a_network_of_its_own(
    adapters: Any, features: FeatureSchema, inputs: dict[str, torch.Tensor], arrays: Arrays
) -> None:
    model = build(MLP(hidden=(6, 5), dim=3, members=3, adapters=adapters), features)
    w = weights(model)
    members = []
    for k in range(3):
        x = flat(w, arrays)
        for layer in ("module.hidden.0", "module.hidden.2"):
            if f"{layer}.scale_in" in w:
                x = x * w[f"{layer}.scale_in"][k]
            x = x @ w[f"{layer}.linear.weight"].T + w.get(f"{layer}.linear.bias", 0)
            if adapters == "all":
                x = x * w[f"{layer}.scale_out"][k] + w[f"{layer}.bias"][k]
            x = np.maximum(x, 0)
        members.append(x @ w["module.head.weight"][k, 0] + w["module.head.bias"][k, 0])
    check(model, inputs, np.stack(members, 1))


def test_members_start_apart(features: FeatureSchema, inputs: dict[str, torch.Tensor]) -> None:
    logits = build(MLP(members=4, adapters="first"), features)(*inputs.values())
    assert (logits.std(1) > 0).all()


def test_periodic_columns() -> None:
    columns = PeriodicColumns(2, 3, 0.1, 4)
    w = weights(columns)
    x = np.random.default_rng(0).normal(size=(5, 2))
    expected = []
    for column in range(2):
        angle = 2 * np.pi * np.outer(x[:, column], w["frequencies"][column])
        waves = np.concatenate([np.cos(angle), np.sin(angle)], 1)
        expected.append(np.maximum(waves @ w["weight"][column] + w["bias"][column], 0))
    found = columns(torch.from_numpy(x).float()).detach().numpy()
    np.testing.assert_allclose(found, np.concatenate(expected, 1), rtol=1e-5, atol=1e-5)


def test_a_model_of_its_own_widths_has_one_table_for_each_width(features: FeatureSchema) -> None:
    module = build(MLP(dim=8, dims={"carrier": 3, "words": 3}), features).module
    tables = {table.dim: table.table.num_embeddings for table in module.inputs.tables}  # pyright: ignore
    assert tables == {3: 5 + 6, 8: 4 + 4}
    assert module.inputs.width == 3 + 3 * 2 + 8 * 2 + 2 * 8 * 8  # pyright: ignore


def test_a_periodic_mlp_has_embeddings_for_numbers(
    features: FeatureSchema, inputs: dict[str, torch.Tensor]
) -> None:
    one = FeatureSchema((FeatureField(name="amount", kind="dense", width=3),))
    module = build(MLP(hidden=(4,), numeric=Periodic(frequencies=2, dim=5)), one)
    assert module.module.inputs.width == 15  # pyright: ignore
    assert module(inputs["dense"]).shape == (4,)
