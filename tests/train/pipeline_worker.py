"""One process that trains several models in stages, one after another: DIRECTORY CASES (JSON).

A start of processes takes longer than the trainings: so all cases of one world are in one start.
"""

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import Made  # beside this file, which Python puts on the path
from safetensors.torch import save_file
from torch import Tensor, nn

from drivetrain.core.job import LOST
from drivetrain.core.metric import Metric, Note
from drivetrain.core.schema import FeatureField, FeatureSchema
from drivetrain.core.seams import Run
from drivetrain.core.world import World
from drivetrain.models import MLP, ConvNet
from drivetrain.models.bind import build
from drivetrain.train import BinaryCrossEntropy, EarlyStopping, Single
from drivetrain.train.checkpoints import resume
from drivetrain.train.loop.step import Step
from drivetrain.train.pipelined import Pipelined
from drivetrain.train.stages.pipeline import divided
from drivetrain.train.together import group

COMMON: dict[str, Any] = {
    "loss": BinaryCrossEntropy("y"),
    "epochs": 3,
    "batch_size": 64,
    "lr": 0.02,
}


class Block(nn.Module):
    """A residual block with its first activation in place, which a received tensor must bear."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.activation = nn.ReLU(inplace=True)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        x = self.activation(x)
        found, _ = self.attention(x, x, x, need_weights=False)
        return self.norm(x + self.dropout(found) * keep)


class Encoder(nn.Module):
    """A stack of blocks over words; a mask goes to all of them, the numbers past them."""

    def __init__(self, depth: int = 4, width: int = 8, dropout: float = 0.0) -> None:
        super().__init__()
        self.table = nn.Embedding(11, width)
        self.place = nn.Parameter(torch.zeros(3, width))
        self.blocks = nn.ModuleList(Block(width, dropout) for _ in range(depth))
        self.head = nn.Linear(width + 5, 1)

    def forward(self, dense: Tensor, index: Tensor, words: Tensor) -> Tensor:
        rows = words.shape[0]
        keep = (words != 0).unsqueeze(2)
        x = self.table(words) + self.place
        for block in self.blocks:
            x = block(x, keep)
        return self.head(torch.cat([x.mean(1), dense, index.float()], 1)).view(rows)


class Pictures(Made):
    """The same rows with a small picture that shows what they hold."""

    def __init__(self, rows: int, validate: int) -> None:
        super().__init__(rows, validate=validate)
        picture = FeatureField(name="picture", kind="tensor", shape=(1, 4, 4))
        self.features = FeatureSchema((*self.features.features, picture))
        for table in self.tables.values():
            noise = np.random.default_rng(0).normal(size=(len(table["y"]), 1, 4, 4))
            table["picture"] = (noise + table["dense"][:, :1, None, None]).astype(np.float32)


def model_of(case: dict[str, Any], examples: Made) -> nn.Module:
    options = case.get("model", {})
    factories: dict[str, Any] = {
        "mlp": MLP(**{"hidden": (16, 16, 16), "dim": 4, **options}),
        "conv": ConvNet(channels=(4, 4), hidden=(8,), dim=4),
        "encoder": lambda: Encoder(**options),
    }
    return build(factories[case.get("of", "mlp")], examples.features, seed=1)


class MicroStep(Step):
    """Takes a batch as the stages of a pipeline do, in one process."""

    def __call__(self, inputs: Any, targets: Any, rows: int, of_all: int | None = None) -> bool:
        self._batches += 1
        self._rows += rows
        for some, labels, count in divided(inputs, targets, 4):
            part = self.loss(self.outputs(some), labels) * (count / self.full)
            self._add(part)
            part.backward()
        return self.flush() if self._batches == self.accumulate else False


class Micro(Single):
    """Trains in one process, with four micro-batches to a batch."""

    def _kind_of_step(self, group: Any) -> type[Step]:
        return MicroStep


class EnoughError(Exception):
    """The end of a training that shall go on later."""


class Weighed(Pipelined):
    """Notes what this process holds when the last update is done."""

    def _final_weights(self, step: Any, validate: Any) -> None:
        slots = step.optimizer.state_dict()["state"].values()
        held = {
            "weights": step.parameters,
            "model": list(MODEL[0].parameters()),
            "average": step.average or [],
            "optimizer": [t for each in slots for name, t in each.items() if name != "step"],
        }
        TOLD.update({kind: sum(t.nbytes for t in tensors) for kind, tensors in held.items()})
        TOLD["most_held"] = getattr(step, "most_held", 0)
        super()._final_weights(step, validate)


MODEL: list[nn.Module] = []
TOLD: dict[str, Any] = {}


def train(directory: Path, case: dict[str, Any], world: World) -> None:
    """Train one case; the leader also in one process, if it shall be compared."""
    kind = Pictures if case.get("of") == "conv" else Made
    rows, validate = case.get("rows", 1003), case.get("validate", 100)
    options = {**COMMON, "wait_seconds": 120, **case.get("strategy", {})}
    if patience := options.pop("patience", None):
        options["early_stopping"] = EarlyStopping(patience=patience)
    into = directory / case["name"]
    into.mkdir(parents=True, exist_ok=True)
    examples = cutting(kind(rows, validate=validate), case.get("cut", {}), world)
    MODEL[:] = [model_of(case, examples)]
    TOLD.clear()
    emit = hearing(TOLD)
    run = Run(directory=into / "run", emit=emit, world=world)
    try:
        fitted = Weighed(**options).fit(MODEL[0], examples, run)
    except EnoughError:
        return
    assert not fitted.training
    TOLD["bytes_after"] = sum(p.nbytes for p in fitted.parameters())
    save(fitted, into / f"weights-{world.rank}.safetensors")
    (into / f"told-{world.rank}.json").write_text(json.dumps(TOLD))
    if "like" in case and world.rank == 0:
        own = ("wait_seconds", "stages", "micro_batches", "order", "cut")
        options = {name: value for name, value in options.items() if name not in own}
        examples, figures = kind(rows, validate=validate), dict[str, Any]()
        run = Run(directory=into / "single", emit=hearing(figures))
        kinds = {"Single": Single, "Micro": Micro}
        found = kinds[case["like"]](**options).fit(model_of(case, examples), examples, run)
        save(found, into / "weights-single.safetensors")
        (into / "told-single.json").write_text(json.dumps(figures))


def hearing(told: dict[str, Any]) -> Any:
    told["notes"] = []

    def hear(item: Any) -> None:
        if isinstance(item, Metric):
            told[item.name] = item.value
        elif isinstance(item, Note):
            told["notes"].append(item.text)

    return hear


def save(model: nn.Module, path: Path) -> None:
    save_file({name: t.contiguous().clone() for name, t in model.state_dict().items()}, path)


def cutting(examples: Made, cut: dict[str, Any], world: World) -> Made:
    """Examples that end a training, or its process, when it asks for a batch."""
    batches = examples.batches

    def ending(split: Any, *args: Any, **more: Any) -> Any:
        for number, batch in enumerate(batches(split, *args, **more)):
            if split == "train" and "order" in more and number == cut.get("batch"):
                if "rank" not in cut:
                    raise EnoughError
                if cut["rank"] == world.rank:
                    os.kill(os.getpid(), signal.SIGKILL)
            yield batch

    examples.batches = ending
    return examples


def main(directory: Path, cases: list[dict[str, Any]]) -> int:
    torch.set_num_threads(1)
    world = World.of()
    resume._AGREE_SECONDS = 0.0
    met = group.joined
    try:
        with met(Run(directory=directory, world=world), 300) as all_of_them:

            @contextmanager
            def joined(run: Run, seconds: float) -> Iterator[Any]:
                yield group.Alone() if run.world.size == 1 else all_of_them

            group.joined = joined
            for case in cases:
                if not case.get("alone"):
                    train(directory, case, world)
                elif world.leads:
                    train(directory, case, World())
    except ConnectionError as error:
        (directory / f"lost-{world.rank}").write_text(str(error))
        os._exit(LOST)  # as the command line does: a thread of a lost group aborts at the exit
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), json.loads(sys.argv[2])))
