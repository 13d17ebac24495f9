"""A model in stages, each in a process of its own: the updates of one, in a part of its memory."""

import json
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from drivetrain.core.describe import digest
from drivetrain.core.seams import Run
from drivetrain.core.world import World
from drivetrain.launch.local import Local
from drivetrain.models import MLP
from drivetrain.models.bind import build
from drivetrain.train import BinaryCrossEntropy, Private, Prune, Single
from drivetrain.train.pipelined import Pipelined

WORKER = Path(__file__).with_name("pipeline_worker.py")
Weights = dict[str, torch.Tensor]
Start = Callable[..., None]

DROPPED: dict[str, Any] = {
    "of": "encoder",
    "model": {"dropout": 0.2},
    "strategy": {"checkpoint_steps": 4, "average": 0.9, "epochs": 2},
}
PLAIN: dict[str, Any] = {
    "of": "encoder",
    "strategy": {
        "checkpoint_steps": 4,
        "optimizer": "sgd",
        "momentum": 0.9,
        "average": 0.9,
        "patience": 3,
        "epochs": 2,
    },
}


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stages")


@pytest.fixture(scope="module")
def start(job_of: Any, room: Path) -> Start:
    """``start(size, *cases)`` trains them one after another in so many processes."""

    def begin(size: int, *cases: dict[str, Any], status: int = 0) -> None:
        job = job_of(room, size, {})
        command = (sys.executable, "-W", "error", str(WORKER), str(room), json.dumps(cases))
        assert Local(grace=20).start(replace(job, command=command)) == status

    return begin


@pytest.fixture(scope="module")
def two(start: Start, room: Path) -> Path:
    """What was trained in two processes, the last of which was killed."""
    start(
        2,
        {
            "name": "perceptron",
            "like": "Micro",
            "validate": 4,
            "model": {"norm": "layer"},
            "strategy": {
                "batch_size": 77,  # 1003: 13 · 77 + 2
                "weight_decay": 0.1,
                "embedding_decay": 0.05,
                "accumulate": 3,
                "average": 0.9,
                "patience": 2,
                "epochs": 6,
            },
        },
        {
            "name": "encoder",
            "of": "encoder",
            "like": "Single",
            "strategy": {
                "order": "gpipe",
                "optimizer": "sgd",
                "lr": 0.1,
                "clip_norm": 0.3,
                "cut": ["blocks.2"],
            },
        },
        {"name": "conv", "of": "conv", "like": "Single", "strategy": {"micro_batches": 1}},
        {"name": "half", "of": "conv", "strategy": {"precision": "bfloat16", "epochs": 1}},
        {"name": "whole", **DROPPED},
        {"name": "dropped", **DROPPED, "cut": {"batch": 11}},
        {"name": "dropped", **DROPPED},
        {"name": "plain", **PLAIN, "cut": {"batch": 11}},
        {"name": "killed", "cut": {"batch": 5, "rank": 1}},
        status=128 + signal.SIGKILL,
    )
    for name in ("one", "four", "copies"):
        shutil.copytree(room / "plain", room / name)
    return room


@pytest.fixture(scope="module")
def four(two: Path, start: Start) -> Path:
    """What was trained in four processes, or went on there."""
    start(
        4,
        {"name": "four", **PLAIN, "strategy": {**PLAIN["strategy"], "stages": 4}, "like": "Single"},
        {"name": "copies", **PLAIN},
        {"name": "one", **PLAIN, "alone": True},
        {
            "name": "shared",
            "like": "Single",
            "rows": 1002,  # 13 · 77 + 1: one copy has none of the last batch
            "strategy": {
                "optimizer": "adagrad",
                "batch_size": 77,
                "accumulate": 2,
                "clip_norm": 0.3,
                "average": 0.9,
                "micro_batches": 6,
            },
        },
        {"name": "mixed", "of": "conv", "strategy": {"epochs": 1}},
    )
    return two


def weights(room: Path, name: str, size: int) -> Weights:
    """The weights that all processes have in the end."""
    first, *others = [load_file(room / name / f"weights-{n}.safetensors") for n in range(size)]
    assert all(same(first, other) for other in others)
    return first


def told(room: Path, name: str, rank: int | str = 0) -> dict[str, Any]:
    return json.loads((room / name / f"told-{rank}.json").read_text())


def same(one: Weights, two: Weights) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)


def close(found: Weights, expected: Weights) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=2e-4, atol=2e-5, msg=name)


@pytest.mark.slow
def test_two_stages_take_the_updates_of_one_process_bit_for_bit(two: Path) -> None:
    alone = load_file(two / "perceptron" / "weights-single.safetensors")
    assert same(weights(two, "perceptron", 2), alone)
    found, expected = told(two, "perceptron"), told(two, "perceptron", "single")
    assert found["train/loss"] == pytest.approx(expected["train/loss"], rel=1e-6)
    assert found["validate/loss"] == pytest.approx(expected["validate/loss"], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["encoder", "conv"])
def test_other_models_and_orders_agree_with_single(two: Path, name: str) -> None:
    close(weights(two, name, 2), load_file(two / name / "weights-single.safetensors"))
    loss = told(two, name, "single")["validate/loss"]
    assert told(two, name)["validate/loss"] == pytest.approx(loss, rel=1e-4)


@pytest.mark.slow
def test_a_process_holds_its_stage_alone_and_the_whole_model_at_the_end(two: Path) -> None:
    held = [told(two, "perceptron", rank) for rank in (0, 1)]
    whole = sum(t.nbytes for t in weights(two, "perceptron", 2).values())
    for kind, copies in {"weights": 1, "model": 1, "average": 1, "optimizer": 2}.items():
        assert sum(each[kind] for each in held) == copies * whole
        assert max(each[kind] for each in held) < copies * 0.75 * whole
    assert [each["bytes_after"] for each in held] == [whole, whole]


@pytest.mark.slow
def test_1f1b_holds_as_many_micro_batches_as_there_are_stages_and_gpipe_all(four: Path) -> None:
    assert [told(four, "four", rank)["most_held"] for rank in range(4)] == [4, 3, 2, 1]
    assert [told(four, "perceptron", rank)["most_held"] for rank in (0, 1)] == [2, 1]
    assert [told(four, "encoder", rank)["most_held"] for rank in (0, 1)] == [4, 4]


@pytest.mark.slow
def test_a_training_that_goes_on_in_as_many_processes_ends_with_the_same_bits(two: Path) -> None:
    assert any("resumed at step 8" in text for text in told(two, "dropped")["notes"])
    assert same(weights(two, "dropped", 2), weights(two, "whole", 2))


@pytest.mark.slow
def test_a_training_goes_on_in_other_stages_in_copies_and_in_one_process(four: Path) -> None:
    expected = load_file(four / "four" / "weights-single.safetensors")
    for name, size in {"four": 4, "copies": 4, "one": 1}.items():
        assert any("resumed at step 8" in text for text in told(four, name)["notes"])
        close(weights(four, name, size), expected)


@pytest.mark.slow
def test_copies_share_the_rows_and_all_end_with_equal_weights(four: Path) -> None:
    close(weights(four, "shared", 4), load_file(four / "shared" / "weights-single.safetensors"))
    weights(four, "mixed", 4)  # running means too, which the copies saw other rows for


@pytest.mark.slow
def test_batch_normalisation_by_micro_batches_is_told_by_name(four: Path) -> None:
    (text,) = [text for text in told(four, "mixed")["notes"] if "normalises" in text]
    assert text.startswith("'towers.0.1' normalises by the rows of a micro-batch")
    assert not any("normalises" in text for text in told(four, "conv")["notes"])


@pytest.mark.slow
def test_who_loses_a_stage_ends_and_says_which(two: Path) -> None:
    text = (two / "lost-0").read_text()
    assert text.startswith("rank 0 of 2 waited for rank 1 in vain: it has ended or stands still")


def test_one_process_trains_as_single_does(made: Any, tmp_path: Path) -> None:
    def fit(strategy: Single, name: str) -> Weights:
        model = build(MLP(hidden=(16,), dropout=0.2, norm="batch"), made().features, seed=1)
        return dict(strategy.fit(model, made(500), Run(directory=tmp_path / name)).state_dict())

    options = {"loss": BinaryCrossEntropy("y"), "epochs": 2, "batch_size": 64, "average": 0.9}
    expected = fit(Single(**options), "single")
    assert same(expected, fit(Pipelined(**options), "pipelined"))
    assert same(expected, fit(Pipelined(**options), "pipelined"))  # what is done is read again


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"stages": 1}, r"Pipelined.stages: found 1, allowed: an integer of at least 2"),
        ({"micro_batches": 0}, r"Pipelined.micro_batches: found 0, allowed: an integer of at le"),
        ({"order": "1f2b"}, r"unknown Pipelined.order '1f2b'. Did you mean '1f1b'\?"),
        ({"cut": ("a", "b")}, r"names in Pipelined.cut: found 2, allowed: 1, for 2 stages, or no"),
        ({"bucket_mb": 0}, r"Pipelined.bucket_mb: found 0, allowed: a number above 0"),
        ({"compile": True}, r"Pipelined.compile: found True, allowed: False"),
        ({"prune": Prune(channels=0.5)}, r"Pipelined.prune: .* allowed: None"),
        (
            {"privacy": Private(clip_norm=1.0, delta=1e-5, epsilon=1.0)},
            r"Pipelined.privacy: .*allowed: None",
        ),
    ],
)
def test_options_that_stages_cannot_have_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Pipelined(loss=BinaryCrossEntropy("y"), **options)


def test_processes_that_hold_no_whole_copy_are_refused(made: Any, tmp_path: Path) -> None:
    run = Run(directory=tmp_path, world=World(size=4))
    with pytest.raises(ValueError, match=r"processes of the site: found 4, allowed: a multiple of"):
        Pipelined(loss=BinaryCrossEntropy("y"), stages=3).fit(nn.Linear(1, 1), made(), run)


def test_how_it_is_cut_is_no_part_of_what_is_trained() -> None:
    loss = BinaryCrossEntropy("y")
    other = Pipelined(loss=loss, stages=3, order="gpipe", cut=("a", "b"), bucket_mb=1)
    assert digest(Pipelined(loss=loss)) == digest(other)
    assert digest(Pipelined(loss=loss)) != digest(Pipelined(loss=loss, micro_batches=5))
