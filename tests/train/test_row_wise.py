from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from drivetrain.core.seams import Run
from drivetrain.models import MLP
from drivetrain.models.bind import build
from drivetrain.train import AllReduce, BinaryCrossEntropy, Private, Single
from drivetrain.train.native import rows as compiled
from drivetrain.train.row_wise import RowWise
from drivetrain.train.rows import touched as under_test
from drivetrain.train.rows.optimizers import RowAdagrad, RowAdam, RowOptimizer, RowSGD
from drivetrain.train.rows.touched import Touched, TouchedRows, sum_by_row, touched

BCE = BinaryCrossEntropy("y")
SMALL = MLP(hidden=(16,), dim=4)
ROWS = RowWise(at_least=2, optimizer="adagrad")
KINDS: list[RowOptimizer] = [RowSGD(), RowAdagrad(), RowAdagrad(by_row=True), RowAdam()]


def fit(strategy: Single, examples: Any, directory: Path, start: int = 1) -> nn.Module:
    model = build(SMALL, examples.features, seed=start)
    return strategy.fit(model, examples, Run(directory=directory))


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("accumulate", [1, 3])
def test_rows_are_trained_as_a_dense_adagrad_trains_the_whole_table(
    accumulate: int, made: Any, tmp_path: Path
) -> None:
    """On rows without a gradient Adagrad does nothing, so that both are one optimizer."""
    examples = made(700)
    dense = Single(
        loss=BCE, optimizer="adagrad", lr=0.05, batch_size=64, epochs=2, accumulate=accumulate
    )
    one = weights(fit(dense, examples, tmp_path / "dense"))
    two = weights(fit(replace(dense, rows=ROWS), examples, tmp_path / "rows"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=2e-4, atol=2e-6, msg=name)


def test_a_row_that_no_batch_took_keeps_its_bits_and_the_model_its_modules(
    made: Any, tmp_path: Path
) -> None:
    examples = made(300)
    index = examples.tables["train"]["index"]
    index[:, 0] %= 3  # the rows 3 to 6 of the first feature are never taken
    model = build(SMALL, examples.features, seed=1)
    before = weights(model)
    kinds = {path: type(module) for path, module in model.named_modules()}
    strategy = Single(loss=BCE, batch_size=64, rows=RowWise(at_least=2, lr=0.5))
    fitted = strategy.fit(model, examples, Run(directory=tmp_path))
    assert {path: type(module) for path, module in fitted.named_modules()} == kinds
    assert all(parameter.requires_grad for parameter in fitted.parameters())
    (name,) = (path for path, module in fitted.named_modules() if isinstance(module, nn.Embedding))
    after = weights(fitted)[f"{name}.weight"]
    assert torch.equal(after[3:7], before[f"{name}.weight"][3:7])
    assert not torch.equal(after[:3], before[f"{name}.weight"][:3])


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adam"])
def test_a_training_that_was_cut_ends_with_the_same_bits(
    optimizer: Any, made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = made(600)
    rows = RowWise(at_least=2, optimizer=optimizer)
    strategy = Single(loss=BCE, batch_size=50, epochs=2, checkpoint_steps=5, rows=rows)
    whole = weights(fit(strategy, examples, tmp_path / "whole"))
    plain, count = TouchedRows.step, [0]

    def cut(self: TouchedRows) -> None:
        count[0] += 1
        if count[0] == 14:
            raise KeyboardInterrupt
        plain(self)

    with monkeypatch.context() as patched:
        patched.setattr(TouchedRows, "step", cut)
        with pytest.raises(KeyboardInterrupt):
            fit(strategy, examples, tmp_path / "cut")
    again = weights(fit(strategy, examples, tmp_path / "cut", start=9))
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@st.composite
def steps(draw: st.DrawFn) -> tuple[int, int, list[np.ndarray]]:
    rows, dim = draw(st.integers(1, 9)), draw(st.integers(1, 5))
    ids = st.lists(st.integers(0, rows - 1), min_size=1, max_size=20)
    return rows, dim, [np.array(draw(ids), np.int64) for _ in range(draw(st.integers(1, 4)))]


class Held(nn.Module):
    """A model of one table, and the step that trains it."""

    def __init__(self, rows: int, dim: int) -> None:
        super().__init__()
        table = nn.Embedding(rows, dim)
        self.scale = nn.Parameter(torch.ones(()))
        self.table = Touched(table)


def trained(
    optimizer: RowOptimizer, rows: int, dim: int, batches: list[np.ndarray]
) -> tuple[np.ndarray, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model = Held(rows, dim)
    step: Any = type("Step", (), {})()
    step.model, step.scale = model, 0.5
    step.optimizer = torch.optim.SGD([model.scale], lr=0.1)
    taken = TouchedRows(step, optimizer, factor=1.0)
    random = np.random.default_rng(1)
    for ids in batches:
        gradient = torch.from_numpy(random.normal(size=(len(ids), dim)).astype(np.float32))
        (model.table(torch.from_numpy(ids)) * gradient).sum().backward()
        step.optimizer.step()
    return model.table.weight.detach().numpy(), taken.state()[1]


@pytest.mark.skipif(compiled is None, reason="NOT TESTED: the compiled part was not built here")
@pytest.mark.parametrize("optimizer", KINDS, ids=lambda kind: repr(kind))
@given(case=steps())
def test_the_compiled_part_does_what_numpy_does(optimizer: RowOptimizer, case: Any) -> None:
    fast, remembered = trained(optimizer, *case)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(under_test, "compiled", None)
        slow, known = trained(optimizer, *case)
    np.testing.assert_allclose(fast, slow, rtol=1e-5, atol=1e-6)
    assert remembered.keys() == known.keys()
    for name, tensor in known.items():
        torch.testing.assert_close(remembered[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", KINDS, ids=lambda kind: repr(kind))
def test_ids_of_32_bits_train_the_rows_that_those_of_64_train(optimizer: RowOptimizer) -> None:
    batches = [np.array([0, 2, 2, 5]), np.array([5, 1])]
    one, remembered = trained(optimizer, 6, 3, batches)
    two, known = trained(optimizer, 6, 3, [ids.astype(np.int32) for ids in batches])
    np.testing.assert_array_equal(one, two)
    assert remembered.keys() == known.keys()
    assert all(torch.equal(remembered[name], known[name]) for name in known)


@given(case=steps())
def test_gradients_of_one_row_are_summed(case: Any) -> None:
    rows, dim, (ids, *_) = case
    gradients = np.random.default_rng(0).normal(size=(len(ids), dim)).astype(np.float32)
    dense = np.zeros((rows, dim))
    np.add.at(dense, ids, gradients)
    found, summed = sum_by_row(ids, gradients)
    assert found.tolist() == sorted(set(ids.tolist()))
    np.testing.assert_allclose(summed, dense[found], rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(compiled is None, reason="NOT TESTED: the compiled part was not built here")
def test_an_id_beyond_the_table_is_refused_and_leaves_it_whole() -> None:
    table = np.ones((4, 2), np.float32)
    state, places = np.zeros((4, 1), np.float32), np.full(4, -1, np.int32)
    none = np.empty(0, np.float32)

    def update(ids: list[int], memory: int = 3) -> int:
        room = np.empty(memory, np.int64), np.empty((memory, 2), np.float32)
        gradients = np.ones((len(ids), 2), np.float32)
        return compiled.update(
            *(2, 2, table, state, none, np.array(ids), gradients, places, *room, 0.1, 0, 0, 1)
        )

    for wrong in ([0, 1, 4], [-1, 2, 3]):
        with pytest.raises(IndexError, match="beyond the table"):
            update(wrong)
        assert (table == 1).all()
        assert (places == -1).all()
    with pytest.raises(ValueError, match="taken: found 8 bytes, allowed: at least 24"):
        update([0, 1, 1], memory=1)
    assert update([1, 3, 1]) == 2
    assert (table[[0, 2]] == 1).all()
    assert (table[[1, 3]] < 1).all()
    assert (places == -1).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"average": 0.9}, "Single.average with rows: found 0.9, allowed: None"),
        ({"clip_norm": 1.0}, "Single.clip_norm with rows: found 1.0, allowed: None"),
        ({"embedding_decay": 0.1}, "Single.embedding_decay with rows: found 0.1, allowed: 0"),
        ({"compile": True}, "Single.compile with rows: found True, allowed: False"),
        (
            {"privacy": Private(clip_norm=1.0, noise_multiplier=1.0, delta=1e-5)},
            "Single.privacy with rows",
        ),
    ],
)
def test_what_needs_all_rows_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Single(loss=BCE, rows=ROWS, **change)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RowWise(optimizer="adagard"), "unknown RowWise.optimizer 'adagard'.*'adagrad'"),
        (lambda: RowWise(lr=0.0), "RowWise.lr: found 0.0"),
        (lambda: RowWise(at_least=0), "RowWise.at_least: found 0"),
        (lambda: AllReduce(loss=BCE, rows=ROWS), "AllReduce.rows: .*ParameterServer"),
    ],
)
def test_a_wrong_option_says_what_is_allowed(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_table_that_cannot_be_trained_so_is_named() -> None:
    with pytest.raises(ValueError, match=r"found \[\], allowed: an nn.Embedding of at least 100"):
        touched(nn.Sequential(nn.Embedding(10, 2)), 100)
    with pytest.raises(ValueError, match=r"table '0' with rows.*padding_idx"):
        touched(nn.Sequential(nn.Embedding(10, 2, padding_idx=0)), 2)


def test_tables_that_share_a_weight_are_one() -> None:
    one, two = nn.Embedding(10, 2), nn.Embedding(10, 2)
    two.weight = one.weight
    found = touched(nn.Sequential(one, two), 2)
    assert found["0"] is found["1"]


def test_a_weight_that_another_layer_has_too_is_refused() -> None:
    table, linear = nn.Embedding(10, 2), nn.Linear(2, 10, bias=False)
    linear.weight = table.weight
    message = r"weight '1.weight' with rows: found 'that of a table', allowed: a weight of its own"
    with pytest.raises(ValueError, match=message):
        touched(nn.Sequential(table, linear), 2)
