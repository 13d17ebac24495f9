"""One process of two towers that several train together: DIRECTORY."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from tastes import Tastes  # beside this file, which Python puts on the path

from drivetrain.core.metric import Metric
from drivetrain.core.seams import Run
from drivetrain.core.world import World
from drivetrain.train import AllReduce
from drivetrain.train.sampled_softmax import SampledSoftmax
from drivetrain.train.two_tower import TwoTower

DIRECTORY = Path(sys.argv[1])
torch.set_num_threads(1)
strategy = AllReduce(
    loss=SampledSoftmax(mixed=32), epochs=4, batch_size=128, lr=0.03, wait_seconds=90
)
method = TwoTower(target="item", user="who", k=10, dim=8, seen="keep", train=strategy)
world = World.of()
told: Any = []
graph: Any = method.fit(None, Tastes(), Run(directory=DIRECTORY, emit=told.append, world=world))  # type: ignore[arg-type]
graph.save(DIRECTORY / f"{world.rank}.onnx")
(DIRECTORY / f"{world.rank}.json").write_text(json.dumps(graph.digest))
leads = any(isinstance(item, Metric) and item.name == "train/loss" for item in told)
assert leads == world.leads
