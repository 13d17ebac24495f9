"""What training in eight bits wins back, and that the graph holds what training saw."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from drivetrain.compress.optimize import Optimize
from drivetrain.compress.quantize import Quantize
from drivetrain.core.batch import Batch
from drivetrain.core.graph import Graph
from drivetrain.core.metric import Emitted, Metric, silent
from drivetrain.core.schema import FeatureField, FeatureSchema
from drivetrain.core.seams import Reduced, Run
from drivetrain.models import MLP, ConvNet
from drivetrain.models.bind import build
from drivetrain.train import (
    BinaryCrossEntropy,
    Cosine,
    MeanSquaredError,
    ParameterServer,
    Private,
    Prune,
    Sharded,
    Single,
)
from drivetrain.train.quantization_aware import QuantizationAware
from drivetrain.train.rounded import Range, Rounded, Rounding
from drivetrain.train.trained import exported

BCE = BinaryCrossEntropy("y")


def fit(strategy: Single, model: nn.Module, examples: Any, run: Run) -> Reduced:
    fitted = strategy.fit(model, examples, run)
    assert isinstance(fitted, Reduced)
    return fitted


def run_as(graph: Graph) -> list[str]:
    """The operators that ONNX Runtime makes of a graph's."""
    fused = Optimize("extended")(graph, list)
    return [node.op_type for node in fused.proto.graph.node]


def uneven(model: nn.Module, spread: float) -> nn.Module:
    """The same function, whose hidden units differ in size: what happens to trained networks too,
    and what one step for all of them cannot follow."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    with torch.no_grad():
        for one, next_one in pairwise(layers):
            sizes = torch.logspace(0, float(np.log10(spread)), len(one.weight))
            one.weight *= sizes[:, None]
            one.bias *= sizes
            next_one.weight /= sizes
    return model


def test_what_static_int8_loses_is_won_back_and_the_graph_is_what_training_saw(
    made: Any, tmp_path: Path
) -> None:
    examples = made(2500)
    options: dict[str, Any] = {
        "loss": MeanSquaredError("z"),
        "batch_size": 64,
        "schedule": Cosine(),
        "checkpoint_seconds": None,
    }
    aware = QuantizationAware(epochs=8, lr=0.01)
    strategy = Single(**options, epochs=10, lr=0.01, quantize=aware)
    model = uneven(build(MLP(hidden=(16, 16), dim=4), examples.features, seed=2), 100)
    fitted = fit(strategy, model, examples, Run(directory=tmp_path / "aware"))
    graphs = exported(strategy, fitted, examples.features.tensors)
    # As much more training without rounding, so that rounding alone is what is compared.
    longer = Single(**options, epochs=8, lr=0.01)
    more = longer.fit(fitted.before, examples, Run(directory=tmp_path / "longer"))
    plain = exported(longer, more, examples.features.tensors)["model"]

    names = examples.features.tensors.names
    table = examples.tables["validate"]
    rows = Batch({name: table[name] for name in names})

    def error(graph: Graph) -> float:
        return float(np.sqrt(np.mean((graph.run(rows)["z"] - table["z"]) ** 2)))

    static = Quantize("int8", per_channel=True)(plain, lambda: [rows])
    exact, lost, won = error(plain), error(static), error(graphs["model"])
    assert lost > 1.3 * exact, "a case where rounding afterwards costs much"
    assert won - exact < 0.5 * (lost - exact)

    with torch.no_grad():
        seen = fitted.model(*(torch.from_numpy(table[name]) for name in names))
    assert np.abs(graphs["model"].run(rows)["z"] - seen.numpy()).max() < 0.1
    assert won == pytest.approx(float(np.sqrt(np.mean((seen.numpy() - table["z"]) ** 2))), rel=1e-3)
    kinds = [node.op_type for node in graphs["model"].proto.graph.node]
    assert kinds.count("QuantizeLinear") == 3, "inputs alone: weights are integers already"
    assert kinds.count("DequantizeLinear") == 9
    assert run_as(graphs["model"]).count("QGemm") == 3, "the kernels for integers are taken"


def test_a_killed_training_ends_with_the_same_bits(made: Any, tmp_path: Path) -> None:
    examples = made(1000)
    strategy = Single(
        loss=BCE,
        epochs=2,
        batch_size=64,
        lr=0.01,
        prune=Prune(channels=0.5),
        quantize=QuantizationAware(epochs=3),
        checkpoint_steps=7,
    )

    def fitted(name: str, emit: Any = silent) -> Reduced:
        model = build(MLP(hidden=(16,), dim=4, dropout=0.1), examples.features, seed=1)
        return fit(strategy, model, examples, Run(directory=tmp_path / name, emit=emit))

    heard: list[Emitted] = []
    whole = fitted("whole", heard.append)
    assert whole.name == "prune-quantize"
    assert {"prune/train/loss", "quantize/train/loss"} <= {
        item.name for item in heard if isinstance(item, Metric)
    }

    def stopping(item: Emitted) -> None:
        if isinstance(item, Metric) and item.name.startswith("quantize/validate"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted("cut", stopping)
    again = fitted("cut").model.state_dict().values()
    pairs = zip(whole.model.state_dict().values(), again, strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)


@pytest.mark.slow
def test_two_processes_round_alike_and_nearly_as_one_does(train: Any) -> None:
    two = train(2, quantize={"epochs": 1})  # which holds that both have the same integers
    one = train(1, name="one", quantize={"epochs": 1})
    layers = [name.removesuffix("codes") for name in two if name.endswith(".codes")]
    assert len(layers) == 2
    for layer in layers:
        weights, expected = (w[f"{layer}codes"] * w[f"{layer}scales"][:, None] for w in (two, one))
        torch.testing.assert_close(weights, expected, atol=0.03, rtol=0)
        # The first process's half of each batch says what the range is.
        torch.testing.assert_close(two[f"{layer}scale"], one[f"{layer}scale"], atol=0, rtol=0.2)


def test_convolutions_are_exported_as_integers_with_the_answers_of_torch() -> None:
    features = FeatureSchema(
        (
            FeatureField(name="picture", kind="tensor", shape=(3, 8, 8)),
            FeatureField(name="b", kind="dense"),
        )
    )
    aware = QuantizationAware()
    model = aware.rounding(build(ConvNet(channels=(8, 16), hidden=(12,)), features, seed=1)).train()
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        model(
            torch.randn(64, 1, generator=generator), torch.randn(64, 3, 8, 8, generator=generator)
        )
    model.eval()
    rows = torch.randn(9, 1, generator=generator), torch.randn(9, 3, 8, 8, generator=generator)
    before = model(*rows)
    rounded = aware.rounded(model)
    torch.testing.assert_close(rounded(*rows), before, atol=1e-2, rtol=0)
    strategy = Single(loss=BCE)
    fitted = Reduced(rounded, rounded, "quantize")
    graph = exported(strategy, fitted, features.tensors)["model"]
    kinds = [node.op_type for node in graph.proto.graph.node]
    assert kinds.count("Conv") == 2
    assert kinds.count("QuantizeLinear") == 2 * 2 + 2, "convolutions give integers too"
    assert run_as(graph).count("QLinearConv") == 2


def test_a_range_widens_at_once_shrinks_slowly_and_holds_zero() -> None:
    range_ = Range().train()
    range_(torch.tensor([1.0, 3.0]))
    assert (range_.low, range_.high) == (0, 3)
    range_(torch.tensor([-2.0, 1.0]))
    assert range_.low == -2
    assert range_.high == pytest.approx(2.98)
    scale, zero = range_.eval().steps()
    values = range_(torch.tensor([-9.0, 0.0, 9.0, 0.7]))
    assert values[1] == 0
    assert values[0] == pytest.approx(float((-128 - zero) * scale))
    assert values[2] == pytest.approx(float((127 - zero) * scale))
    assert abs(values[3] - 0.7) <= scale / 2
    assert torch.equal(range_.low, torch.tensor(-2.0)), "evaluation learns no range"
    range_.train()(torch.zeros(0))
    assert range_.low == -2, "no rows say nothing"


def test_gradients_pass_inside_of_the_range_and_not_outside() -> None:
    range_ = Range().train()
    range_(torch.tensor([-1.0, 1.0]))
    x = torch.tensor([-5.0, -0.3, 0.4, 5.0], requires_grad=True)
    range_.eval()(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 0]


def test_layers_that_are_kept_stay_float_and_a_tied_layer_stays_one(made: Any) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(3, 3)
            self.two = self.one
            self.head = nn.Linear(3, 1)

        def forward(self, dense: torch.Tensor, **rest: torch.Tensor) -> torch.Tensor:
            return self.head(self.two(self.one(dense))).squeeze(1)

    features = made(10).features
    model = build(Twice, features, seed=0)
    changed: Any = QuantizationAware(keep=("*head",)).rounding(model).module  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(changed.one, Rounding)
    assert changed.two is changed.one
    assert type(changed.head) is nn.Linear
    assert type(model.module.one) is nn.Linear, "the model given is left as it is"  # pyright: ignore[reportAttributeAccessIssue]
    ready: Any = QuantizationAware().rounded(changed)
    assert isinstance(ready.one, Rounded)
    assert ready.two is ready.one
    with pytest.raises(ValueError, match="can be rounded: found 'none'"):
        QuantizationAware(keep=("*",)).rounding(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, r"QuantizationAware\.epochs"),
        ({"lr": 0.0}, r"QuantizationAware\.lr"),
        ({"keep": "head"}, r"QuantizationAware\.keep"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuantizationAware(**options)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (Sharded, {}, r"Sharded\.quantize.*DiLoCo quantize"),
        (ParameterServer, {}, r"ParameterServer\.quantize"),
        (Single, {"compile": True}, "through no compiler"),
        (
            Single,
            {"privacy": Private(clip_norm=1, delta=1e-5, noise_multiplier=1)},
            "spend more ε",
        ),
    ],
)
def test_a_strategy_that_cannot_says_so(
    kind: type[Single], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        kind(loss=BCE, quantize=QuantizationAware(), **options)


@pytest.mark.parametrize("dead", ["inputs", "weights"])
def test_a_bias_outlives_inputs_or_weights_that_are_all_zero(dead: str) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([0.5, -0.25]))
        if dead == "weights":
            layer.weight[0] = 0
    rounding = Rounding(layer, per_channel=True).train()
    rows = torch.zeros(4, 3) if dead == "inputs" else torch.randn(4, 3)
    rounding(rows)
    before = rounding.eval()(rows).detach()
    torch.testing.assert_close(Rounded(rounding)(rows), before, atol=1e-2, rtol=0)
