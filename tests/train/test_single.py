from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from drivetrain.core.metric import Emitted, Metric, Note, Progress
from drivetrain.core.seams import Run
from drivetrain.models import MLP
from drivetrain.models.bind import build
from drivetrain.train import (
    BinaryCrossEntropy,
    Cosine,
    CrossEntropy,
    EarlyStopping,
    MeanSquaredError,
    Single,
    StepDecay,
)
from drivetrain.train.loop.device import check_bfloat16

BCE = BinaryCrossEntropy("y")
SMALL = MLP(hidden=(16,), dim=4)


def fit(
    strategy: Single, examples: Any, tmp_path: Path, factory: Callable[..., nn.Module] = SMALL
) -> tuple[nn.Module, list[Emitted]]:
    heard: list[Emitted] = []
    number = len(list(tmp_path.iterdir()))
    run = Run(directory=tmp_path / str(number), emit=heard.append)
    return strategy.fit(build(factory, examples.features, seed=1), examples, run), heard


def metrics(heard: list[Emitted], name: str) -> list[float]:
    return [item.value for item in heard if isinstance(item, Metric) and item.name == name]


def same(one: nn.Module, two: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def auc(score: np.ndarray, label: np.ndarray) -> float:
    ranks = np.empty(len(score))
    ranks[np.argsort(score)] = np.arange(1, len(score) + 1)
    positive = label.sum()
    return (ranks[label == 1].sum() - positive * (positive + 1) / 2) / (
        positive * (len(label) - positive)
    )


@pytest.mark.parametrize(
    ("optimizer", "lr"), [("adamw", 0.01), ("adam", 0.01), ("sgd", 1.0), ("adagrad", 0.05)]
)
def test_every_optimizer_learns(optimizer: Any, lr: float, made: Any, tmp_path: Path) -> None:
    examples = made(4000)
    strategy = Single(loss=BCE, epochs=6, batch_size=128, optimizer=optimizer, lr=lr)
    model, _ = fit(strategy, examples, tmp_path)
    table = examples.tables["validate"]
    inputs = [torch.from_numpy(table[name]) for name in examples.features.tensors.names]
    probability = strategy.predictions(model(*inputs))["y"].detach().numpy()
    assert auc(probability, table["y"]) > 0.85


def test_regression_learns(made: Any, tmp_path: Path) -> None:
    _, heard = fit(
        Single(loss=MeanSquaredError("z"), epochs=8, batch_size=64, lr=0.01), made(), tmp_path
    )
    figures = metrics(heard, "validate/loss")
    assert figures[-1] < 0.3 * figures[0]


def test_any_callable_is_a_loss_and_a_module_may_name_features(made: Any, tmp_path: Path) -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(7, 3)
            self.linear = nn.Linear(3, 3)

        def forward(self, a: Tensor, b: Tensor, c: Tensor, **rest: Tensor) -> dict[str, Tensor]:
            return {"score": (self.linear(torch.cat([a, b], 1)) * self.table(c)).sum(1)}

    def loss(outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
        return (outputs["score"] - targets["z"].float()).abs().mean()

    strategy = Single(loss=loss, epochs=8, batch_size=64, lr=0.02)
    model, heard = fit(strategy, made(), tmp_path, Plain)
    figures = metrics(heard, "validate/loss")
    assert figures[-1] < 0.7 * figures[0]
    assert list(strategy.predictions({"score": torch.zeros(3)})) == ["score"]
    assert not model.training


def test_two_runs_are_equal_to_the_bit_and_leave_the_generator(made: Any, tmp_path: Path) -> None:
    strategy = Single(loss=BCE, epochs=2, batch_size=128, lr=0.01, average=0.9)
    factory = MLP(hidden=(16,), dropout=0.3, members=3, embedding_dropout=0.1, norm="batch")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, heard = fit(strategy, made(), tmp_path, factory)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.are_deterministic_algorithms_enabled()
    torch.manual_seed(6)
    two, again = fit(strategy, made(), tmp_path, factory)
    assert same(one, two)
    other, _ = fit(replace(strategy, seed=1), made(), tmp_path, factory)
    assert not same(one, other)
    repeatable = [
        [item for item in said if isinstance(item, Metric) and item.repeatable]
        for said in (heard, again)
    ]
    assert repeatable[0] == repeatable[1]


@pytest.mark.parametrize("rows", [512, 500])
def test_accumulated_batches_equal_one_large_batch(rows: int, made: Any, tmp_path: Path) -> None:
    large = Single(loss=BCE, epochs=2, batch_size=256, optimizer="sgd", lr=0.5)
    parts = replace(large, batch_size=64, accumulate=4)
    one, heard = fit(large, made(rows), tmp_path)
    two, again = fit(parts, made(rows), tmp_path)
    for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert metrics(again, "train/loss") == pytest.approx(metrics(heard, "train/loss"), rel=1e-5)


def test_the_schedule_sets_the_learning_rate_of_each_step(made: Any, tmp_path: Path) -> None:
    strategy = Single(loss=BCE, epochs=3, batch_size=1000, lr=0.1, schedule=StepDecay(every=2))
    _, heard = fit(strategy, made(2000), tmp_path)
    assert metrics(heard, "train/lr") == pytest.approx([0.1, 0.01, 0.001])


def test_clipping_bounds_the_step(made: Any, tmp_path: Path) -> None:
    examples = made(64)
    strategy = Single(loss=BCE, batch_size=64, optimizer="sgd", lr=1.0, clip_norm=0.01)
    model, _ = fit(strategy, examples, tmp_path)
    start = build(SMALL, examples.features, seed=1)
    pairs = zip(model.parameters(), start.parameters(), strict=True)
    with torch.no_grad():
        moved = sum(float((a - b).square().sum()) for a, b in pairs) ** 0.5
    assert moved == pytest.approx(0.01, rel=1e-3)


def test_early_stopping_keeps_the_best_weights(made: Any, tmp_path: Path) -> None:
    examples = made(200)
    strategy = Single(
        loss=BCE, epochs=50, batch_size=50, lr=0.05, early_stopping=EarlyStopping(patience=2)
    )
    model, heard = fit(strategy, examples, tmp_path)
    figures = metrics(heard, "validate/loss")
    best = int(np.argmin(figures))
    assert len(figures) == best + 3 < 50
    table = examples.tables["validate"]
    inputs = [torch.from_numpy(table[name]) for name in examples.features.tensors.names]
    with torch.no_grad():
        found = BCE.scores(model(*inputs), {"y": torch.from_numpy(table["y"])})["loss"]
    assert float(found) == pytest.approx(figures[best], rel=1e-6)
    said = [item.text for item in heard if isinstance(item, Note)]
    assert any(f"at step {4 * (best + 1)}" in text for text in said)


def test_validation_may_go_by_updates_and_stop_within_an_epoch(made: Any, tmp_path: Path) -> None:
    strategy = Single(
        loss=BCE,
        epochs=3,
        batch_size=10,
        lr=1e-12,
        validate_every=4,
        early_stopping=EarlyStopping(patience=2, least=0.1),
    )
    _, heard = fit(strategy, made(500), tmp_path)
    steps = [i.step for i in heard if isinstance(i, Metric) and i.name == "validate/loss"]
    assert steps == [4, 8, 12]


def test_early_stopping_needs_its_figure(made: Any, tmp_path: Path) -> None:
    rule = EarlyStopping(metric="validate/los")
    with pytest.raises(ValueError, match="Did you mean 'validate/loss'"):
        fit(Single(loss=BCE, early_stopping=rule), made(), tmp_path)
    with pytest.raises(ValueError, match="split 'validate' has none"):
        fit(Single(loss=BCE, early_stopping=EarlyStopping()), made(validate=0), tmp_path)


def test_the_average_is_what_is_validated_and_kept(made: Any, tmp_path: Path) -> None:
    strategy = Single(loss=BCE, epochs=1, batch_size=500, optimizer="sgd", lr=0.1, average=0.5)
    averaged, _ = fit(strategy, made(1000), tmp_path)
    first, _ = fit(replace(strategy, average=None), made(1000), tmp_path)
    start = build(SMALL, made().features, seed=1)
    one, _ = fit(replace(strategy, average=None, batch_size=1000), made(1000), tmp_path)
    assert not same(averaged, first)
    assert not same(averaged, start)
    assert not same(averaged, one)


def test_the_average_follows_its_formula(made: Any, tmp_path: Path) -> None:
    """One update from w0 to w1 leaves ``d w0 + (1 - d) w1`` with d = (1 + 0) / (10 + 0)."""
    strategy = Single(loss=BCE, batch_size=64, optimizer="sgd", lr=1.0, average=0.9)
    averaged, _ = fit(strategy, made(64), tmp_path)
    last, _ = fit(replace(strategy, average=None), made(64), tmp_path)
    start = build(SMALL, made().features, seed=1)
    for a, w0, w1 in zip(averaged.parameters(), start.parameters(), last.parameters(), strict=True):
        torch.testing.assert_close(a, 0.1 * w0 + 0.9 * w1)


def test_bfloat16_learns_and_keeps_float32_weights(made: Any, tmp_path: Path) -> None:
    try:
        check_bfloat16("cpu")
    except ValueError as error:
        pytest.skip(f"this processor can't: {error}")
    strategy = Single(loss=BCE, epochs=3, batch_size=128, lr=0.01, precision="bfloat16")
    model, heard = fit(strategy, made(), tmp_path)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    figures = metrics(heard, "validate/loss")
    assert figures[-1] < figures[0]
    single, _ = fit(replace(strategy, precision="float32"), made(), tmp_path)
    assert not same(model, single)


def test_bfloat16_is_refused_where_it_would_be_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    with pytest.raises(ValueError, match="precision: found 'bfloat16', allowed: float32"):
        check_bfloat16("cpu")


def test_compile_without_a_compiler_is_refused(
    monkeypatch: pytest.MonkeyPatch, made: Any, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ValueError, match="no C\\+\\+ compiler"):
        fit(Single(loss=BCE, compile=True), made(), tmp_path)


@pytest.mark.parametrize("lr", [1e30, 1e38])
def test_a_loss_that_is_no_number_ends_clearly(lr: float, made: Any, tmp_path: Path) -> None:
    strategy = Single(loss=MeanSquaredError("z"), epochs=9, batch_size=64, optimizer="sgd", lr=lr)
    with pytest.raises(ArithmeticError, match=r"step \d+, epoch 0, batch \d+.*learning rate 1e\+3"):
        fit(strategy, made(), tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_no_rows_and_missing_targets_are_refused(made: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found 0 rows"):
        fit(Single(loss=BCE), made(0), tmp_path)
    examples = made(100)
    examples.tables["train"]["z"][7] = np.nan
    with pytest.raises(ValueError, match=r"target 'z', row \d+ of a batch: found nan"):
        fit(Single(loss=BCE), examples, tmp_path)


@pytest.mark.parametrize(
    ("loss", "label", "message"),
    [
        (BCE, 2, "found 2, allowed: 0 and 1"),
        (CrossEntropy("y"), -100, "found -100, allowed: class"),
    ],
)
@pytest.mark.parametrize("split", ["train", "validate"])
def test_labels_that_the_loss_does_not_know_are_refused(
    loss: Any, label: int, message: str, split: str, made: Any, tmp_path: Path
) -> None:
    examples = made(100, validate=50)
    examples.tables[split]["y"][7] = label
    model = build(MLP(hidden=(8,), outputs=1 if loss is BCE else 2), examples.features)
    with pytest.raises(ValueError, match=rf"target 'y', row \d+ of a batch: {message}"):
        Single(loss=loss).fit(model, examples, Run(directory=tmp_path))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_cosine_over_an_unknown_number_of_rows_is_refused(made: Any, tmp_path: Path) -> None:
    examples = made(100)
    examples.rows = lambda split: None
    with pytest.raises(ValueError, match="Cosine needs the number of steps"):
        fit(Single(loss=BCE, schedule=Cosine()), examples, tmp_path)
    fit(Single(loss=BCE), examples, tmp_path)


def test_it_says_how_far_it_is(made: Any, tmp_path: Path) -> None:
    _, heard = fit(Single(loss=BCE, epochs=2, batch_size=100), made(1000), tmp_path)
    progress = [item for item in heard if isinstance(item, Progress)]
    assert progress[-1] == Progress(stage="train", done=2000, total=2000)
    assert len(metrics(heard, "train/loss")) == 2
    rates = [i for i in heard if isinstance(i, Metric) and i.name == "train/rows_per_second"]
    assert rates
    assert not any(item.repeatable for item in rates)


def test_classes_are_scored_by_accuracy_too(made: Any, tmp_path: Path) -> None:
    factory = MLP(hidden=(8,), outputs=2, members=2)
    strategy = Single(
        loss=CrossEntropy("y"),
        epochs=4,
        batch_size=64,
        lr=0.02,
        early_stopping=EarlyStopping(metric="validate/accuracy", larger=True),
    )
    _, heard = fit(strategy, made(), tmp_path, factory)
    assert metrics(heard, "validate/accuracy")[-1] > 0.75


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"optimizer": "adamww"}, "Did you mean 'adamw'"),
        ({"precision": "bfloat"}, "Did you mean 'bfloat16'"),
        ({"lr": 0}, "Single.lr: found 0"),
        ({"epochs": 0}, "Single.epochs: found 0"),
        ({"accumulate": 0.5}, "Single.accumulate: found 0.5"),
        ({"average": 1.0}, "Single.average: found 1.0"),
        ({"clip_norm": 0}, "Single.clip_norm: found 0"),
        ({"weight_decay": -1}, "Single.weight_decay: found -1"),
        ({"checkpoint_seconds": 0}, "Single.checkpoint_seconds: found 0"),
        ({"loss": "bce"}, "Single.loss: found 'bce'"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Single(**{"loss": BCE, **options})


@pytest.mark.slow
def test_a_compiled_model_trains_to_the_same_weights(made: Any, tmp_path: Path) -> None:
    from drivetrain.train.loop.device import check_compiler

    try:
        check_compiler("cpu")
    except ValueError as error:
        pytest.skip(f"this machine can't: {error}")
    strategy = Single(loss=BCE, epochs=1, batch_size=100, optimizer="sgd", lr=0.1)
    plain, _ = fit(strategy, made(350), tmp_path)
    compiled, _ = fit(replace(strategy, compile=True), made(350), tmp_path)
    for a, b in zip(plain.state_dict().values(), compiled.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
