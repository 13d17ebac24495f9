"""The strategy of several processes that hold the whole model each and share its gradients."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from drivetrain.core.errors import wrong
from drivetrain.train.compression import Compression
from drivetrain.train.several import Several

if TYPE_CHECKING:
    from torch import nn

    from drivetrain.train.loop.step import Exchange
    from drivetrain.train.together.group import Group


@dataclass(frozen=True, kw_only=True)
class AllReduce(Several):
    """Trains in as many processes as the site's ``[resources]`` say, on equal weights.

    Gradients are weighted by rows and summed, also where the last batch divides unevenly. A
    training goes on from a checkpoint with any number of processes, from the very next row; with
    the same number it ends with the same bits.

    Attributes:
        compression: makes gradients smaller before they travel, for slow networks; None sends them
            as they are.
        bucket_mb: megabytes of gradients that are sent at once, while backward goes on.
    """

    can_be_private: ClassVar[bool] = True

    compression: Compression | None = None
    bucket_mb: float = field(default=25.0, metadata={"declared": False})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.bucket_mb > 0:
            raise wrong("AllReduce.bucket_mb", self.bucket_mb, "a number above 0")

    def _exchange(self, model: "nn.Module", group: "Group") -> "Exchange | None":
        from drivetrain.train.together.buckets import Buckets
        from drivetrain.train.together.compressed import Compressed

        if group.size == 1:
            return None
        if self.compression is not None:
            return Compressed(model, group, self.compression.compressor())
        return Buckets(model, group, int(self.bucket_mb * (1 << 20)))
