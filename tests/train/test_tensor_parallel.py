"""Layers that are cut over processes: the updates of one process, in a part of its memory."""

import importlib.util
import json
import random
import shutil
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from drivetrain.core.job import LOST
from drivetrain.core.seams import Run
from drivetrain.launch.local import Local
from drivetrain.train import BinaryCrossEntropy, Private, Prune, Single, TensorParallel

WORKER = Path(__file__).with_name("tensor_worker.py")
FLOAT_BYTES = 4
Weights = dict[str, torch.Tensor]

MLP_OF_PAIRS = {"kind": "mlp", "hidden": [16, 8, 8], "dropout": 0.2}
MLP_OF_NORMS = {"kind": "mlp", "hidden": [16, 6], "norm": "batch", "dropout": 0.2}
ENCODER = {"kind": "encoder", "dropout": 0.0}
SGD = {"optimizer": "sgd", "lr": 0.3, "momentum": 0.9}
"""Where a bias has no gradient but rounding (of keys, before a norm), which others scale up."""


def _worker() -> Any:
    spec = importlib.util.spec_from_file_location(WORKER.stem, WORKER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


worker = _worker()


@pytest.fixture
def fit(job_of: Any, tmp_path: Path) -> Callable[..., int]:
    """Trains models in ``size`` processes, one after the other; the exit status."""

    def start(size: int, *trainings: dict[str, Any]) -> int:
        # Below those that sockets get by themselves, as the ones of the trainings before do.
        some = random.sample(range(20_000, 32_000), 1_000)
        ports = list(islice(filter(free, some), len(trainings)))
        told = [{**t, "port": port} for t, port in zip(trainings, ports, strict=True)]
        job = job_of(tmp_path, size, {})
        command = (sys.executable, "-W", "error", str(WORKER), str(tmp_path), json.dumps(told))
        return Local().start(replace(job, command=command))

    return start


def free(port: int) -> bool:
    """Whether nobody listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def weights(directory: Path, size: int) -> Weights:
    """What a training gave, which is the same to the bit in all of its processes."""
    first, *others = [load_file(directory / f"weights-{rank}.safetensors") for rank in range(size)]
    assert all(same(first, other) for other in others)
    return first


def same(one: Weights, two: Weights) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)


def close(found: Weights, expected: Weights) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=2e-4, atol=2e-5, msg=name)


@pytest.fixture
def alone(made: Any) -> Callable[..., Weights]:
    """What one process gives."""

    def start(kind: type[Single], training: dict[str, Any], directory: Path) -> Weights:
        examples = made(worker.ROWS, validate=30)
        strategy = worker.strategy_of(kind, training.get("strategy", {}))
        model = worker.model_of(training["model"], examples)
        return dict(strategy.fit(model, examples, Run(directory=directory)).state_dict())

    return start


def held(directory: Path, ranks: range) -> dict[str, list[int]]:
    """Bytes of each kind, by rank."""
    found = [json.loads((directory / f"bytes-{rank}.json").read_text()) for rank in ranks]
    return {kind: [each[kind] for each in found] for kind in found[0]}


@pytest.mark.slow
def test_two_processes_train_one_copy_as_one_does_and_go_on_with_the_same_bits(
    fit: Any, alone: Any, tmp_path: Path
) -> None:
    trainings = [
        {"name": "pairs", "model": MLP_OF_PAIRS, "strategy": {"weight_decay": 0.1, "average": 0.9}},
        {"name": "norms", "model": MLP_OF_NORMS, "strategy": SGD},
        {"name": "encoder", "model": ENCODER, "strategy": {**SGD, "clip_norm": 0.3}},
    ]
    random = {"name": "random", "model": {**ENCODER, "dropout": 0.3}}
    again = [
        {**training, "name": f"cut {training['name']}", **more}
        for training in (trainings[0], random)
        for more in ({"end": {"rank": 1, "at": 9, "how": "asked"}}, {})
    ]
    plan = {"*.first": "column", "*.second": "row"}
    wrong = {"name": "wrong", "model": {"kind": "sharing"}, "strategy": {"plan": plan}}
    assert fit(2, *trainings, random, *again, wrong) == 0
    for rank in (0, 1):
        text = (tmp_path / "wrong" / f"refused-{rank}").read_text()
        assert text.startswith("TensorParallel.plan: found outputs of the cut model other than of")
    for training in trainings:
        expected = alone(Single, training, tmp_path / "single" / training["name"])
        found = weights(tmp_path / training["name"], 2)
        close(found, expected)
        whole = sum(t.numel() for n, t in expected.items() if "running" not in n) * FLOAT_BYTES
        sizes = held(tmp_path / training["name"], range(2))
        assert sum(sizes["weights"]) < 1.3 * whole  # biases, norms and the like are in both
        assert max(sizes["weights"]) < 0.65 * whole
        slots = 2 if training["name"] == "pairs" else 1
        assert sizes["optimizer"] == [slots * size for size in sizes["weights"]]
        if "average" in training["strategy"]:
            assert sizes["average"] == sizes["weights"]
    for training in (trainings[0], random):
        name = training["name"]
        text = (tmp_path / f"cut {name}" / "asked-0").read_text()
        assert text.startswith("the training was asked to end and did, after step ")
        assert same(weights(tmp_path / name, 2), weights(tmp_path / f"cut {name}", 2))


@pytest.mark.slow
def test_copies_train_as_one_and_any_mesh_goes_on_from_another(
    fit: Any, alone: Any, tmp_path: Path
) -> None:
    model = {**MLP_OF_PAIRS, "dropout": 0.0}
    strategy = {"optimizer": "adam", "weight_decay": 0.1, "average": 0.9, "epochs": 1}
    begun = {"name": "begun", "model": model, "strategy": strategy}
    end = {"rank": 0, "at": 5, "how": "asked"}
    assert fit(2, {**begun, "end": end}) == 0
    assert not (tmp_path / "begun" / "weights-0.safetensors").exists()
    for name in ("four", "one"):
        shutil.copytree(tmp_path / "begun" / "run", tmp_path / name / "run")

    # 1003 rows, 77 a batch, 3 batches an update: the last has 5 · 77 + 2 of 9.
    stepped = {"accumulate": 3, "clip_norm": 0.3, "average": 0.9, "patience": 2, "epochs": 4}
    stepped["optimizer"] = "adagrad"
    trainings = [
        {"name": "stepped", "model": model, "strategy": stepped},
        {"name": "encoder", "model": ENCODER, "strategy": SGD},
        # Tables of 3 numbers, cut by an uneven number of rows; all four hold one model.
        {"name": "wide", "model": {"kind": "wide"}, "strategy": {**SGD, "shard": True}},
    ]
    four = {**begun, "name": "four", "strategy": {**strategy, "shard": True}}
    assert fit(4, four, *trainings) == 0
    for training in trainings:
        expected = alone(Single, training, tmp_path / "single" / training["name"])
        close(weights(tmp_path / training["name"], 4), expected)
        figures = json.loads((tmp_path / training["name"] / "figures-0.json").read_text())
        assert figures["train/share_cut"] > 0.7
        whole_bytes = sum(t.numel() for t in expected.values()) * FLOAT_BYTES
        copies = 1 if training["name"] == "wide" else 2
        sizes = held(tmp_path / training["name"], range(4))["weights"]
        assert copies * whole_bytes <= sum(sizes) < 1.4 * copies * whole_bytes

    whole = alone(Single, begun, tmp_path / "whole")
    close(weights(tmp_path / "four", 4), whole)
    close(alone(TensorParallel, begun, tmp_path / "one" / "run"), whole)
    # Ranks 0 and 1 hold one copy and see the same rows; the copies share what was left.
    seen = [np.fromfile(tmp_path / "four" / f"seen-{rank}", np.float32) for rank in range(4)]
    assert np.array_equal(seen[0], seen[1])
    assert np.array_equal(seen[2], seen[3])
    assert len(seen[0]) + len(seen[2]) == worker.ROWS - 6 * 77
    assert not np.isin(seen[0], seen[2]).any()


@pytest.mark.slow
def test_who_loses_a_part_of_the_model_says_so_and_ends(fit: Any, tmp_path: Path) -> None:
    training = {"name": "killed", "model": ENCODER, "end": {"rank": 1, "at": 3, "how": "killed"}}
    assert fit(2, training) in (LOST, 128 + 9)
    text = (tmp_path / "killed" / "lost-0").read_text()
    assert text.startswith("rank 0 of 2 waited for ")
    assert " in vain: " in text


def test_one_process_trains_the_whole_model(alone: Any, tmp_path: Path) -> None:
    for name, model in (("pairs", MLP_OF_PAIRS), ("encoder", ENCODER)):
        training = {"model": model, "strategy": {**SGD, "epochs": 1}}
        expected = alone(Single, training, tmp_path / "single" / name)
        close(alone(TensorParallel, training, tmp_path / name), expected)
        # What is done is read again.
        close(alone(TensorParallel, training, tmp_path / name), expected)


def test_options_that_parts_cannot_have_are_refused() -> None:
    loss = BinaryCrossEntropy("y")
    refused: list[tuple[dict[str, Any], str]] = [
        ({"ways": 0}, r"TensorParallel.ways: found 0, allowed: an integer of at least 1"),
        ({"at_least": 0}, r"TensorParallel.at_least: found 0, allowed: an integer of at"),
        ({"bucket_mb": 0}, r"TensorParallel.bucket_mb: found 0, allowed: a number above 0"),
        ({"compile": True}, r"TensorParallel.compile: found True, allowed: False"),
        ({"plan": {"*": "colum"}}, r"style 'colum' in TensorParallel.plan\['\*'\]"),
        ({"privacy": Private(delta=1e-5, epsilon=1.0, clip_norm=1.0)}, "TensorParallel.privacy"),
        ({"prune": Prune()}, "TensorParallel.prune"),
    ]
    for options, text in refused:
        with pytest.raises(ValueError, match=text):
            TensorParallel(loss=loss, **options)


def test_the_ways_are_no_part_of_what_is_declared() -> None:
    from drivetrain.core.describe import digest

    loss = BinaryCrossEntropy("y")
    more = TensorParallel(loss=loss, ways=4, at_least=7, plan={"*.head": "whole"})
    assert digest(TensorParallel(loss=loss)) == digest(more)
    assert digest(TensorParallel(loss=loss)) != digest(TensorParallel(loss=loss, lr=0.5))
