"""Which layers are cut is found from how numbers flow; what a cut would change is left whole."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from drivetrain.models import MLP, DCNv2, DeepFM, WideAndDeep
from drivetrain.models.bind import build
from drivetrain.train.tensor.attention import Heads, opened
from drivetrain.train.tensor.plan import Pair, planned

X = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))


def styles(model: nn.Module, *inputs: Tensor, ways: int = 2, **declared: Any) -> dict[str, Any]:
    at_least = declared.pop("at_least", 1)
    found = planned(model.eval(), inputs or (X,), ways, at_least, declared.get("plan", {}))
    return dict(found.styles)


class Gated(nn.Module):
    """Two layers whose product a third one takes."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(nn.functional.silu(self.gate(x)) * self.up(x))


class Between(nn.Module):
    """Two layers with something between them."""

    def __init__(self, step: Any, *learned: nn.Module) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)
        self.step, self.learned = step, nn.ModuleList(learned)

    def forward(self, x: Tensor) -> Any:
        hidden = self.first(x)
        return self.step(self, x, hidden)


GATHERED = {"first": "gathered", "second": "gathered"}


def test_layers_with_an_activation_or_a_gate_between_them_go_together() -> None:
    chain = nn.Sequential(*(nn.Linear(16, 16) if n % 2 == 0 else nn.GELU() for n in range(9)))
    assert styles(chain) == {"0": "column", "2": "row", "4": "column", "6": "row", "8": "gathered"}
    assert styles(Gated()) == {"gate": "column", "up": "column", "down": "row"}


@pytest.mark.parametrize(
    ("step", "learned"),
    [
        # Each part needs the others: the shares of all, the mean of all, an order.
        (lambda m, x, h: m.second(h.softmax(-1)), ()),
        (lambda m, x, h: m.second(nn.functional.layer_norm(h, (16,))), ()),
        (lambda m, x, h: m.second(h.flip(-1)), ()),
        (lambda m, x, h: m.second(h - h.mean()), ()),
        # A parameter between them would learn from a part only.
        (lambda m, x, h: m.second(m.learned[0](h)), (nn.LayerNorm(16),)),
        (
            lambda m, x, h: m.second(m.learned[0](h.unflatten(1, (2, 8))).flatten(1)),
            (nn.LayerNorm(8),),
        ),
        # Something else takes it too.
        (lambda m, x, h: (m.second(h.relu()), h), ()),
        (lambda m, x, h: m.second(h.relu()) + h, ()),
        (lambda m, x, h: m.second(h.relu() + x), ()),
        # They are called twice.
        (lambda m, x, h: m.second(m.second(h.relu())), ()),
        (lambda m, x, h: m.second(m.first(h).relu()), ()),
    ],
)
def test_what_treats_no_part_by_itself_is_put_together(step: Any, learned: tuple[Any, ...]) -> None:
    assert styles(Between(step, *learned)) == GATHERED


def test_what_is_uneven_small_shared_or_declared_whole_stays_whole() -> None:
    uneven = nn.Sequential(nn.Linear(16, 9), nn.ReLU(), nn.Linear(9, 3))
    assert styles(uneven) == {}
    assert styles(uneven, ways=3) == {"0": "column", "2": "row"}
    pair = nn.Sequential(nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 4))  # 68 + 20
    assert styles(pair, at_least=88) == {"0": "column", "2": "row"}
    assert styles(pair, at_least=89) == {}
    tied = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    tied[2].weight = tied[0].weight
    assert styles(tied) == {}
    chain = nn.Sequential(nn.Sequential(nn.Linear(16, 16), nn.ReLU()), nn.Linear(16, 16))
    assert styles(chain, plan={"0": "whole"}) == {"1": "gathered"}
    assert styles(chain, plan={"0.*": "gathered", "*": "whole"}) == {"0.0": "gathered"}


def test_tables_are_cut_by_the_numbers_of_a_vector_or_by_rows() -> None:
    ids = torch.tensor([[0, 1, 2], [3, 4, 5]])
    assert styles(nn.Sequential(nn.Embedding(7, 4)), ids) == {"0": "gathered"}
    assert styles(nn.Sequential(nn.Embedding(7, 3)), ids) == {"0": "row"}
    assert styles(nn.Sequential(nn.Embedding(7, 4, max_norm=1.0)), ids) == {}


def test_the_zoo_is_cut_where_its_layers_follow_one_another(made: Any) -> None:
    examples = made(20)
    batch = next(iter(examples.batches("train", size=4)))
    inputs = [torch.from_numpy(batch[name]) for name in examples.features.tensors.names]

    def of(factory: Any) -> dict[str, Any]:
        found = styles(build(factory, examples.features, seed=0), *inputs)
        return {name.removeprefix("module."): style for name, style in found.items()}

    deep = {"hidden.0": "column", "hidden.2": "row"}
    table = {"inputs.tables.0.table": "gathered"}
    assert of(MLP(hidden=(16, 8), dim=4)) == {**deep, **table}
    assert of(MLP(hidden=(16,), dim=4)) == {"hidden.0": "column", "head": "row", **table}
    assert of(MLP(hidden=(16,), dim=4, norm="layer")) == {"hidden.0": "gathered", **table}
    assert of(DCNv2(hidden=(16, 8), dim=4)) == {**deep, **table}
    first = {"first.weights.table": "row"}
    assert of(DeepFM(hidden=(16, 8), dim=4)) == {**deep, **first, "tables.table": "gathered"}
    wide = {"wide.weights.table": "row"}
    assert of(WideAndDeep(hidden=(16, 8), dim=4)) == {**deep, **wide, **table}


def test_attention_is_cut_by_heads_where_they_divide() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.1, batch_first=True)
    model, x = opened(nn.TransformerEncoder(layer, 1)).eval(), torch.randn(4, 5, 16)
    plan = planned(model, (x,), 4, 1, {})
    at = "layers.0.self_attn."
    heads = Pair((f"{at}q_proj", f"{at}k_proj", f"{at}v_proj"), f"{at}out_proj", draws=True)
    assert plan.pairs == [heads, Pair(("layers.0.linear1",), "layers.0.linear2")]
    assert styles(model, x, ways=8)[f"{at}q_proj"] == "gathered"


def test_a_declared_style_that_a_layer_cannot_have_is_refused() -> None:
    model = nn.Sequential(nn.Linear(16, 9), nn.ReLU())
    for plan, text in (
        ({"0": "column"}, r"TensorParallel.plan: '0', cut by column: found 9, allowed: a multiple"),
        ({"1": "row"}, r"TensorParallel.plan: '1': found 'ReLU', allowed: linear layers and"),
        ({"hid*": "row"}, r"unknown pattern 'hid\*' in TensorParallel.plan"),
    ):
        with pytest.raises(ValueError, match=text):
            styles(model, plan=plan)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_opened_attention_answers_and_learns_what_it_did(batch_first: bool, bias: bool) -> None:
    torch.manual_seed(0)
    whole = nn.MultiheadAttention(8, 2, bias=bias, batch_first=batch_first)
    model = opened(whole)
    assert isinstance(model, Heads)
    x = torch.randn(3, 5, 8) if batch_first else torch.randn(5, 3, 8)
    padding = torch.tensor([[False] * 5, [False] * 4 + [True], [False, True] + [False] * 3])
    causal = nn.Transformer.generate_square_subsequent_mask(5)
    each = torch.randn(6, 5, 5)
    for options in (
        {},
        {"key_padding_mask": padding},
        {"attn_mask": causal > -1, "need_weights": False},
        {"attn_mask": causal, "is_causal": True, "need_weights": False},
        {"attn_mask": each, "key_padding_mask": padding.float(), "average_attn_weights": False},
    ):
        expected, found = whole(x, x, x, **options), model(x, x, x, **options)
        torch.testing.assert_close(found[0], expected[0])
        assert (found[1] is None) == (expected[1] is None)
        if expected[1] is not None:
            torch.testing.assert_close(found[1], expected[1])
    torch.testing.assert_close(model(x[0], x[0], x[0])[0], whole(x[0], x[0], x[0])[0])
    for module in (whole, model):
        module(x, x, x)[0].square().sum().backward()
    gradients = [getattr(model, f"{part}_proj").weight.grad for part in "qkv"]
    assert whole.in_proj_weight is not None
    torch.testing.assert_close(torch.cat(gradients), whole.in_proj_weight.grad)
    torch.testing.assert_close(model.out_proj.weight.grad, whole.out_proj.weight.grad)
