"""One process of a mesh that tells what it finds there: DIRECTORY."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor, Replicate, Shard

from drivetrain.core.seams import Run
from drivetrain.core.world import World
from drivetrain.train.checkpoints.pieces import clip, piece, writes
from drivetrain.train.together.group import Group, joined
from drivetrain.train.together.mesh import Mesh

SECONDS = 60.0


def place(group: Group) -> list[int]:
    return [group.rank, group.size]


def main(directory: Path) -> None:
    torch.set_num_threads(1)
    world = World.of()
    with joined(Run(directory=directory, world=world), 20) as group:
        told: dict[str, Any] = {}
        for ways in (1, 2, 4):
            mesh = Mesh(world, ways, SECONDS)
            own = torch.tensor([1.0 + world.rank])
            told[str(ways)] = {
                "whole": place(mesh),
                "data": place(mesh.data),
                "model": place(mesh.model),
                "shard": [mesh.shard.index, mesh.shard.count],
                "streams": [mesh.stream, Mesh(world, ways, SECONDS, alike=False).stream],
                "sums": [float(g.sum(own.clone())) for g in (mesh, mesh.data, mesh.model)],
                "gathered": torch.cat(mesh.data.gather(own)).tolist(),
            }
        mesh = Mesh(world, 2, SECONDS)
        told["pieces"] = pieces(mesh)
        before = mesh.traffic.sent
        mesh.data.sum(torch.zeros(100))
        told["sent"] = [mesh.traffic.sent - before, mesh.data.traffic.sent]
        (directory / f"told-{world.rank}.json").write_text(json.dumps(told))
        group.sum(torch.zeros(1))  # all have told before one goes away
        if world.rank == 3:
            return
        waited = []
        for part in (mesh.model, mesh.data):
            try:
                part.sum(torch.zeros(1))
            except ConnectionError as error:
                waited.append(str(error))
        (directory / f"lost-{world.rank}.json").write_text(json.dumps(waited))


def pieces(mesh: Mesh) -> dict[str, Any]:
    """What each process writes and how a norm counts it, of tensors that lie in several ways."""
    devices = mesh.devices("cpu")
    whole = torch.arange(32.0).view(8, 4)
    rows = whole.chunk(2)[mesh.model.rank]
    cut = DTensor.from_local(rows, devices["model"], [Shard(0)], run_check=False)
    copied = DTensor.from_local(whole, devices["model"], [Replicate()], run_check=False)
    ours = rows.chunk(2)[mesh.data.rank]
    both = DTensor.from_local(ours, devices, [Replicate(), Replicate()], run_check=False)
    parameters = [torch.zeros_like(t, requires_grad=True) for t in (cut, copied, whole)]
    for parameter, gradient in zip(parameters, (cut, copied, whole), strict=True):
        parameter.grad = gradient.clone()
    clip(parameters, 1.0, mesh)
    squares = [float(piece(p.grad).tensor.square().sum()) for p in parameters if p.grad is not None]
    return {
        "writes": [writes(t, mesh.rank) for t in (cut, copied, both, whole)],
        "offsets": list(piece(cut).offsets),
        "squares": squares,
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
