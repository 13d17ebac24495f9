import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from drivetrain.core.batch import Batch
from drivetrain.core.metric import Emitted, Metric, Note
from drivetrain.core.seams import Run
from drivetrain.models import MLP
from drivetrain.models.bind import build
from drivetrain.train import BinaryCrossEntropy, Cosine, EarlyStopping, MeanSquaredError, Single
from drivetrain.train.checkpoints.behind import Behind
from drivetrain.train.checkpoints.checkpoint import Checkpoints
from drivetrain.train.checkpoints.resume import Keep
from drivetrain.train.together.group import Alone

MODEL = MLP(hidden=(16,), dim=4, dropout=0.2, norm="batch", members=2)
EVERYTHING = Single(
    loss=BinaryCrossEntropy("y"),
    epochs=4,
    batch_size=64,
    lr=0.02,
    accumulate=2,
    average=0.9,
    schedule=Cosine(warmup=5),
    early_stopping=EarlyStopping(patience=2),
    checkpoint_steps=3,
)


class CutError(Exception):
    """The source died."""


def fit(
    strategy: Single, examples: Any, directory: Path, heard: list[Emitted] | None = None
) -> nn.Module:
    emit = [].append if heard is None else heard.append
    model = build(MODEL, examples.features, seed=1)
    return strategy.fit(model, examples, Run(directory=directory, emit=emit))


def same(one: nn.Module, two: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def stopping_after(examples: Any, batches: int) -> Any:
    """Examples whose source dies after so many training batches."""
    whole, left = examples.batches, [batches]

    def some(split: Any, *args: Any, **options: Any) -> Iterator[Batch]:
        for batch in whole(split, *args, **options):
            if split == "train":
                left[0] -= 1
                if left[0] < 0:
                    raise CutError
            yield batch

    examples.batches = some
    return examples


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "adagrad"])
@pytest.mark.parametrize("batches", [5, 16, 17, 41])
def test_an_interrupted_training_ends_with_the_same_bits(
    batches: int, optimizer: Any, made: Any, tmp_path: Path
) -> None:
    strategy = replace(EVERYTHING, optimizer=optimizer, momentum=0.5)
    whole = fit(strategy, made(1000), tmp_path / "whole")
    with pytest.raises(CutError):
        fit(strategy, stopping_after(made(1000), batches), tmp_path / "cut")
    heard: list[Emitted] = []
    resumed = fit(strategy, made(1000), tmp_path / "cut", heard)
    assert same(whole, resumed)
    said = [item.text for item in heard if isinstance(item, Note)]
    assert any(text.startswith("resumed at step") for text in said) == (batches >= 6)


def test_figures_after_a_resume_are_those_of_an_uninterrupted_run(
    made: Any, tmp_path: Path
) -> None:
    whole: list[Emitted] = []
    fit(EVERYTHING, made(1000), tmp_path / "whole", whole)
    with pytest.raises(CutError):
        fit(EVERYTHING, stopping_after(made(1000), 30), tmp_path / "cut")
    heard: list[Emitted] = []
    fit(EVERYTHING, made(1000), tmp_path / "cut", heard)
    figures = [
        {(i.name, i.step): i.value for i in said if isinstance(i, Metric) and i.repeatable}
        for said in (whole, heard)
    ]
    assert figures[1].items() <= figures[0].items()
    assert ("train/loss", 16) in figures[1]


def test_a_finished_training_is_remembered(made: Any, tmp_path: Path) -> None:
    one = fit(EVERYTHING, made(1000), tmp_path)
    heard: list[Emitted] = []
    two = fit(EVERYTHING, stopping_after(made(1000), 0), tmp_path, heard)
    assert same(one, two)
    assert [item.text[:15] for item in heard if isinstance(item, Note)] == ["already trained"]


def test_another_declaration_starts_anew(made: Any, tmp_path: Path) -> None:
    fit(EVERYTHING, made(300), tmp_path)
    other = replace(EVERYTHING, lr=0.01)
    heard: list[Emitted] = []
    model = fit(other, made(300), tmp_path, heard)
    assert same(model, fit(other, made(300), tmp_path / "elsewhere"))
    assert any("another training's" in item.text for item in heard if isinstance(item, Note))


def test_how_often_it_saves_changes_nothing(made: Any, tmp_path: Path) -> None:
    one = fit(EVERYTHING, made(500), tmp_path / "one")
    rare = replace(EVERYTHING, checkpoint_steps=None, checkpoint_seconds=1e-9)
    assert same(one, fit(rare, made(500), tmp_path / "two"))
    assert fit(rare, stopping_after(made(500), 0), tmp_path / "one") is not None


def test_asked_to_end_it_writes_a_checkpoint_first(made: Any, tmp_path: Path) -> None:
    whole = fit(EVERYTHING, made(1000), tmp_path / "whole")

    def asking(examples: Any) -> Any:
        batches = examples.batches

        def some(split: Any, *args: Any, **options: Any) -> Iterator[Batch]:
            for number, batch in enumerate(batches(split, *args, **options)):
                if split == "train" and number == 7:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield batch

        examples.batches = some
        return examples

    never = replace(EVERYTHING, checkpoint_steps=None, checkpoint_seconds=None)
    with pytest.raises(InterruptedError, match=r"asked to end and did, after step 4; the same"):
        fit(never, asking(made(1000)), tmp_path / "cut")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert same(whole, fit(EVERYTHING, made(1000), tmp_path / "cut"))


def test_a_damaged_checkpoint_costs_steps_and_no_bits(made: Any, tmp_path: Path) -> None:
    whole = fit(EVERYTHING, made(1000), tmp_path / "whole")
    with pytest.raises(CutError):
        fit(EVERYTHING, stopping_after(made(1000), 30), tmp_path / "cut")
    newest = max((tmp_path / "cut").glob("step-*"))
    newest.write_bytes(newest.read_bytes()[:-5])
    heard: list[Emitted] = []
    assert same(whole, fit(EVERYTHING, made(1000), tmp_path / "cut", heard))
    assert any(item.warning for item in heard if isinstance(item, Note))


def test_a_loss_that_breaks_leaves_the_last_good_checkpoint(made: Any, tmp_path: Path) -> None:
    examples = made(1000)
    whole = examples.batches

    def poisoned(split: Any, *args: Any, **options: Any) -> Iterator[Batch]:
        for number, batch in enumerate(whole(split, *args, **options)):
            if number == 7:
                batch["dense"][0, 0] = float("inf")
            yield batch

    examples.batches = poisoned
    strategy = replace(
        EVERYTHING, loss=MeanSquaredError("z"), accumulate=1, checkpoint_steps=5, epochs=1
    )
    with pytest.raises(ArithmeticError, match="step 7, epoch 0, batch 7"):
        fit(strategy, examples, tmp_path)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith("step-000000000005-")


CHILD = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(1)
from conftest import Made
from test_resume import EVERYTHING, fit
from dataclasses import replace
from drivetrain.train.checkpoints.resume import unique
strategy = replace(EVERYTHING, epochs=12, early_stopping=None, checkpoint_steps=2)
model = fit(strategy, Made(4000), Path(sys.argv[2]))
save_file(dict(unique(model)), sys.argv[3])
"""


def child(directory: Path, weights: Path) -> subprocess.Popen[bytes]:
    here = str(Path(__file__).parent)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, here, str(directory), str(weights)], env=environment
    )


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    assert child(tmp_path / "whole", tmp_path / "whole.safetensors").wait() == 0
    moments = random.Random(0)
    killed = 0
    weights = tmp_path / "cut.safetensors"
    for _ in range(40):
        process = child(tmp_path / "cut", weights)
        deadline = time.monotonic() + 60
        seen = {path.name for path in (tmp_path / "cut").glob("step-*")}
        while process.poll() is None and time.monotonic() < deadline:  # until it makes progress
            if {path.name for path in (tmp_path / "cut").glob("step-*")} - seen:
                break
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.3))
        if process.poll() is None and killed < 6:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
        elif process.wait() == 0:
            break
    assert killed >= 5
    assert weights.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()


def test_processes_that_find_checkpoints_of_other_steps_do_not_go_on(tmp_path: Path) -> None:
    class Other(Alone):
        def gather(self, values: torch.Tensor) -> list[torch.Tensor]:
            return [values, values + 1]

    keep = Keep(Behind(Checkpoints(tmp_path, "made")), {}, seconds=None, steps=None)
    loop: Any = SimpleNamespace(group=Other())
    with pytest.raises(ConnectionError, match="checkpoints of different steps: none, 0"):
        keep.resume(loop)
