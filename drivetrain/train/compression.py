"""How gradients are made smaller before they travel: the declarations."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from drivetrain.core.errors import wrong

if TYPE_CHECKING:
    from drivetrain.train.together.compressors import Compressor


class Compression(Protocol):
    """Says how updates are compressed; what it lets through and what it keeps is a compressor's."""

    def compressor(self) -> "Compressor":
        """A new one, for one training."""
        ...


@dataclass(frozen=True)
class FP16:
    """Half the bytes: what travels has 11 significant bits, the rest is owed to the next update."""

    def compressor(self) -> "Compressor":
        """A new one, for one training."""
        from drivetrain.train.together.compressors import Halves

        return Halves()


@dataclass(frozen=True)
class Int8:
    """A quarter of the bytes, or less with few processes: each tensor in 255 steps of its largest
    value. Every process gets what every other sent, so bytes grow with their number."""

    def compressor(self) -> "Compressor":
        """A new one, for one training."""
        from drivetrain.train.together.compressors import Steps

        return Steps()


@dataclass(frozen=True)
class TopK:
    """Only the largest values of each tensor travel, with their places.

    Every process gets what every other sent, so bytes grow with their number.

    Source: Stich et al., Sparsified SGD with Memory, 2018, https://arxiv.org/abs/1809.07599

    Attributes:
        share: of the values, above 0 to 1.
    """

    share: float = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise wrong("TopK.share", self.share, "above 0 to 1")

    def compressor(self) -> "Compressor":
        """A new one, for one training."""
        from drivetrain.train.together.compressors import Largest

        return Largest(self.share)


@dataclass(frozen=True)
class PowerSGD:
    """Matrices travel as the product of two thin ones; vectors as they are.

    Source: Vogels et al., PowerSGD, 2019, https://arxiv.org/abs/1905.13727

    Attributes:
        rank: of the approximation: columns of the thin matrices.
    """

    rank: int = 8

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise wrong("PowerSGD.rank", self.rank, "1 or more")

    def compressor(self) -> "Compressor":
        """A new one, for one training."""
        from drivetrain.train.together.compressors import LowRank

        return LowRank(self.rank)
