"""One process of a training that several share, started by the tests: DIRECTORY OPTIONS (JSON)."""

import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from conftest import Made  # beside this file, which Python puts on the path
from safetensors.torch import save_file

from drivetrain import train
from drivetrain.core.job import LOST
from drivetrain.core.metric import Metric
from drivetrain.core.seams import Reduced, Run
from drivetrain.core.world import World
from drivetrain.models import MLP
from drivetrain.models.bind import build
from drivetrain.train import BinaryCrossEntropy, Private, QuantizationAware
from drivetrain.train.checkpoints import resume

OPTIONS = {"loss": BinaryCrossEntropy("y"), "epochs": 3, "batch_size": 64, "lr": 0.02}


def main(directory: Path, options: dict[str, Any]) -> int:
    torch.set_num_threads(1)
    world = World.of()
    # So short a training would else be over before the processes ask one another.
    resume._AGREE_SECONDS = options.get("agree_seconds", resume._AGREE_SECONDS)
    examples = Made(options.get("rows", 1003))
    seen = directory / f"seen-{os.getpid()}"
    cut, batches = options.get("cut", {}), examples.batches

    def note(number: int, batch: Any) -> None:
        if number == cut.get(str(world.rank)):
            cut.pop(str(world.rank))
            if cut["how"] == "poisoned":
                batch["dense"][0, 0] = float("inf")
            else:
                end_as(cut["how"])
        with seen.open("ab") as file:
            file.write(batch["dense"][:, 0].tobytes())

    def noting(split: Any, *args: Any, **more: Any) -> Any:
        for number, batch in enumerate(batches(split, *args, **more)):
            if split == "train":
                note(number, batch)
            yield batch

    take, taken = examples.take, itertools.count()

    def drawing(split: Any, rows: Any) -> Any:
        batch = take(split, rows)
        note(next(taken), batch)
        return batch

    examples.batches, examples.take = noting, drawing
    model = MLP(hidden=(16,), dim=4, **options.get("model", {}))
    given = {**OPTIONS, "wait_seconds": 90, **options.get("strategy", {})}
    if "compression" in options:
        given["compression"] = getattr(train, options["compression"])()
    if "privacy" in options:
        given["privacy"] = Private(**options["privacy"])
    if "quantize" in options:
        given["quantize"] = QuantizationAware(**options["quantize"])
    strategy = getattr(train, options.get("kind", "AllReduce"))(**given)
    figures: dict[str, float] = {}

    def hear(item: Any) -> None:
        if isinstance(item, Metric):
            figures[item.name] = item.value

    run = Run(directory=directory / "run", emit=hear, world=world)
    try:
        fitted = strategy.fit(build(model, examples.features, seed=1), examples, run)
    except ArithmeticError as error:
        (directory / f"broken-{world.rank}").write_text(str(error))
        return 2
    except (ConnectionError, InterruptedError) as error:
        (directory / f"lost-{world.rank}").write_text(str(error))
        os._exit(LOST)  # as the command line does: a thread of a lost group aborts at the exit
    if isinstance(fitted, Reduced):
        fitted = fitted.model
    weights = {name: tensor.contiguous() for name, tensor in fitted.state_dict().items()}
    save_file(weights, directory / f"weights-{world.rank}.safetensors")
    (directory / f"figures-{world.rank}.json").write_text(json.dumps(figures))
    return 0


def end_as(how: str) -> None:
    """End this process, or let it stand still, as a test wants it."""
    os.kill(os.getpid(), {"killed": 9, "asked": 15, "stopped": 19}[how])


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), json.loads(sys.argv[2])))
