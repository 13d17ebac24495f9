import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from drivetrain.core.batch import Batch
from drivetrain.core.metric import Emitted, Metric, Note
from drivetrain.core.seams import Order, Run
from drivetrain.models import MLP, LogisticRegression
from drivetrain.models.bind import build
from drivetrain.train import (
    FP16,
    AllReduce,
    BinaryCrossEntropy,
    DiLoCo,
    EarlyStopping,
    Private,
    Single,
)
from drivetrain.train.privacy.poisson import Poisson
from drivetrain.train.privacy.secret import Secret
from drivetrain.train.together.group import Alone

SMALL = MLP(hidden=(16,), dim=4)
GUESSED = Private(clip_norm=1.0, delta=1e-5, noise_multiplier=1.0, seed_for_tests=1)
KNOWN = {"clip_norm": 1.0, "delta": 1e-5, "noise_multiplier": 1.0, "seed_for_tests": 1}
PLAIN = Single(loss=BinaryCrossEntropy("y"), epochs=2, batch_size=64, lr=0.02)


def fit(
    examples: Any,
    directory: Path,
    private: Private = GUESSED,
    factory: Callable[..., nn.Module] = SMALL,
    strategy: Single = PLAIN,
) -> tuple[nn.Module, list[Emitted]]:
    heard: list[Emitted] = []
    run = Run(directory=directory, emit=heard.append)
    model = build(factory, examples.features, seed=1)
    return replace(strategy, privacy=private).fit(model, examples, run), heard


def figures(heard: list[Emitted]) -> dict[str, float]:
    return {m.name: m.value for m in heard if isinstance(m, Metric) and "privacy/" in m.name}


def warnings(heard: list[Emitted]) -> str:
    return "\n".join(n.text for n in heard if isinstance(n, Note) and n.warning)


def same(one: nn.Module, two: nn.Module) -> bool:
    pairs = zip(one.parameters(), two.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("method", ["ghost", "vmap"])
@pytest.mark.parametrize("factory", [SMALL, LogisticRegression(), MLP(hidden=(8,), norm="layer")])
def test_zoo_models_learn_within_a_budget(
    factory: Any, method: Any, made: Any, tmp_path: Path
) -> None:
    private = replace(GUESSED, noise_multiplier=None, epsilon=8.0, method=method)
    strategy = replace(PLAIN, epochs=4)
    examples = made(4000)
    model, heard = fit(examples, tmp_path, private, factory, strategy)
    losses = [m.value for m in heard if isinstance(m, Metric) and m.name == "validate/loss"]
    assert losses[-1] < 0.65  # a coin has 0.69
    told = figures(heard)
    assert 7.8 < told["privacy/epsilon"] <= 8.0
    assert told["privacy/delta"] == 1e-5
    assert not model.training


def test_without_noise_and_with_a_huge_clip_the_updates_are_those_of_plain_poisson_batches(
    made: Any, tmp_path: Path
) -> None:
    examples, rows = made(500), 500
    private = replace(GUESSED, noise_multiplier=0.0, clip_norm=1e6)
    strategy = replace(PLAIN, optimizer="sgd", lr=0.1)
    model, heard = fit(examples, tmp_path, private, strategy=strategy)
    assert "no epsilon is stated" in warnings(heard)
    assert not figures(heard)

    plain = build(SMALL, examples.features, seed=1)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    drawn = Poisson(examples, rows, Secret(Alone(), 1))
    for epoch in range(2):
        for batch in drawn.batches("train", size=64, order=Order(0, epoch)):
            inputs = [torch.from_numpy(batch[n]) for n in examples.features.tensors.names]
            mean = PLAIN.loss(plain(*inputs), {"y": torch.from_numpy(batch["y"])})
            optimizer.zero_grad()
            (mean * len(batch) / 64).backward()
            optimizer.step()
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def test_noise_has_the_deviation_that_was_declared(made: Any, tmp_path: Path) -> None:
    class Flat(nn.Module):
        """Gradients of nothing: what an update moves is noise alone."""

        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.Linear(1, 20_000, bias=False)

        def forward(self, **inputs: Tensor) -> Tensor:
            zeros = torch.zeros(len(inputs["dense"]), 1)
            return self.weights(zeros).sum(1)

    private = replace(GUESSED, noise_multiplier=2.5, clip_norm=0.3)
    strategy = replace(PLAIN, optimizer="sgd", lr=1.0, epochs=1, batch_size=100)
    before = build(Flat, made().features, seed=1)
    after, _ = fit(made(100), tmp_path, private, Flat, strategy)
    (old,), (new,) = before.parameters(), after.parameters()
    moved = (new - old).detach().double()
    assert float(moved.std()) == pytest.approx(2.5 * 0.3 / 100, rel=0.02)


def test_a_secret_is_new_in_each_training_and_a_seed_repeats_to_the_bit(
    made: Any, tmp_path: Path
) -> None:
    one, two, three, four = (
        fit(made(300), tmp_path / str(n), replace(GUESSED, seed_for_tests=seed))[0]
        for n, seed in enumerate([1, 1, None, None])
    )
    assert same(one, two)
    assert not same(three, four)


class BrokenError(Exception):
    pass


@pytest.mark.parametrize("seed", [1, None])
def test_a_resumed_training_takes_the_same_batches_and_noise(
    seed: int | None, made: Any, tmp_path: Path
) -> None:
    private = replace(GUESSED, seed_for_tests=seed)
    strategy = replace(PLAIN, checkpoint_steps=5, checkpoint_seconds=None)
    cut, taken = made(500), []
    take = cut.take

    def taking(split: Any, rows: Any) -> Batch:
        if len(taken) == 12:
            raise BrokenError
        taken.append(rows)
        return take(split, rows)

    cut.take = taking
    with pytest.raises(BrokenError):
        fit(cut, tmp_path / "cut", private, strategy=strategy)
    again, rest = made(500), []
    whole = again.take
    again.take = lambda split, rows: rest.append(rows) or whole(split, rows)
    model, _ = fit(again, tmp_path / "cut", private, strategy=strategy)
    assert len(rest) == 6  # of the 16, 10 were in the checkpoint
    for before, after in zip(taken[10:], rest, strict=False):
        assert np.array_equal(before, after)
    if seed is not None:
        assert same(model, fit(made(500), tmp_path / "whole", private, strategy=strategy)[0])
    (final,) = (tmp_path / "cut").glob("*.safetensors")
    assert final.name.startswith("final")
    with safe_open(final, "pt") as file:
        assert "secret" not in str(file.metadata())
    assert (tmp_path / "cut").stat().st_mode & 0o077 == 0


def test_micro_batches_change_nothing_but_memory(made: Any, tmp_path: Path) -> None:
    whole, _ = fit(made(300), tmp_path / "whole")
    for method in ("ghost", "vmap"):
        private = replace(GUESSED, rows_at_once=7, method=method)
        parts, _ = fit(made(300), tmp_path / method, private)
        for one, two in zip(whole.parameters(), parts.parameters(), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


def test_batches_may_be_empty(made: Any, tmp_path: Path) -> None:
    strategy = replace(PLAIN, batch_size=1, epochs=1)
    model, heard = fit(made(40), tmp_path, strategy=strategy)
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert figures(heard)["privacy/epsilon"] > 0


def test_batch_norm_is_refused_by_name(made: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"module\.hidden\.1 \(BatchNorm\)"):
        fit(made(), tmp_path, factory=MLP(hidden=(8,), norm="batch"))


def test_what_ghost_can_not_take_goes_by_vmap_or_is_refused(made: Any, tmp_path: Path) -> None:
    class Tied(nn.Module):
        """Computes with a layer's weights beside the layer, which no hook sees."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, **inputs: Tensor) -> Tensor:
            x = torch.tanh(self.layer(inputs["dense"]))
            return nn.functional.linear(x, self.layer.weight).sum(1)

    _, heard = fit(made(300), tmp_path / "auto", factory=Tied)
    assert any("privacy by vmap" in note.text for note in heard if isinstance(note, Note))
    with pytest.raises(ValueError, match=r"Private\.method: found 'ghost'"):
        fit(made(300), tmp_path / "ghost", replace(GUESSED, method="ghost"), Tied)
    members = MLP(hidden=(4,), members=2)
    with pytest.raises(ValueError, match=r"'vmap' for a model with module\.hidden\.0"):
        fit(made(300), tmp_path / "members", replace(GUESSED, method="ghost"), members)


def test_a_loss_over_the_whole_batch_is_refused_by_ghost(made: Any, tmp_path: Path) -> None:
    def contrast(outputs: Tensor, targets: Any) -> Tensor:
        return (outputs - outputs.mean()).square().mean() + outputs.square().mean()

    strategy = replace(PLAIN, loss=contrast)
    with pytest.raises(ValueError, match=r"Private\.method"):
        fit(made(300), tmp_path, replace(GUESSED, method="ghost"), strategy=strategy)


def test_rows_whose_gradients_are_not_finite_are_left_out_and_told(
    made: Any, tmp_path: Path
) -> None:
    examples = made(300)
    examples.tables["train"]["dense"][:30] = 3e38
    model, heard = fit(examples, tmp_path)
    assert "rows are not finite" in warnings(heard)
    assert all(bool(p.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize(
    ("strategy", "options", "message"),
    [
        (Single, {"early_stopping": EarlyStopping()}, "early_stopping with privacy"),
        (Single, {"clip_norm": 1.0}, "clip_norm with privacy"),
        (Single, {"accumulate": 2}, "rows_at_once bounds the memory"),
        (Single, {"precision": "bfloat16"}, "precision with privacy"),
        (Single, {"compile": True}, "compile with privacy"),
        (AllReduce, {"compression": FP16()}, "owes rows to later updates"),
        (DiLoCo, {}, "Single, AllReduce and Sharded do so"),
    ],
)
def test_what_would_make_epsilon_untrue_is_refused(
    strategy: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        strategy(loss=BinaryCrossEntropy("y"), privacy=GUESSED, **options)


def test_a_strategy_that_inherits_must_say_itself_that_it_is_private() -> None:
    class Mine(Single):
        pass

    with pytest.raises(ValueError, match=r"Mine\.privacy"):
        Mine(loss=BinaryCrossEntropy("y"), privacy=GUESSED)


@pytest.mark.parametrize(
    "options",
    [
        {"clip_norm": 0.0},
        {"delta": 1.0},
        {"noise_multiplier": None},
        {"epsilon": 1.0},
        {"noise_multiplier": -1.0},
        {"noise_multiplier": None, "epsilon": 0.0},
        {"rows_at_once": 0},
    ],
)
def test_declarations_without_meaning_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Private"):
        replace(GUESSED, **options)


def test_rows_that_nobody_counts_are_refused(made: Any, tmp_path: Path) -> None:
    examples = made(300)
    examples.rows = lambda split: None
    with pytest.raises(ValueError, match="rows in files"):
        fit(examples, tmp_path)


def test_what_epsilon_does_not_cover_is_told() -> None:
    metric, note = GUESSED.unprotected({"b", "a"}, ["scale_a"])
    assert isinstance(metric, Metric)
    assert metric.value == 2
    assert isinstance(note, Note)
    assert note.warning
    assert "statistics of a, b" in note.text
    assert "scale_a" in note.text
    assert len(GUESSED.unprotected((), ())) == 1


@pytest.mark.slow
def test_one_and_two_processes_draw_and_hide_alike_also_with_a_piece_of_each_weight(
    train: Any,
) -> None:
    options = {"rows": 301, "privacy": KNOWN}
    one, two = (train(size, str(size), **options) for size in (1, 2))
    close(two, one)
    close(train(2, "pieces", kind="Sharded", strategy={"at_least": 60}, **options), one)


@pytest.mark.slow
def test_a_killed_training_in_pieces_ends_with_the_same_bits(train: Any) -> None:
    kept = {"checkpoint_steps": 4, "checkpoint_seconds": None}
    strategy = {"at_least": 1, "average": 0.9, "epochs": 2, **kept}
    privacy = {**KNOWN, "method": "vmap"}
    options = {"kind": "Sharded", "rows": 501, "privacy": privacy, "strategy": strategy}
    whole = train(2, **options)
    killed = {"1": 7, "how": "killed"}
    train(2, "cut", status=128 + signal.SIGKILL, cut=killed, **options)
    resumed = train(2, "cut", **options)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_two_processes_without_a_seed_share_one_secret(train: Any) -> None:
    # The fixture compares the weights of the ranks, which only equal noise keeps equal.
    options = {"clip_norm": 1.0, "delta": 1e-5, "epsilon": 8.0}
    assert train(2, rows=301, strategy={"epochs": 1}, privacy=options)
