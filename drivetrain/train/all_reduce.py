"""The strategy of several processes that hold the whole model each and share its gradients."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from drivetrain.core.errors import wrong
from drivetrain.core.seams import Examples, Run
from drivetrain.train.compression import Compression
from drivetrain.train.single import Single

if TYPE_CHECKING:
    from torch import nn

    from drivetrain.train.group import Group
    from drivetrain.train.step import Exchange


@dataclass(frozen=True, kw_only=True)
class AllReduce(Single):
    """Trains in as many processes as the site's ``[resources]`` say, on equal weights.

    The processes share each batch: ``batch_size`` is the rows of all of them, so an update takes
    the same rows whatever their number, and how many there are is the site's matter alone.
    Gradients are weighted by rows and summed, also where the last batch divides unevenly. A
    training goes on from a checkpoint with any number of processes, from the very next row; with
    the same number it ends with the same bits.

    Attributes:
        compression: makes gradients smaller before they travel, for slow networks; None sends them
            as they are.
        wait_seconds: how long a process waits for another at most; one that has ended is noticed
            at once, this bounds the wait for one that stands still.
        bucket_mb: megabytes of gradients that are sent at once, while backward goes on.
    """

    distributed: ClassVar[bool] = True
    can_be_private: ClassVar[bool] = True

    compression: Compression | None = None
    wait_seconds: float = field(default=60.0, metadata={"declared": False})
    bucket_mb: float = field(default=25.0, metadata={"declared": False})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("wait_seconds", "bucket_mb"):
            if not getattr(self, name) > 0:
                raise wrong(f"AllReduce.{name}", getattr(self, name), "a number above 0")

    @contextmanager
    def _together(self, source: Examples, run: Run) -> "Generator[Group]":
        from drivetrain.train.group import joined

        size = run.world.size
        if size > 1 and source.rows("train") is None:
            raise ValueError(
                f"AllReduce: found {size} processes and events that nobody can count, allowed: "
                "rows in files, which processes can share."
            )
        if size > self.batch_size:
            raise wrong("AllReduce.batch_size", self.batch_size, f"{size}, a row for each process")
        with joined(run, self.wait_seconds) as group:
            yield group

    def _exchange(self, model: "nn.Module", group: "Group") -> "Exchange | None":
        from drivetrain.train.buckets import Buckets
        from drivetrain.train.compressed import Compressed

        if group.size == 1:
            return None
        if self.compression is not None:
            return Compressed(model, group, self.compression.compressor())
        return Buckets(model, group, int(self.bucket_mb * (1 << 20)))
