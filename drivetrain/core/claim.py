"""Whose turn it is to write in a directory that generations of a job's processes share in turn."""

import fcntl
import json
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from drivetrain.core import durable
from drivetrain.core.world import World

_NAME = "generation.json"


@dataclass(frozen=True)
class Claim:
    """The right of one generation to write, until a later one has taken it.

    A process that was stopped for a while, with its machine, may wake up when the others have gone
    on without it. Before it writes it looks here. What it began to write before it was stopped is
    whole, and of an earlier step than what is newer.

    Attributes:
        directory: that all generations write in.
        job: what they are generations of; empty where there is only one, which needs no claim.
        generation: the later one has the greater number.
    """

    directory: Path
    job: str
    generation: int

    @classmethod
    def of(cls, directory: Path, world: World) -> "Claim":
        """The claim of a process."""
        return cls(directory, world.job, world.generation)

    def take(self) -> None:
        """Let the earlier generations, and other jobs, write no longer.

        Raises:
            ConnectionError: a later generation has taken it.
        """
        if not self.job:
            (self.directory / _NAME).unlink(missing_ok=True)
            return
        found = self._found()
        if found is not None and found[0] == self.job:
            self._yield_to(found)
        if found != (self.job, self.generation):
            text = json.dumps({"job": self.job, "generation": self.generation})
            durable.write(self.directory / _NAME, text.encode())

    def check(self) -> None:
        """Hold that it is still this one's turn.

        Raises:
            ConnectionError: it is not; names the later generation.
        """
        if not self.job:
            return
        found = self._found()
        if found is None or found[0] != self.job:
            raise ConnectionError(f"another job has taken over {self.directory}")
        self.take()  # an earlier one may have written its own over it at the same moment

    def succeeds(self) -> bool:
        """Whether an earlier generation of the same job had the directory before."""
        found = self._found()
        return bool(self.job) and found is not None and found[0] == self.job

    def _yield_to(self, found: tuple[str, int]) -> None:
        if found[1] > self.generation:
            raise ConnectionError(
                f"generation {self.generation} of this job has ended: generation {found[1]} has "
                f"taken over {self.directory}"
            )

    def _found(self) -> tuple[str, int] | None:
        with suppress(FileNotFoundError, ValueError, KeyError):
            held = json.loads((self.directory / _NAME).read_bytes())
            return str(held["job"]), int(held["generation"])
        return None


@contextmanager
def alone(directory: Path, world: World) -> Generator[None]:
    """Hold a training's directory: two runs of one training would overwrite each other's state.

    Raises:
        ConnectionError: a later generation of this job holds it.
        ValueError: another run does.
    """
    claim, path = Claim.of(directory, world), directory / "lock"
    with ExitStack() as stack:
        try:
            _lock(stack.enter_context(path.open("w")))
        except BlockingIOError:
            if not claim.succeeds():
                raise ValueError(
                    f"another run is training this very system in {directory}: wait for it, or "
                    "give this one another work directory."
                ) from None
            # Held by a process of a generation before, which stands still and may not write.
            path.unlink(missing_ok=True)
            _lock(stack.enter_context(path.open("w")))
        claim.take()
        yield


def _lock(file: IO[str]) -> None:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
