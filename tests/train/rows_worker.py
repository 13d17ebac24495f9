"""One process that trains tables on servers, started by the tests: DIRECTORY OPTIONS (JSON)."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from conftest import Made  # beside this file, which Python puts on the path
from safetensors.torch import save_file

from drivetrain.core.job import LOST
from drivetrain.core.seams import Run
from drivetrain.core.world import World
from drivetrain.models import DeepFM
from drivetrain.models.bind import build
from drivetrain.train import BinaryCrossEntropy, ParameterServer

OPTIONS = {
    "loss": BinaryCrossEntropy("y"),
    "epochs": 3,
    "batch_size": 64,
    "lr": 0.05,
    "optimizer": "adagrad",
    "row_optimizer": "adagrad",
    "at_least": 20,
    "wait_seconds": 90,
}


def main(directory: Path, options: dict[str, Any]) -> int:
    torch.set_num_threads(1)
    world = World.of()
    examples = Made(options.get("rows", 1003))
    seen = directory / f"seen-{os.getpid()}"
    cut, batches = options.get("cut", {}), examples.batches

    def noting(split: Any, *args: Any, **more: Any) -> Any:
        for number, batch in enumerate(batches(split, *args, **more)):
            if split == "train":
                if number == cut.get(str(world.rank)):
                    cut.pop(str(world.rank))
                    os.kill(os.getpid(), {"killed": 9, "stopped": 19}[cut["how"]])
                with seen.open("ab") as file:
                    file.write(batch["dense"][:, 0].tobytes())
            yield batch

    examples.batches = noting
    strategy = ParameterServer(**{**OPTIONS, **options.get("strategy", {})})
    make = strategy.build if options.get("unmade") else build
    model = make(DeepFM(hidden=(16,), dim=4), examples.features, seed=1)
    try:
        run = Run(directory=directory / "run", world=world)
        fitted = strategy.fit(model, examples, run)
    except ConnectionError as error:
        (directory / f"lost-{world.rank}").write_text(str(error))
        os._exit(LOST)  # as the command line does
    if world.leads:
        weights = {name: tensor.contiguous() for name, tensor in fitted.state_dict().items()}
        save_file(weights, directory / "weights.safetensors")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), json.loads(sys.argv[2])))
