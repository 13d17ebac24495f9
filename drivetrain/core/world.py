"""The place of this process among those that run one job together."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from drivetrain.core.errors import wrong


@dataclass(frozen=True, kw_only=True)
class World:
    """Which of a job's processes this is, and where they meet.

    Attributes:
        rank: from 0; the process with rank 0 leads.
        size: how many processes there are.
        local_rank: the rank among those on this machine.
        address: host of the one that all connect to first.
        port: and its port.
        job: tells the jobs of agents apart; empty for any other.
        generation: how often the processes of such a job have been started anew.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    address: str = "127.0.0.1"
    port: int = 0
    job: str = ""
    generation: int = 0

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> "World":
        """The world that a launcher describes in ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``,
        ``MASTER_ADDR`` and ``MASTER_PORT``, as torch names them, and in ``DRIVETRAIN_JOB`` and
        ``DRIVETRAIN_GENERATION``; this process alone without them.

        Raises:
            ValueError: one of them is no number, or the rank is not below the size.
        """
        if "WORLD_SIZE" not in environment:
            return cls()

        def number(name: str) -> int:
            text = environment.get(name, "0")
            if not text.isascii() or not text.isdigit():
                raise wrong(name, text, "a number of 0 or more")
            return int(text)

        size, rank = number("WORLD_SIZE"), number("RANK")
        if not 0 <= rank < size:
            raise wrong("RANK", rank, f"0 to below WORLD_SIZE, which is {size}")
        return cls(
            rank=rank,
            size=size,
            local_rank=number("LOCAL_RANK"),
            address=environment.get("MASTER_ADDR", "127.0.0.1"),
            port=number("MASTER_PORT"),
            job=environment.get("DRIVETRAIN_JOB", ""),
            generation=number("DRIVETRAIN_GENERATION"),
        )

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes what is written once."""
        return self.rank == 0
