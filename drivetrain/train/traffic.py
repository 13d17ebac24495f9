"""What a process sends to those that it trains with, and how long it waits for them."""

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Traffic:
    """Counts the collectives of a group, in the bytes that the best algorithms send.

    What a back end really sends may be more (headers, trees), and with shared memory nothing
    goes over a network at all.

    Source: Thakur, Rabenseifner and Gropp, Optimization of Collective Communication Operations in
    MPICH, IJHPCA 2005.

    Args:
        size: the number of processes.

    Attributes:
        sent: bytes by this process so far; of a broadcast the mean over all.
        waited: seconds that it stood in a collective.
    """

    size: int = 1
    sent: int = 0
    waited: float = 0.0

    def reduced(self, values: Tensor) -> None:
        """A sum of such tensors: each part goes around once to be summed and once to be known."""
        self.sent += 2 * (self.size - 1) * values.nbytes // self.size

    def gathered(self, values: Tensor) -> None:
        """Such a tensor of each process goes to all others."""
        self.sent += (self.size - 1) * values.nbytes

    def broadcast(self, values: Tensor) -> None:
        """A tensor of one process goes to all others."""
        self.sent += (self.size - 1) * values.nbytes // self.size
