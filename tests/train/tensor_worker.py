"""One process that trains several models, one after the other, cut in ways: DIRECTORY OPTIONS."""

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from drivetrain.core.job import LOST
from drivetrain.core.metric import Metric
from drivetrain.core.seams import Run
from drivetrain.core.world import World
from drivetrain.models import MLP, WideAndDeep
from drivetrain.models.bind import build
from drivetrain.train import BinaryCrossEntropy, EarlyStopping, Single, TensorParallel
from drivetrain.train.checkpoints import resume
from drivetrain.train.checkpoints.pieces import piece

ROWS = 1003


class Encoder(nn.Module):
    """A small transformer over the index features and the words."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.tokens = nn.Embedding(23, 8)
        layer = nn.TransformerEncoderLayer(
            8, 2, 16, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 1, nn.LayerNorm(8), enable_nested_tensor=False)
        self.numbers = nn.Linear(3, 8)
        self.head = nn.Linear(8, 1)

    def forward(self, dense: Tensor, index: Tensor, words: Tensor) -> Tensor:
        ids = torch.cat([index + torch.tensor([0, 7]), words + 12], 1)
        x = self.layers(self.tokens(ids) + self.numbers(dense).unsqueeze(1))
        return self.head(x.mean(1)).squeeze(1)


class Sharing(nn.Module):
    """Two layers with a softmax between them, each share of which needs all the others."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 8), nn.Linear(8, 1)

    def forward(self, dense: Tensor, **rest: Tensor) -> Tensor:
        return self.second(self.first(dense).softmax(-1)).squeeze(1)


def model_of(options: dict[str, Any], examples: Any) -> nn.Module:
    """The module that a training's options name, its weights drawn from one seed."""
    given = dict(options)
    if given.pop("kind") == "mlp":
        hidden = tuple(given.pop("hidden"))
        return build(MLP(dim=4, hidden=hidden, **given), examples.features, seed=1)
    if options["kind"] == "wide":
        return build(WideAndDeep(dim=3, hidden=(16, 8)), examples.features, seed=1)
    if options["kind"] == "sharing":
        return build(Sharing, examples.features, seed=1)
    return build(lambda: Encoder(**given), examples.features, seed=1)


def strategy_of(kind: type[Single], options: dict[str, Any]) -> Any:
    """A strategy of a training's options."""
    given = {"epochs": 2, "batch_size": 77, "lr": 0.03, **options}  # 1003: 13 · 77 + 2
    if "patience" in given:
        given["early_stopping"] = EarlyStopping(patience=given.pop("patience"))
    if issubclass(kind, TensorParallel):
        given = {"ways": 2, "at_least": 1, "wait_seconds": 120, **given}
    else:
        given.pop("shard", None)
    return kind(loss=BinaryCrossEntropy("y"), checkpoint_seconds=None, **given)


class Weighed(TensorParallel):
    """Writes down the bytes of each kind that this process holds when the last update is done."""

    told: Path

    def _final_weights(self, step: Any, validate: Any) -> None:
        slots = step.optimizer.state_dict()["state"].values()
        held = {
            "weights": step.parameters,
            "average": step.average or [],
            "optimizer": [t for each in slots for name, t in each.items() if name != "step"],
        }
        sizes = {kind: sum(map(_bytes, tensors)) for kind, tensors in held.items()}
        type(self).told.write_text(json.dumps(sizes))
        super()._final_weights(step, validate)


def _bytes(tensor: Tensor) -> int:
    return piece(tensor).tensor.untyped_storage().nbytes()


def watched(examples: Any, end: dict[str, Any], seen: Path) -> Any:
    """Examples that end this process at a batch, and tell of the rows that were given."""
    batches, left = examples.batches, dict(end)

    def noting(split: Any, *arguments: Any, **options: Any) -> Any:
        training = options.get("order") is not None  # not the few rows that a plan is tried on
        for number, batch in enumerate(batches(split, *arguments, **options)):
            if training and number == left.get("at"):
                del left["at"]
                os.kill(os.getpid(), {"asked": signal.SIGTERM, "killed": 9}[left["how"]])
            if training:
                with seen.open("ab") as file:
                    file.write(batch["dense"][:, 0].tobytes())
            yield batch

    examples.batches = noting
    return examples


def main(directory: Path, trainings: list[dict[str, Any]]) -> int:
    from conftest import Made  # beside this file, which Python puts on the path

    torch.set_num_threads(1)
    world = World.of()
    resume._AGREE_SECONDS = 0  # pyright: ignore[reportPrivateUsage]
    for training in trainings:
        place = directory / training["name"]
        (place / "run").mkdir(parents=True, exist_ok=True)
        end = training.get("end", {}) if training.get("end", {}).get("rank") == world.rank else {}
        examples = watched(Made(ROWS, validate=30), end, place / f"seen-{world.rank}")
        Weighed.told = place / f"bytes-{world.rank}.json"
        figures: dict[str, float] = {}

        def hear(item: Any, figures: dict[str, float] = figures) -> None:
            if isinstance(item, Metric):
                figures[item.name] = item.value

        # Another port: of the processes that meet, some may still part.
        meeting = replace(world, port=training["port"])
        run = Run(directory=place / "run", emit=hear, world=meeting)
        strategy = strategy_of(Weighed, training.get("strategy", {}))
        try:
            fitted = strategy.fit(model_of(training["model"], examples), examples, run)
        except InterruptedError as error:
            (place / f"asked-{world.rank}").write_text(str(error))
            continue
        except ValueError as error:
            (place / f"refused-{world.rank}").write_text(str(error))
            continue
        except ConnectionError as error:
            (place / f"lost-{world.rank}").write_text(str(error))
            os._exit(LOST)
        assert not fitted.training
        weights = {name: tensor.contiguous() for name, tensor in fitted.state_dict().items()}
        save_file(weights, place / f"weights-{world.rank}.safetensors")
        (place / f"figures-{world.rank}.json").write_text(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), json.loads(sys.argv[2])))
