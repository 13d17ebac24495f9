"""The processes that train one model together: their sums, and what ends a wait in vain."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from drivetrain.core.seams import Run, Shard
from drivetrain.core.world import World
from drivetrain.train.together.traffic import Traffic

_left: list[object] = []
"""The group that this process lost the others of, and has not let go."""


class Group(Protocol):
    """Processes that go through the same batches in step.

    Attributes:
        rank: of this process, from 0.
        size: how many there are.
        shard: which part of each batch is this process's.
        stream: of random numbers: processes of one number draw the same.
        traffic: what this process sent to the others.
        channel: what carries their messages; None for what all processes of the job met by.
        names: of this process and of the others, for errors.
    """

    rank: int
    size: int
    shard: Shard
    stream: int
    traffic: Traffic
    channel: dist.ProcessGroup | None
    names: tuple[str, str]

    def sum(self, values: Tensor) -> Tensor:
        """The sum of the tensors that all give, in place; they have one shape and type.

        Raises:
            ConnectionError: another process has gone, or did not come within the time-out.
        """
        ...

    def gather(self, values: Tensor) -> list[Tensor]:
        """The tensors that all give, by rank; they have one shape and type.

        Raises:
            ConnectionError: as :meth:`sum`.
        """
        ...


class Alone:
    """A process by itself."""

    rank = 0
    size = 1
    stream = 0

    def __init__(self) -> None:
        self.channel: dist.ProcessGroup | None = None
        self.names: tuple[str, str] = "rank 0 of 1", "nobody"
        self.shard = Shard()
        self.traffic = Traffic()

    def sum(self, values: Tensor) -> Tensor:
        """What was given."""
        return values

    def gather(self, values: Tensor) -> list[Tensor]:
        """What was given."""
        return [values]


class Processes:
    """The processes of a job, over torch.distributed.

    Args:
        world: this one's place among them.
        channel: what carries their messages; None for what they met by.
    """

    def __init__(self, world: World, channel: dist.ProcessGroup | None = None) -> None:
        self.rank = world.rank
        self.size = world.size
        self.shard = Shard(world.rank, world.size)
        self.stream = world.rank
        self.traffic = Traffic(world.size)
        self.channel = channel
        self.names: tuple[str, str] = f"rank {world.rank} of {world.size}", "the others"

    def sum(self, values: Tensor) -> Tensor:
        with naming(self):
            dist.all_reduce(values, group=self.channel)
        self.traffic.reduced(values)
        return values

    def gather(self, values: Tensor) -> list[Tensor]:
        found = [torch.empty_like(values) for _ in range(self.size)]
        with naming(self):
            dist.all_gather(found, values.contiguous(), group=self.channel)
        self.traffic.gathered(values)
        return found


@contextmanager
def naming(group: Group) -> Iterator[None]:
    """Say what a broken wait means: torch speaks of sockets; and count the time of it."""
    begin = time.perf_counter()
    try:
        yield
    except RuntimeError as error:  # what every back end raises, dist.DistBackendError included
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise _lost(group, error) from error
    finally:
        group.traffic.wait(time.perf_counter() - begin)


@contextmanager
def noticing(group: Group) -> Iterator[None]:
    """As :func:`naming` for a block that also computes: the model's own errors are left alone."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not isinstance(error, dist.DistError) and "/gloo/" not in text and "NCCL" not in text:
            raise
        raise _lost(group, error) from error


def _lost(group: Group, error: RuntimeError) -> ConnectionError:
    me, others = group.names
    who = "it" if others.startswith("rank ") else "one of them"
    return ConnectionError(
        f"{me} waited for {others} in vain: {who} has ended or stands still "
        f"({str(error).splitlines()[0][:300]})."
    )


def beside(group: Group, seconds: float) -> Group:
    """The same processes over a channel of its own, for another thread; tensors are on the CPU.

    Args:
        group: who meets; all call this at the same point.
        seconds: how long any wait for another process lasts at most.

    Raises:
        ConnectionError: not all came in time.
    """
    if group.size == 1:
        return group
    with naming(group):
        channel = dist.new_group(backend="gloo", timeout=timedelta(seconds=seconds))
    assert isinstance(channel, dist.ProcessGroup), "this process is one of them"
    return Processes(World(rank=group.rank, size=group.size), channel)


@contextmanager
def joined(run: Run, seconds: float) -> Iterator[Group]:
    """Meet the other processes of a run's world for as long as the block runs.

    Args:
        run: with its world and device.
        seconds: how long any wait for another process lasts at most.

    Raises:
        ConnectionError: not all came in time.
    """
    world = run.world
    if world.size == 1:
        yield Alone()
        return
    # Small sums and gathers happen on the CPU, wherever the gradients live.
    backend = "cpu:gloo,cuda:nccl" if run.device.startswith("cuda") else "gloo"
    bound = timedelta(seconds=seconds)
    if _left and dist.is_initialized() and dist.group.WORLD is _left.pop():
        dist.destroy_process_group()
    try:
        store = dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
            world.address, world.port, world.size, world.rank == 0, bound, wait_for_workers=False
        )
        # One of another generation, which was stopped and woke up, finds nobody here.
        name = f"{world.job}/{world.generation}"
        own = dist.PrefixStore(name, store)  # pyright: ignore[reportPrivateImportUsage]
        dist.init_process_group(
            backend, store=own, rank=world.rank, world_size=world.size, timeout=bound
        )
    except (RuntimeError, TimeoutError) as error:
        raise ConnectionError(
            f"rank {world.rank}: found fewer than {world.size} processes at "
            f"{world.address}:{world.port} within {seconds:g} s ({str(error).splitlines()[0]})."
        ) from error
    try:
        yield Processes(world)
    except ConnectionError:
        # To destroy the group is to wait for all that is under way, which may take as long again.
        # Who lost the others ends its process; one that does not lets go before it meets anew.
        _left[:] = [dist.group.WORLD]
        raise
    except BaseException:
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()
