"""Which requests of an alias go to its canary."""

from collections.abc import Callable
from zlib import crc32

from drivetrain.serve.transport.exchange import Exchange

_GOLDEN = 0.6180339887498949


class Split:
    """Sends a share of the requests to a canary.

    A request that names itself in the header ``x-request-id`` goes by that name: asked again, it
    goes to the same version, on every worker. An ``id`` in its body is not read before the version
    is chosen, and does not count. The others are spread evenly, by the multiples of the golden
    ratio, so that any hundred of them hold the share almost exactly.

    Args:
        stable: answers the rest.
        canary: answers the share.
        share: 0 to 1.
    """

    __slots__ = ("_at", "_canary", "_share", "stable")

    def __init__(
        self,
        stable: Callable[[Exchange], object],
        canary: Callable[[Exchange], object],
        share: float,
    ) -> None:
        self.stable = stable
        self._canary = canary
        self._share = share
        self._at = 0.0

    def __call__(self, exchange: Exchange) -> None:
        """Hand a request on."""
        name = exchange.headers.get(b"x-request-id")
        if name is None:
            self._at = at = (self._at + _GOLDEN) % 1.0
        else:
            at = crc32(name) / 2**32
        (self._canary if at < self._share else self.stable)(exchange)
