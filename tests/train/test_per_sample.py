import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import linear

from drivetrain.train import BinaryCrossEntropy, CrossEntropy
from drivetrain.train.privacy.per_sample import (
    ByLayer,
    ByRow,
    ByVmap,
    Clipped,
    Loss,
    factors,
    mixing,
    unruled,
)

CE = CrossEntropy("y")
CLASSES = 3
ROWS = 5


def gradients(
    kind: type, model: nn.Module, inputs: list[Tensor], clip: float, loss: Loss = CE
) -> tuple[Tensor, float, int]:
    """The sum as one vector, the sum of losses and the rows that were left out."""
    made: Clipped = kind(model, loss)
    targets = {"y": torch.arange(len(inputs[0])) % CLASSES}
    total, left_out = made(inputs, targets, clip)
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    vector = torch.cat([gradient.flatten() for gradient in found])
    model.zero_grad()
    return vector, float(total), left_out


class Words(nn.Module):
    """A table that is asked twice, for ids that repeat, and a layer over each place."""

    def __init__(self, padding: int | None) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 4, padding_idx=padding)
        self.place = nn.Linear(4, 3)
        self.norm = nn.LayerNorm(3)
        self.head = nn.Linear(3, CLASSES, bias=False)

    def forward(self, words: Tensor) -> Tensor:
        x = torch.cat([self.table(words), self.table(words[:, :2])], 1)
        return self.head(self.norm(self.place(x)).mean(1))


class Twice(nn.Module):
    """A layer that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(torch.tanh(self.layer(x))))


def image(channels: int, stride: int, padding: int, flat: bool) -> nn.Sequential:
    conv, pool = (nn.Conv1d, nn.AdaptiveAvgPool1d) if flat else (nn.Conv2d, nn.AdaptiveAvgPool2d)
    return nn.Sequential(
        conv(2, channels, 3, stride=stride, padding=padding),
        nn.GroupNorm(2, channels),
        nn.ReLU(inplace=True),
        conv(channels, 3, 2, dilation=2, bias=False),
        pool(1),
        nn.Flatten(),
        nn.Linear(3, CLASSES),
    )


@st.composite
def cases(draw: st.DrawFn) -> tuple[nn.Module, list[Tensor]]:
    """A small model, and rows for it."""
    torch.manual_seed(draw(st.integers(0, 1000)))
    kind = draw(st.sampled_from(["words", "twice", "flat", "image", "mlp"]))
    if kind == "words":
        words = torch.randint(0, 6, (ROWS, draw(st.integers(2, 5))))
        return Words(draw(st.sampled_from([None, 0]))), [words]
    if kind == "twice":
        return Twice(), [torch.randn(ROWS, 4)]
    if kind == "mlp":
        width = draw(st.integers(1, 6))
        layers = (nn.Linear(4, width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, CLASSES))
        return nn.Sequential(*layers), [torch.randn(ROWS, 4)]
    channels, stride = draw(st.sampled_from([2, 4, 8])), draw(st.integers(1, 2))
    flat = kind == "flat"
    shape = (ROWS, 2, 9) if flat else (ROWS, 2, 9, 8)
    return image(channels, stride, draw(st.integers(0, 2)), flat), [torch.randn(shape)]


@given(cases(), st.sampled_from([1e-3, 0.3, 1e6]))
def test_both_methods_give_what_one_backward_a_row_gives(
    case: tuple[nn.Module, list[Tensor]], clip: float
) -> None:
    model, inputs = case
    assert not unruled(model)
    true, loss, _ = gradients(ByRow, model, inputs, clip)
    for kind in (ByVmap, ByLayer):
        found, total, left_out = gradients(kind, model, inputs, clip)
        torch.testing.assert_close(found, true, rtol=1e-3, atol=1e-5 * min(clip, 1.0))
        assert total == pytest.approx(loss, rel=1e-4)
        assert left_out == 0


@given(cases(), st.floats(1e-4, 10), st.floats(1, 1e4))
def test_no_row_has_more_than_the_clip_norm(
    case: tuple[nn.Module, list[Tensor]], clip: float, scale: float
) -> None:
    model, inputs = case
    one = [x[:1] if x.dtype == torch.int64 else x[:1] * scale for x in inputs]
    for kind in (ByVmap, ByLayer):
        found, _, _ = gradients(kind, model, one, clip)
        assert float(found.double().norm()) <= clip


@given(st.floats(0, 1e30), st.floats(1e-6, 1e6))
def test_factors_are_positive_and_at_most_one(norm: float, clip: float) -> None:
    factor = float(factors(torch.tensor(norm), clip))
    assert 0 <= factor <= 1
    assert factor * norm <= clip * (1 + 1e-6)


@pytest.mark.parametrize("kind", [ByRow, ByVmap, ByLayer])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_whose_gradient_is_not_finite_has_no_part(kind: type, bad: float) -> None:
    torch.manual_seed(0)
    model, x = Twice(), torch.randn(3, 4)
    whole, loss, _ = gradients(kind, model, [x[:2]], 0.1)
    broken = torch.cat([x[:2], torch.full((1, 4), bad)])
    found, total, left_out = gradients(kind, model, [broken], 0.1)
    torch.testing.assert_close(found, whole)
    assert total == pytest.approx(loss)
    assert left_out == 1
    nothing, total, left_out = gradients(kind, model, [broken[2:]], 0.1)
    assert not nothing.any()
    assert (total, left_out) == (0, 1)


def test_frozen_parameters_have_no_part_in_norms() -> None:
    torch.manual_seed(0)
    model, x = Twice(), torch.randn(ROWS, 4)
    model.layer.weight.requires_grad_(False)
    true, _, _ = gradients(ByRow, model, [x], 0.1)
    for kind in (ByVmap, ByLayer):
        found, _, _ = gradients(kind, model, [x], 0.1)
        torch.testing.assert_close(found, true)


def test_shared_and_unknown_parameters_have_no_rule() -> None:
    shared = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    shared[1].weight = shared[0].weight
    assert unruled(shared) == ["1 (Linear)"]
    assert unruled(nn.GRU(2, 2)) == ["the model (GRU)"]
    assert unruled(nn.Conv2d(2, 2, 3, groups=2)) == ["the model (Conv2d)"]
    assert unruled(nn.Embedding(2, 2, max_norm=1.0)) == ["the model (Embedding)"]
    with pytest.raises(ValueError, match="no rule for the model"):
        ByLayer(nn.GRU(2, 2), CE)


def test_modules_that_mix_rows_are_named() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.LayerNorm(2))
    assert mixing(model) == ["1 (BatchNorm1d)"]
    assert mixing(nn.InstanceNorm1d(2, track_running_stats=True))
    assert not mixing(nn.InstanceNorm1d(2))


def test_rows_folded_into_places_are_refused_by_layers() -> None:
    class Folded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.reshape(-1, 2)).reshape(len(x), 2, -1).mean(1)

    with pytest.raises(ValueError, match="Linear takes 10 rows for 5"):
        gradients(ByLayer, Folded(), [torch.randn(ROWS, 4)], 1.0)


def test_vmap_takes_what_computes_with_another_modules_weights() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return linear(torch.tanh(self.layer(x)), self.layer.weight).sum(1)

    torch.manual_seed(0)
    model, x, loss = Tied(), torch.randn(ROWS, 4), BinaryCrossEntropy("y")

    def binary(outputs: Tensor, targets: dict[str, Tensor]) -> Tensor:
        return loss(outputs, {"y": (targets["y"] > 0).long()})

    true, _, _ = gradients(ByRow, model, [x], 0.1, binary)
    found, _, _ = gradients(ByVmap, model, [x], 0.1, binary)
    torch.testing.assert_close(found, true)
