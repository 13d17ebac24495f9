"""What the strategies of several processes have in common: how they meet and share the rows."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from drivetrain.core.errors import wrong
from drivetrain.core.seams import Examples, Run
from drivetrain.train.single import Single

if TYPE_CHECKING:
    from drivetrain.train.together.group import Group


@dataclass(frozen=True, kw_only=True)
class Several(Single):
    """Trains in as many processes as the site's ``[resources]`` say.

    The processes share each batch: ``batch_size`` is the rows of all of them, so an update takes
    the same rows whatever their number, and how many there are is the site's matter alone.

    Attributes:
        wait_seconds: how long a process waits for another at most; one that has ended is noticed
            at once, this bounds the wait for one that stands still.
    """

    distributed: ClassVar[bool] = True

    wait_seconds: float = field(default=60.0, metadata={"declared": False})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.wait_seconds > 0:
            where = f"{type(self).__name__}.wait_seconds"
            raise wrong(where, self.wait_seconds, "a number above 0")

    @contextmanager
    def _together(self, source: Examples, run: Run) -> "Generator[Group]":
        from drivetrain.train.together.group import joined

        name, size = type(self).__name__, run.world.size
        if size > 1 and source.rows("train") is None:
            raise ValueError(
                f"{name}: found {size} processes and events that nobody can count, allowed: "
                "rows in files, which processes can share."
            )
        if size > self.batch_size:
            raise wrong(f"{name}.batch_size", self.batch_size, f"{size}, a row for each process")
        with joined(run, self.wait_seconds) as group:
            yield group
