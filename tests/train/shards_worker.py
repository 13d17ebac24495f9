"""One process of a sharded training that weighs what it holds: DIRECTORY OPTIONS (JSON)."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from conftest import Made  # beside this file, which Python puts on the path
from safetensors.torch import save_file

from drivetrain.core.seams import Run
from drivetrain.core.world import World
from drivetrain.models import MLP
from drivetrain.models.bind import build
from drivetrain.train import BinaryCrossEntropy, EarlyStopping, Sharded
from drivetrain.train.checkpoints.pieces import piece


class Weighed(Sharded):
    """Writes down the bytes of each kind that this process holds when the last update is done."""

    def _final_weights(self, step: Any, validate: Any) -> None:
        slots = step.optimizer.state_dict()["state"].values()
        held = {
            "weights": step.parameters,
            "average": step.average,
            "optimizer": [t for each in slots for name, t in each.items() if name != "step"],
        }
        sizes = {kind: sum(map(_bytes, tensors)) for kind, tensors in held.items()}
        (DIRECTORY / f"bytes-{World.of().rank}.json").write_text(json.dumps(sizes))
        super()._final_weights(step, validate)


def _bytes(tensor: torch.Tensor) -> int:
    return piece(tensor).tensor.untyped_storage().nbytes()


DIRECTORY = Path(sys.argv[1])
torch.set_num_threads(1)
options = json.loads(sys.argv[2])
stopping = EarlyStopping(patience=options.pop("patience"))
examples = Made(1003, validate=options.pop("validate"))
strategy = Weighed(
    loss=BinaryCrossEntropy("y"), early_stopping=stopping, wait_seconds=60, **options
)
world = World.of()
model = build(MLP(hidden=(16,), dim=4), examples.features, seed=1)
fitted = strategy.fit(model, examples, Run(directory=DIRECTORY / "run", world=world))
assert not fitted.training
weights = {name: tensor.contiguous() for name, tensor in fitted.state_dict().items()}
save_file(weights, DIRECTORY / f"weights-{world.rank}.safetensors")
