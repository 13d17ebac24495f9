"""Models cut into stages: where, what stages give, and which models cannot be cut."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from drivetrain.models import MLP, DCNv2, DeepFM, LogisticRegression, WideAndDeep
from drivetrain.models.bind import build
from drivetrain.train.loop.optimizer import groups_by_decay
from drivetrain.train.stages import parcels
from drivetrain.train.stages.division import Division, divide
from drivetrain.train.stages.stage import Whole, lasting, let_go

ROWS = 5


def inputs_of(made: Any) -> list[Tensor]:
    batch = next(made().batches("train", size=ROWS))
    return [torch.from_numpy(batch[name]) for name in made().features.tensors.names]


def through(division: Division, inputs: list[Tensor], *, training: bool) -> Any:
    """What the stages give, one after the other."""
    whole = Whole.of(division.model, 0.0, 0.0)
    value: Any = ()
    for index in range(len(division.begins) + 1):
        stage = division.stage(index, whole).train(training)
        value = stage(value, inputs)
        if not stage.last:
            text = parcels.label(value)
            value = parcels.put_together(text, [t.clone() for t in parcels.tensors(value)])
    return value


@pytest.mark.parametrize("stages", [2, 3])
@pytest.mark.parametrize(
    "factory",
    [
        MLP(hidden=(8, 8), norm="batch", dropout=0.3, embedding_dropout=0.1),
        MLP(hidden=(8, 8), members=3),
        DeepFM(),
        DCNv2(),
        WideAndDeep(),
    ],
    ids=lambda factory: type(factory).__name__,
)
def test_stages_give_what_the_model_gives_and_share_its_weights_out(
    made: Any, factory: Any, stages: int
) -> None:
    model, inputs = build(factory, made().features, seed=1), inputs_of(made)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    drawn = torch.get_rng_state()
    division = divide(model, inputs, stages)
    assert torch.equal(drawn, torch.get_rng_state())
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    for training in (True, False):
        torch.manual_seed(3)
        expected = model.train(training)(*inputs)
        model.load_state_dict(before)
        torch.manual_seed(3)
        assert torch.equal(expected, through(division, inputs, training=training))
        model.load_state_dict(before)

    whole = Whole.of(model, 0.1, 0.2)
    assert sorted(whole.optimized) == sorted(name for name, _ in decays(model))
    parts = [division.stage(index, whole) for index in range(stages)]
    names = [name for part in parts for name, _ in lasting(part)]
    assert sorted(names) == sorted(name for name, _ in lasting(model))
    # Each decays as in the whole: modules keep their class.
    assert {name: decay for part in parts for name, decay in decays(part)} == dict(decays(model))


def decays(model: nn.Module) -> Iterator[tuple[str, float]]:
    names = {id(p): name for name, p in model.named_parameters()}
    for group in groups_by_decay(model, 0.1, 0.2):
        yield from ((names[id(p)], group["weight_decay"]) for p in group["params"])


class Tower(nn.Sequential):
    """So many equal layers, then one that is as large as three of them."""

    def __init__(self, count: int) -> None:
        super().__init__(*(nn.Linear(12, 12) for _ in range(count)), nn.Linear(12, 36))


def test_stages_have_as_much_to_do_as_can_be() -> None:
    inputs = [torch.ones(4, 12)]
    assert divide(Tower(3), inputs, 2).begins == ["3"]
    assert divide(Tower(6), inputs, 3).begins == ["3", "6"]
    assert divide(Tower(9), inputs, 4).begins == ["3", "6", "9"]


class Wide(nn.Module):
    """Narrow in the middle, where little travels, a little beside the best balance."""

    def __init__(self) -> None:
        super().__init__()
        widths = [64, 64, 63, 2, 62, 64, 64]
        self.layers = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def test_of_cuts_that_are_nearly_as_good_the_one_is_taken_where_least_travels() -> None:
    assert divide(Wide(), [torch.ones(4, 64)], 2).begins == ["layers.3"]


class Block(nn.Module):
    """Residual; a mask goes past it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.inner = nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Dropout(0.2))

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        return x + self.inner(self.norm(x)) * keep


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 8)
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2
        )
        self.head = nn.Linear(8, 1)

    def forward(self, words: Tensor) -> Tensor:
        rows, keep = words.shape[0], (words != 0).unsqueeze(2)
        x = self.table(words)
        for block in self.blocks:
            x = block(x, keep)
        if self.training:
            x = nn.functional.dropout(x, 0.1)
        return self.head(self.encoder(x)[:, 0]).view(rows)


def test_a_stack_with_values_that_pass_its_layers_is_cut_where_it_is_asked_for() -> None:
    model, words = Encoder(), torch.arange(20).view(5, 4) % 9
    division = divide(model, [words], 3, ("blocks.2", "encoder.layers.1"))
    assert division.begins == ["blocks.2.norm", "encoder.layers.1"]
    assert {name.split(".")[0] for name, _ in lasting(division.stage(0, Whole([], [], [])))} == {
        "table",
        "blocks",
    }
    torch.manual_seed(0)
    expected = model.train()(words)
    torch.manual_seed(0)
    assert torch.equal(expected, through(division, [words], training=True))


def test_an_encoder_of_hugging_face_is_cut_between_its_layers() -> None:
    from transformers import BertConfig, BertModel

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
            config = BertConfig(vocab_size=50, num_hidden_layers=3, **sizes)
            self.bert = BertModel(config, add_pooling_layer=False)
            self.head = nn.Linear(16, 1)

        def forward(self, words: Tensor) -> Tensor:
            mask = (words != 0).long()
            return self.head(self.bert(words, attention_mask=mask).last_hidden_state[:, 0])

    words = torch.arange(24).view(4, 6) % 7
    division = divide(Classifier(), [words], 3, ("bert.encoder.layer.1", "bert.encoder.layer.2"))
    model = division.model.eval()
    assert torch.equal(model(words), through(division, [words], training=False))
    assert len(divide(Classifier(), [words], 4).begins) == 3


def test_what_other_stages_have_takes_no_memory() -> None:
    model = Encoder()
    division = divide(model, [torch.ones(2, 4, dtype=torch.int64)], 2)
    stage = division.stage(1, Whole.of(model, 0, 0))
    let_go(model, stage)
    mine = sum(p.nbytes for p in stage.parameters())
    assert 0 < mine == sum(p.nbytes for p in model.parameters())


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.middle = nn.Embedding(9, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 9, bias=False)
        self.head.weight = self.table.weight

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.middle(self.table(words)))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x)) if x.sum() > 0 else x


class Counting(nn.Module):
    """Gives something else each time, by what it remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.calls = nn.Linear(8, 8), nn.Linear(8, 8), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.two(self.one(x)) * self.calls


class Drawing(nn.Module):
    """Draws by its own generator's leave, not by its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x)) if torch.rand(()) < 0.5 else self.one(x)


WORDS, NUMBERS = torch.ones(4, dtype=torch.int64), torch.ones(4, 8)


@pytest.mark.parametrize(
    ("model", "inputs", "cut", "text"),
    [
        (nn.Linear(8, 1), NUMBERS, (), r"parts of the model: found '1 modules in a row', allowed"),
        (Tied(), WORDS, (), r"found '1 modules in a row', allowed: at least 2, one with weights"),
        (Tied(), WORDS, ("middle",), r"'middle': weights on both sides: found 'table.weight', al"),
        (Branching(), NUMBERS, (), r"; the model is one, for symbolically traced variables canno"),
        (Branching(), NUMBERS, ("two",), r"Pipelined.cut, a module in the model: found 'two', al"),
        (Drawing(), NUMBERS, (), r"; the model is one, for it draws random numbers that depend"),
        (Counting(), NUMBERS, (), r"when its steps are taken one by one: found 'others than its"),
        (Tower(3), torch.ones(2, 12), ("4",), r"unknown module '4' in Pipelined.cut.* Allowed: 0"),
        (Tower(3), torch.ones(2, 12), ("0",), r"stage that begins at the inputs: found 'no weigh"),
    ],
)
def test_models_that_cannot_be_cut_say_why(
    model: nn.Module, inputs: Tensor, cut: tuple[str, ...], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        divide(model, [inputs], 2, cut)


def test_cuts_out_of_order_are_refused(made: Any) -> None:
    model = build(MLP(hidden=(8, 8)), made().features)
    with pytest.raises(
        ValueError, match=r"each once, in the model's order: \('hidden.2', 'head'\)"
    ):
        divide(model, inputs_of(made), 3, ("head", "hidden.2"))


def test_a_model_of_one_layer_has_too_few_parts(made: Any) -> None:
    model = build(LogisticRegression(), made().features)
    with pytest.raises(ValueError, match=r"found '2 modules in a row', allowed: at least 3"):
        divide(model, inputs_of(made), 3)
