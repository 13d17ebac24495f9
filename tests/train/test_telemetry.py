"""What a training tells of its costs: waits, messages and memory, seldom and at the end."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from drivetrain.core.metric import Emitted, Metric
from drivetrain.core.seams import Run
from drivetrain.models import MLP
from drivetrain.models.bind import build
from drivetrain.train import BinaryCrossEntropy, Single
from drivetrain.train.loop.telemetry import memory
from drivetrain.train.together.group import Alone
from drivetrain.train.together.traffic import Traffic


def fit(examples: Any, folder: Path, **options: Any) -> list[Metric]:
    heard: list[Emitted] = []
    model = build(MLP(hidden=(8,), dim=2), examples.features, seed=0)
    strategy = Single(loss=BinaryCrossEntropy("y"), batch_size=100, **options)
    strategy.fit(model, examples, Run(directory=folder, emit=heard.append))
    return [item for item in heard if isinstance(item, Metric)]


def slow(examples: Any, seconds: float) -> Any:
    """The same examples, each batch of which takes so long to come."""
    batches = examples.batches

    def late(*args: Any, **more: Any) -> Any:
        for batch in batches(*args, **more):
            time.sleep(seconds)
            yield batch

    examples.batches = late
    return examples


def test_the_wait_for_data_is_a_share_of_the_time(made: Any, tmp_path: Path) -> None:
    def share(examples: Any, name: str) -> float:
        found = [m for m in fit(examples, tmp_path / name) if m.name == "train/data_wait_share"]
        assert not any(metric.repeatable for metric in found)
        return found[-1].value

    starved = share(slow(made(1000), 0.05), "slow")
    assert share(made(1000), "fast") < starved < 1
    assert starved > 0.5


def test_figures_are_told_by_the_clock_and_at_the_end(made: Any, tmp_path: Path) -> None:
    found = fit(made(1000), tmp_path, epochs=3)
    told = [m.step for m in found if m.name == "train/data_wait_share"]
    assert told[-1] == 30
    assert len(told) < 30


def test_a_training_of_one_update_has_no_rate_to_tell(made: Any, tmp_path: Path) -> None:
    names = {m.name for m in fit(made(100), tmp_path)}
    assert "train/loss" in names
    assert "train/rows_per_second" not in names


def test_a_process_by_itself_says_nothing_of_messages(made: Any, tmp_path: Path) -> None:
    assert not [m for m in fit(made(500), tmp_path) if "communication" in m.name]
    assert Alone().traffic == Traffic()


def test_memory_is_that_of_this_process() -> None:
    found = dict(memory(torch.device("cpu")))
    assert 50 < found["memory/rss_mb"] <= 1.05 * found["memory/rss_peak_mb"]
    assert not [name for name in found if "device" in name]


@pytest.mark.parametrize("size", [1, 2, 5])
def test_bytes_are_those_of_the_best_algorithms(size: int) -> None:
    values = torch.zeros(100)  # 400 bytes
    counts = []
    for way in (Traffic.reduced, Traffic.gathered, Traffic.broadcast):
        traffic = Traffic(size)
        way(traffic, values)
        counts.append(traffic.sent)
    assert counts == [800 * (size - 1) // size, 400 * (size - 1), 400 * (size - 1) // size]


@pytest.mark.slow
def test_processes_count_the_gradients_that_they_send(
    train: Any, made: Any, tmp_path: Path
) -> None:
    weights = train(2, rows=512, strategy={"epochs": 2})
    held = sum(tensor.nbytes for tensor in weights.values())
    figures = json.loads((tmp_path / "whole" / "figures-0.json").read_text())
    # In an update all gradients and the loss; of two processes each sends as much as there is.
    # First the weights of rank 0 go to the other, and later some agree on the time.
    updates = 2 * 512 / 64
    assert held * updates < figures["train/communication_bytes"] < 1.05 * held * (updates + 1)
    assert 0 < figures["train/communication_wait_share"] < 1


def test_memory_of_a_gpu_is_that_of_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2_000_000)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3_000_000)
    found = dict(memory(torch.device("cuda")))
    assert (found["memory/device_mb"], found["memory/device_peak_mb"]) == (2.0, 3.0)
