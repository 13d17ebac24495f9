import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from drivetrain import models
from drivetrain.core.describe import digest
from drivetrain.core.schema import FeatureField, FeatureSchema
from drivetrain.models import (
    MLP,
    ConvNet,
    DCNv2,
    DeepFM,
    FinalNet,
    HuggingFace,
    LogisticRegression,
    MaskNet,
    Periodic,
    WideAndDeep,
)
from drivetrain.models.bind import build

ENCODER = {
    "model_type": "bert",
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
}
EVERY = (
    LogisticRegression(),
    MLP(hidden=(8, 4)),
    MLP(hidden=()),
    MLP(hidden=(8,), numeric=Periodic(frequencies=3, dim=2), norm="layer", activation="gelu"),
    MLP(hidden=(8,), members=3, norm="batch", dropout=0.1, field_dropout=0.1),
    MLP(hidden=(8, 4), members=3, adapters="first", dims={"carrier": 3, "words": 2}),
    WideAndDeep(hidden=(8,), embedding_dropout=0.1),
    DeepFM(hidden=(8,), norm="batch", activation="silu"),
    DCNv2(hidden=(8,), layers=2),
    DCNv2(hidden=(8,), layers=2, rank=2, structure="stacked", activation="tanh"),
    FinalNet(blocks=((8, 6),), norm="none"),
    FinalNet(blocks=((8,), (6, 4)), gate=True, factors=3, dropout=0.1),
    MaskNet(blocks=(8, 6), hidden=(5,), dims={"carrier": 3}),
    MaskNet(blocks=(8, 6), structure="serial", hidden=(), reduction=2, dims={"carrier": 1}),
    ConvNet(channels=(4, 6), hidden=(8,)),
    HuggingFace(config=ENCODER, dim=4),
)


@pytest.mark.parametrize("factory", EVERY, ids=lambda f: repr(f)[:60])
def test_every_model_answers_rows_first_and_every_weight_gets_a_gradient(
    factory: Callable[..., torch.nn.Module],
    features: FeatureSchema,
    inputs: dict[str, torch.Tensor],
) -> None:
    model = build(factory, features, seed=1)
    logits = model(*inputs.values())
    members = getattr(factory, "members", len(getattr(factory, "blocks", ())) or 1)
    if isinstance(factory, MaskNet):
        members = 1
    assert logits.shape == ((4, members) if members > 1 else (4,))
    (logits * torch.arange(1.0, 1 + logits.numel()).view_as(logits)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(
    "factory",
    [
        LogisticRegression(outputs=3),
        MLP(outputs=3),
        WideAndDeep(outputs=3),
        DCNv2(outputs=3),
        FinalNet(blocks=((8,),), outputs=3),
        MaskNet(outputs=3),
        ConvNet(channels=(4,), outputs=3),
        HuggingFace(config=ENCODER, outputs=3),
    ],
)
def test_more_outputs_are_columns(
    factory: Callable[..., torch.nn.Module],
    features: FeatureSchema,
    inputs: dict[str, torch.Tensor],
) -> None:
    assert build(factory, features)(*inputs.values()).shape == (4, 3)


def test_blocks_come_between_rows_and_outputs(
    features: FeatureSchema, inputs: dict[str, torch.Tensor]
) -> None:
    assert build(FinalNet(outputs=3), features)(*inputs.values()).shape == (4, 2, 3)


def test_members_come_between_rows_and_outputs(
    features: FeatureSchema, inputs: dict[str, torch.Tensor]
) -> None:
    model = build(MLP(members=5, outputs=3), features)
    assert model(*inputs.values()).shape == (4, 5, 3)


@pytest.mark.parametrize(
    "kept", [("dense",), ("index",), ("bag",), ("tensor",), ("dense", "bag")], ids=str
)
@pytest.mark.parametrize(
    "factory",
    [
        LogisticRegression(),
        MLP(),
        WideAndDeep(),
        DeepFM(),
        DCNv2(rank=2),
        FinalNet(blocks=((8,),), gate=True),
        MaskNet(blocks=(8,)),
    ],
)
def test_any_kind_of_feature_may_be_absent(
    factory: Callable[..., torch.nn.Module],
    kept: tuple[str, ...],
    features: FeatureSchema,
    inputs: dict[str, torch.Tensor],
) -> None:
    some = FeatureSchema(tuple(f for f in features.features if f.kind in kept))
    model = build(factory, some)
    assert model(*[inputs[name] for name in some.tensors.names]).shape == (4,)


@pytest.mark.parametrize("factory", [MLP(norm="batch"), MLP(norm="batch", members=2)])
def test_a_last_batch_of_one_row_passes_batch_normalisation(
    factory: MLP, features: FeatureSchema, inputs: dict[str, torch.Tensor]
) -> None:
    model = build(factory, features).train()
    assert model(*[tensor[:1] for tensor in inputs.values()]).isfinite().all()


def test_declaring_imports_neither_torch_nor_numpy() -> None:
    code = (
        "import sys, drivetrain.models, drivetrain.train; "
        "print([m for m in ('torch', 'numpy', 'onnx', 'safetensors') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_declaration_is_a_value() -> None:
    assert MLP(hidden=(4,)) == MLP(hidden=(4,))
    assert digest(MLP(hidden=(4,))) != digest(MLP(hidden=(4, 4)))
    assert all(hasattr(models, name) for name in models.__all__)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: MLP(hidden=[8]), r"MLP.hidden: found \[8\], allowed: a tuple"),
        (lambda: MLP(dropout=1.0), "MLP.dropout: found 1.0"),
        (lambda: MLP(norm="bath"), "Did you mean 'batch'"),  # pyright: ignore
        (lambda: MLP(activation="rely"), "Did you mean 'relu'"),  # pyright: ignore
        (lambda: MLP(members=0), "MLP.members: found 0"),
        (lambda: MLP(dims={"a": 0}), r"MLP.dims\['a'\]: found 0"),
        (lambda: MLP(adapters="al"), "Did you mean 'all'"),  # pyright: ignore
        (lambda: Periodic(sigma=0), "Periodic.sigma: found 0"),
        (lambda: DCNv2(rank=0), "DCNv2.rank: found 0"),
        (lambda: DCNv2(structure="paralel"), "Did you mean 'parallel'"),  # pyright: ignore
        (lambda: ConvNet(channels=()), "ConvNet.channels"),
        (lambda: FinalNet(blocks=(8,)), "FinalNet.blocks"),  # pyright: ignore
        (lambda: FinalNet(blocks=((8,), ())), "FinalNet.blocks"),
        (lambda: FinalNet(factors=1), "FinalNet.factors: found 1"),
        (lambda: MaskNet(blocks=()), "MaskNet.blocks"),
        (lambda: MaskNet(reduction=0), "MaskNet.reduction: found 0"),
        (lambda: MaskNet(structure="paralel"), "Did you mean 'parallel'"),  # pyright: ignore
        (lambda: LogisticRegression(outputs=0), "LogisticRegression.outputs"),
    ],
)
def test_a_wrong_option_is_named(make: Callable[[], object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()


def test_a_width_for_no_feature_is_refused(features: FeatureSchema) -> None:
    with pytest.raises(ValueError, match=r"'carier' in dims. Did you mean 'carrier'"):
        build(MLP(dims={"carier": 2}), features)


def test_a_convolutional_net_wants_an_image_that_is_large_enough(features: FeatureSchema) -> None:
    with pytest.raises(ValueError, match="height and width of at least 16 for 4 stages"):
        build(ConvNet(channels=(2, 2, 2, 2)), features)
    flat = FeatureSchema((FeatureField(name="a", kind="dense"),))
    with pytest.raises(ValueError, match="at least one image"):
        build(ConvNet(), flat)
