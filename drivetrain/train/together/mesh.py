"""The processes of a job as copies of a model that several of them hold together."""

from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from drivetrain.core.errors import wrong
from drivetrain.core.seams import Shard
from drivetrain.core.world import World
from drivetrain.train.together.group import Alone, Group, Processes, naming
from drivetrain.train.together.traffic import Traffic

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

DATA = "data"
MODEL = "model"
"""The dimensions of the :meth:`Mesh.devices`."""


class Mesh(Processes):
    """All processes of a job; ``ways`` consecutive ranks hold one copy of the model together.

    Of 4 processes with ``ways=2``, ranks 0 and 1 hold one copy and ranks 2 and 3 another. Each
    copy takes its part of every batch: ranks 0 and 1 see the same rows.

    A mesh is itself the :class:`drivetrain.train.together.group.Group` of all: whatever is
    agreed upon (the end, a checkpoint, a figure of validation) is agreed upon by all, and a
    strategy's ``_together`` may give one where it would give a group. ``shard`` is that of the
    copy, and so the loop's rows are. Ranks next to one another are on one machine, where what a
    copy says to itself travels fast.

    Attributes:
        ways: how many processes hold a copy together.
        data: those with the same part of the model, one of each copy: they sum its gradients.
            ``data.rank`` is the number of the copy, ``data.size`` how many there are.
        model: those that hold this process's copy; ``model.rank`` says which part of it.

    Every wait in each of them ends after the ``seconds`` that were given, with an error that names
    the ranks that were waited for. Their bytes and seconds count in ``traffic`` too.

    Args:
        world: this process's place among all; they have met already.
        ways: how many hold a copy together; divides the number of processes.
        seconds: how long any wait for another process lasts at most.
        alike: whether the processes of a copy draw the same random numbers, as those must that
            compute the same activations; or each its own, as parts in a row may.

    Raises:
        ConnectionError: not all made the mesh in time.
    """

    def __init__(self, world: World, ways: int, seconds: float, *, alike: bool = True) -> None:
        super().__init__(world)
        assert ways >= 1
        assert world.size % ways == 0, "checked by whoever declares the ways"
        self.ways = ways
        ranks = torch.arange(world.size).view(-1, ways)
        # All processes make all groups in one order: that is how they find one another.
        with naming(self):
            self._copies = _made(ranks.T.tolist(), world.rank, seconds)
            self._parts = _made(ranks.tolist(), world.rank, seconds)
        self.data = self._group(self._copies, ranks[:, world.rank % ways].tolist())
        self.model = self._group(self._parts, ranks[world.rank // ways].tolist())
        self.shard = Shard(self.data.rank, self.data.size)
        self.stream = self.data.rank if alike else world.rank

    def _group(self, channel: dist.ProcessGroup, ranks: list[int]) -> Group:
        if len(ranks) == 1:
            return Alone()
        group = Processes(World(rank=ranks.index(self.rank), size=len(ranks)), channel)
        others = [str(rank) for rank in ranks if rank != self.rank]
        group.names = self.names[0], f"rank{'s'[: len(others) > 1]} {', '.join(others)}"
        group.traffic = Traffic(len(ranks), within=self.traffic)
        return group

    def devices(self, device: str) -> "DeviceMesh":
        """This mesh as one of torch's, of the dimensions :data:`DATA` and :data:`MODEL`.

        Its groups are those of this mesh: the waits in them are bounded too.

        Args:
            device: where tensors live, such as ``cpu`` or ``cuda:0``.
        """
        from torch.distributed.device_mesh import DeviceMesh

        return DeviceMesh.from_group(
            [self._copies, self._parts],
            torch.device(device).type,
            mesh=torch.arange(self.size).view(-1, self.ways),
            mesh_dim_names=(DATA, MODEL),
        )


def check_ways(where: str, ways: int, size: int) -> None:
    """Refuse a number of processes that cannot hold whole copies.

    One process is always allowed: it holds all parts by itself, so that a declared system also
    runs where there is nothing to share.

    Args:
        where: names the option, such as ``TensorParallel.ways``.
        ways: how many processes hold a copy together.
        size: how many processes there are.

    Raises:
        ValueError: ``size`` is no multiple of ``ways``.
    """
    if size > 1 and size % ways:
        several = f"a multiple of {ways}, which {where} is ({ways}, {2 * ways}, ...), or 1"
        raise wrong(f"{where.split('.')[0]}: processes of the site", size, several)


def _made(groups: list[list[int]], rank: int, seconds: float) -> dist.ProcessGroup:
    """Make a channel for each of ``groups``; the one that ``rank`` is in."""
    mine: dist.ProcessGroup | None = None
    for ranks in groups:
        channel = dist.new_group(ranks, timeout=timedelta(seconds=seconds))
        if rank in ranks:
            assert isinstance(channel, dist.ProcessGroup), "this process is one of them"
            mine = channel
    assert mine is not None, "each process is in one of them"
    return mine
