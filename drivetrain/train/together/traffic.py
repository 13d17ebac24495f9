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

        within: of a larger group, where all of this counts as well.

    Attributes:
        sent: bytes by this process so far; of a broadcast the mean over all.
        waited: seconds that it stood in a collective.
    """

    size: int = 1
    sent: int = 0
    waited: float = 0.0
    within: "Traffic | None" = None

    def send(self, count: int) -> None:
        """So many bytes went to the others."""
        self.sent += count
        if self.within is not None:
            self.within.send(count)

    def wait(self, seconds: float) -> None:
        """So long this process stood in a collective."""
        self.waited += seconds
        if self.within is not None:
            self.within.wait(seconds)

    def reduced(self, values: Tensor) -> None:
        """A sum of such tensors: each part goes around once to be summed and once to be known."""
        self.send(2 * (self.size - 1) * values.nbytes // self.size)

    def gathered(self, values: Tensor) -> None:
        """Such a tensor of each process goes to all others."""
        self.send((self.size - 1) * values.nbytes)

    def broadcast(self, values: Tensor) -> None:
        """A tensor of one process goes to all others."""
        self.send((self.size - 1) * values.nbytes // self.size)
