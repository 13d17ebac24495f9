"""Weights in pieces, one for each process: the updates of one process in a part of its memory."""

import json
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn

from drivetrain.core.seams import Run
from drivetrain.core.world import World
from drivetrain.launch.local import Local
from drivetrain.models import MLP
from drivetrain.models.bind import build
from drivetrain.train import BinaryCrossEntropy, EarlyStopping, Sharded, Single
from drivetrain.train.together.group import Processes
from drivetrain.train.together.sharding import explaining, shard, skeleton, units

WORKER = Path(__file__).with_name("shards_worker.py")
FLOAT_BYTES = 4


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)


def close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=2e-4, atol=2e-5)


def fit(strategy: Single, examples: Any, directory: Path, **model: Any) -> dict[str, torch.Tensor]:
    module = build(MLP(hidden=(16,), dim=4, **model), examples.features, seed=1)
    return dict(strategy.fit(module, examples, Run(directory=directory)).state_dict())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "options"),
    [
        (2, {"optimizer": "adamw", "weight_decay": 0.1, "at_least": 60}),
        (3, {"optimizer": "adam", "accumulate": 3, "clip_norm": 0.3, "at_least": 1}),
    ],
)
def test_processes_train_as_one_and_hold_a_part_each(
    made: Any, job_of: Any, tmp_path: Path, size: int, options: dict[str, Any]
) -> None:
    common = {
        "epochs": 6,
        "batch_size": 77,
        "lr": 0.05,
        "average": 0.9,
        **options,
    }  # 1003: 13 · 77 + 2
    job = job_of(tmp_path, size, {**common, "patience": 2, "validate": 4})
    command = (*job.command[:3], str(WORKER), *job.command[4:])
    assert job.command[:3] == (sys.executable, "-W", "error")
    assert Local().start(replace(job, command=command)) == 0

    common.pop("at_least")
    stopping = EarlyStopping(patience=2)
    single = Single(loss=BinaryCrossEntropy("y"), early_stopping=stopping, **common)
    expected = fit(single, made(1003, validate=4), tmp_path / "single")
    found = [load_file(tmp_path / f"weights-{rank}.safetensors") for rank in range(size)]
    close(found[0], expected)
    assert all(same(found[0], other) for other in found)

    whole = sum(tensor.numel() for tensor in expected.values()) * FLOAT_BYTES
    largest = sum(-(-len(t) // size) * t[0].numel() for t in expected.values()) * FLOAT_BYTES
    held = [json.loads((tmp_path / f"bytes-{rank}.json").read_text()) for rank in range(size)]
    for kind, copies in {"weights": 1, "average": 1, "optimizer": 2}.items():
        assert sum(of_rank[kind] for of_rank in held) <= size * largest * copies
        assert sum(of_rank[kind] for of_rank in held) >= whole * copies
        assert max(of_rank[kind] for of_rank in held) <= largest * copies


@pytest.mark.slow
def test_an_interrupted_training_goes_on_in_any_number_of_processes(
    train: Any, made: Any, tmp_path: Path
) -> None:
    strategy = {"checkpoint_steps": 4, "average": 0.9, "at_least": 60, "epochs": 2}
    options = {"kind": "Sharded", "strategy": {**strategy, "optimizer": "adagrad"}}
    whole = train(2, **options)
    cut = {"cut": {"1": 11, "how": "killed"}}
    train(2, "cut", status=128 + signal.SIGKILL, **options, **cut)
    text = (tmp_path / "cut" / "lost-0").read_text()
    assert text.startswith("rank 0 of 2 waited for the others in vain: ")
    for other in ("three", "torn"):
        shutil.copytree(tmp_path / "cut", tmp_path / other)
    assert same(whole, train(2, "cut", **options))
    newest = max((tmp_path / "torn" / "run").glob("part-step-*-00001-of-*"))
    newest.write_bytes(newest.read_bytes()[:100])
    assert same(whole, train(2, "torn", **options))
    close(train(3, "three", **options), whole)


def test_one_process_trains_as_single_does(made: Any, tmp_path: Path) -> None:
    options = {"loss": BinaryCrossEntropy("y"), "epochs": 2, "batch_size": 64, "average": 0.9}
    model = {"dropout": 0.2, "norm": "batch"}
    expected = fit(Single(**options), made(500), tmp_path / "single", **model)
    assert same(expected, fit(Sharded(**options), made(500), tmp_path / "sharded", **model))
    # What is done is read again, from its parts.
    assert same(expected, fit(Sharded(**options), made(500), tmp_path / "sharded", **model))


def test_large_modules_are_fetched_by_themselves_and_small_ones_with_their_parent() -> None:
    large, small = nn.Linear(20, 20), nn.Linear(2, 2)
    inner = nn.Sequential(small, large)
    model = nn.Sequential(nn.ModuleList([inner]), nn.Embedding(50, 4), nn.Linear(3, 3))
    assert units(model, 100) == [large, model[1], model]
    assert units(model, 1)[-3:] == [model[1], model[2], model]
    assert units(model, 10_000) == [model]


def test_what_modules_share_stays_with_the_one_around_them() -> None:
    table, head = nn.Embedding(50, 4), nn.Linear(4, 50, bias=False)
    head.weight = table.weight
    around = nn.Sequential(table, head)
    model = nn.Sequential(around, nn.Linear(50, 50))
    assert units(model, 100) == [around, model[1], model]


def test_attention_which_reads_weights_of_its_parts_is_fetched_whole() -> None:
    attention = nn.MultiheadAttention(16, 2)
    model = nn.Sequential(attention)
    assert units(model, 100) == [attention, model]


def test_a_skeleton_takes_no_memory_and_keeps_ties_and_buffers() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    model[0].bias.requires_grad_(False)
    found = skeleton(model)
    assert all(parameter.is_meta for parameter in found.parameters())
    assert found[0].weight is found[2].weight
    assert not found[0].bias.requires_grad
    assert torch.equal(found[1].running_var, model[1].running_var)


class Tied(nn.Module):
    """Reads the weights of a table without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 4)

    def forward(self, index: torch.Tensor) -> torch.Tensor:
        return self.table(index) @ self.table.weight.T


@pytest.fixture
def group_of_one() -> Iterator[Processes]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Processes(World())
    dist.destroy_process_group()


def test_a_weight_that_is_read_without_a_call_says_which_option_helps(
    group_of_one: Processes,
) -> None:
    model, index = Tied(), torch.tensor([1, 2])
    expected = model(index).detach()
    shard(model, group_of_one, 100)
    with (
        pytest.raises(ValueError, match=r"Sharded: found a model that reads .* Raise at_least"),
        explaining("Sharded"),
    ):
        model(index)
    model = Tied()
    model.table.weight.data.copy_(torch.ones(50, 4))
    shard(model, group_of_one, 1000)
    assert torch.equal(model(index).detach(), torch.full_like(expected, 4))


def test_outputs_that_are_views_can_be_changed_in_place(group_of_one: Processes) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (2, 3)))
    shard(model, group_of_one, 1)
    outputs = model(torch.ones(5, 4))
    outputs *= 2
    outputs.sum().backward()
    gradients = [p.grad.full_tensor() for p in model.parameters()]  # pyright: ignore
    assert torch.equal(gradients[0], torch.full((6, 4), 10.0))
    assert torch.equal(gradients[1], torch.full((6,), 10.0))


def test_options_that_pieces_cannot_have_are_refused() -> None:
    loss = BinaryCrossEntropy("y")
    with pytest.raises(ValueError, match=r"Sharded.at_least: found 0, allowed: an integer of at"):
        Sharded(loss=loss, at_least=0)
    with pytest.raises(ValueError, match=r"Sharded.compile: found True, allowed: False"):
        Sharded(loss=loss, compile=True)
    with pytest.raises(ValueError, match=r"Sharded.wait_seconds: found 0, allowed: a number above"):
        Sharded(loss=loss, wait_seconds=0)
