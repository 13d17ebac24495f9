from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from drivetrain.core.batch import Batch
from drivetrain.core.graph import OPSET
from drivetrain.core.schema import FeatureField, FeatureSchema, Field, Schema
from drivetrain.models import (
    MLP,
    Attention,
    ConvNet,
    DCNv2,
    DeepFM,
    FinalNet,
    LogisticRegression,
    MaskNet,
    Periodic,
    WideAndDeep,
)
from drivetrain.models.bind import build
from drivetrain.train import BinaryCrossEntropy, CrossEntropy, SelfDistill
from drivetrain.train.export import export

DENSE = Schema((Field("dense", "float32", (3,)),))


class Answering(nn.Module):
    """A linear layer, and an answer of any form."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)
        self.answer = answer

    def forward(self, dense: Tensor) -> Any:
        return self.answer(self.linear(dense), dense)


def schema() -> FeatureSchema:
    return FeatureSchema(
        (
            FeatureField(name="a", kind="dense", width=2),
            FeatureField(name="c", kind="index", cardinality=7),
            FeatureField(name="words", kind="bag", width=3, cardinality=11),
            FeatureField(name="photo", kind="tensor", shape=(1, 8, 8)),
        )
    )


@pytest.mark.parametrize(
    "factory",
    [
        LogisticRegression(),
        MLP(hidden=(4,), members=2, norm="batch", dropout=0.5, numeric=Periodic(dim=2)),
        WideAndDeep(hidden=(4,)),
        DeepFM(hidden=(4,), norm="layer"),
        DCNv2(hidden=(4,), rank=2),
        FinalNet(blocks=((4,), (4, 3)), gate=True),
        MaskNet(blocks=(4, 3), hidden=(4,)),
        MaskNet(blocks=(4, 3), structure="serial", hidden=()),
        ConvNet(channels=(2, 3), hidden=(4,)),
    ],
    ids=lambda factory: type(factory).__name__,
)
def test_the_graph_answers_what_the_model_answers(factory: Any) -> None:
    features = schema()
    model = build(factory, features)
    loss = BinaryCrossEntropy("late")
    graph = export(model, features.tensors, loss.predictions)
    assert graph.inputs.names == features.tensors.names
    assert graph.outputs == Schema((Field("late", "float32"),))
    assert model.training
    generator = np.random.default_rng(0)
    rows = 33
    batch = Batch(
        {
            "dense": generator.normal(size=(rows, 2)).astype(np.float32),
            "index": generator.integers(0, 7, (rows, 1)),
            "words": generator.integers(0, 11, (rows, 3)),
            "photo": generator.normal(size=(rows, 1, 8, 8)).astype(np.float32),
        }
    )
    with torch.no_grad():
        tensors = [torch.from_numpy(batch[name]) for name in features.tensors.names]
        expected = loss.predictions(model.eval()(*tensors))["late"].numpy()
    found = graph.session(threads=1).run(batch)["late"]
    assert found.shape == (rows,)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("normalize", [False, True])
def test_a_history_is_pooled_in_the_graph_as_in_torch_and_blocks_are_served_as_one(
    normalize: bool,
) -> None:
    """Two blocks over a history that one row has not, with padding in the midst."""
    features = FeatureSchema(
        (
            FeatureField(name="item", kind="index", cardinality=9),
            FeatureField(name="recent", kind="bag", width=4, cardinality=9),
        )
    )
    attention = (Attention(history="recent", item="item", normalize=normalize),)
    model = build(FinalNet(blocks=((6,), (5,)), dim=4, attention=attention), features).eval()
    graph = export(model, features, SelfDistill(BinaryCrossEntropy("y")).predictions)
    item, recent = np.array([[3], [3], [0]]), np.array([[0, 2, 0, 8], [0] * 4, [1] * 4])
    found = graph.session().run(Batch({"index": item, "recent": recent}))["y"]
    with torch.no_grad():
        due = model(torch.from_numpy(item), torch.from_numpy(recent)).mean(1).sigmoid()
    np.testing.assert_allclose(found, due.numpy(), rtol=1e-5, atol=1e-6)


def test_the_graph_is_in_our_opset_without_stale_shapes() -> None:
    graph = export(build(MLP(hidden=(4,)), schema()), schema().tensors)
    model = graph.proto
    assert {e.domain: e.version for e in model.opset_import}[""] == OPSET
    assert not model.graph.value_info
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "rows"
    onnx.checker.check_model(model, full_check=True)


class Two(NamedTuple):
    score: Tensor
    raw: Tensor


@pytest.mark.parametrize(
    ("answer", "names"),
    [
        (lambda y, x: y, ["output"]),
        (lambda y, x: {"score": y, "raw": x}, ["score", "raw"]),
        (lambda y, x: (y, y.exp()), ["output_0", "output_1"]),
        (lambda y, x: Two(y, x * 2), ["score", "raw"]),
        (lambda y, x: {"a": y, "b": y}, ["a", "b"]),
        (lambda y, x: {"add": y + x, "linear": y, "mul": x * y}, ["add", "linear", "mul"]),
    ],
)
def test_any_form_of_answer_has_names(answer: Any, names: list[str]) -> None:
    graph = export(Answering(answer), DENSE)
    assert list(graph.outputs.names) == names
    assert graph.inputs.names == ("dense",)
    batch = Batch({"dense": np.ones((5, 3), np.float32)})
    found = graph.run(batch)
    assert all(len(found[name]) == 5 for name in names)
    assert found[names[0]].ndim == (2 if names[0] == "add" else 1)


def test_an_input_may_be_called_like_an_operator() -> None:
    bags = FeatureSchema(
        tuple(
            FeatureField(name=name, kind="bag", width=2, cardinality=3)
            for name in ("add", "sigmoid", "linear")
        )
    )
    graph = export(
        build(MLP(hidden=(2,)), bags), bags.tensors, BinaryCrossEntropy("mul").predictions
    )
    assert graph.inputs.names == ("add", "sigmoid", "linear")
    assert graph.outputs.names == ("mul",)


def test_classes_stay_columns() -> None:
    features = schema()
    model = build(MLP(hidden=(4,), outputs=3), features)
    graph = export(model, features, CrossEntropy("kind").predictions)
    assert graph.outputs == Schema((Field("kind", "float32", (3,)),))


def test_a_graph_that_answers_otherwise_is_refused() -> None:
    class Unsteady(nn.Module):
        """Answers something else at each call, as no graph can."""

        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, dense: Tensor) -> Tensor:
            self.calls += 1
            return dense.sum(1) * self.calls

    with pytest.raises(ValueError, match=r"prediction 'output' of \d rows: found a difference of"):
        export(Unsteady(), DENSE)


def test_an_answer_without_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="rows as the first dimension"):
        export(Answering(lambda y, x: y.mean()), DENSE)
    with pytest.raises(ValueError, match="found 'str', allowed: tensors"):
        export(Answering(lambda y, x: "y"), DENSE)
    with pytest.raises(ValueError, match="model output 'a': found 'str'"):
        export(Answering(lambda y, x: {"a": "y"}), DENSE)


def test_a_model_that_branches_on_data_is_refused() -> None:
    def branching(y: Tensor, x: Tensor) -> Tensor:
        return y * 2 if bool(x.sum() > 0) else y

    with pytest.raises(ValueError, match="can't be exported to ONNX"):
        export(Answering(branching), DENSE)
