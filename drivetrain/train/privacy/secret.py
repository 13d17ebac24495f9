"""The secret of a private training: which rows are in a batch, and the noise that hides them."""

import hashlib
import os
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drivetrain.core.batch import Array
from drivetrain.train.loop.loop import Loop
from drivetrain.train.together.group import Group

_BYTES = 32


class Secret:
    """Batches and noise as functions of a secret and the number of the update, nothing else.

    So an update that is repeated after a restart takes the same rows and the same noise, and no
    two updates share any, whatever the number of processes. The secret is drawn by the operating
    system, is the same in all processes, and lies in the checkpoints, which are the trainer's own;
    what a training leaves in the end does not hold it. The batches are as secret as the noise: who
    knows them knows in which updates a row was, and sampling then hides nothing.

    It is a :class:`drivetrain.train.loop.loop.Callback`, so that checkpoints keep it.

    Args:
        group: the processes that share it.
        seed: of a secret that can be guessed, for tests; None draws a true one.
    """

    def __init__(self, group: Group, seed: int | None = None) -> None:
        own = os.urandom(_BYTES) if seed is None else _hashed(b"test", str(seed).encode())
        given = own if group.rank == 0 else bytes(_BYTES)
        shared = group.sum(torch.tensor(list(given), dtype=torch.int64))
        self._bytes = bytes(shared.tolist())

    def rows(self, update: int, rows: int, probability: float) -> Array:
        """The rows of a batch, ascending: each of ``rows`` by itself with a ``probability``.

        How many that are is binomial, and given their number all sets are equally likely: so it
        takes no draw for each row that there is.
        """
        generator = self._generator(b"rows", update)
        number = int(generator.binomial(rows, probability))
        return np.sort(generator.choice(rows, number, replace=False, shuffle=False))

    def noise(self, update: int, numbers: int) -> Tensor:
        """So many independent standard normal numbers, float32."""
        drawn = self._generator(b"noise", update).standard_normal(numbers, np.float32)
        return torch.from_numpy(drawn)

    def _generator(self, what: bytes, update: int) -> np.random.Generator:
        # All 256 bits go in: torch's own generator on the CPU takes 32, which can be tried out.
        seed = int.from_bytes(_hashed(self._bytes, what, update.to_bytes(8, "little")), "little")
        return np.random.Generator(np.random.SFC64(np.random.SeedSequence(seed, pool_size=8)))

    def after_update(self, loop: Loop) -> None:
        """Nothing."""

    def after_epoch(self, loop: Loop) -> None:
        """Nothing."""

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """The secret itself."""
        return {"secret": self._bytes.hex()}, {}

    def load(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Go back to what :meth:`state` gave."""
        self._bytes = bytes.fromhex(state["secret"])


def _hashed(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(len(p).to_bytes(8, "little") + p for p in parts)).digest()
