"""How the graph of a bundle gets into memory: where it runs, and whose memory it is."""

import ctypes
import logging
import sys
from collections.abc import Callable

from drivetrain.core import placement
from drivetrain.core.bundle import GRAPH, Bundle
from drivetrain.core.errors import wrong
from drivetrain.core.graph import Session
from drivetrain.serve.execution.weights import Weights

log = logging.getLogger("drivetrain.serve")

Verify = Callable[[Bundle], object]
"""Raises ``ValueError`` for a bundle that nobody who is trusted has signed."""


class Loader:
    """Loads the graphs of bundles, each for runs of one thread.

    Args:
        weights: where several processes share what they load; None in a process by itself.
        place: where graphs run, as :mod:`drivetrain.core.placement` names it. ``auto`` measures
            what is installed, once for each bundle, and all workers go by what the first found.
        parity: how far answers may be from the plain CPU's, 0 for the placement's own limit.
        verify: given each bundle, whose bytes are verified, before it is loaded; raises
            ``ValueError`` if it is not vouched for.

    Raises:
        ValueError: there is no such placement, or ``parity`` is negative.
    """

    def __init__(
        self,
        weights: Weights | None = None,
        place: str = placement.CPU,
        parity: float = 0.0,
        verify: Verify | None = None,
    ) -> None:
        self._weights = weights
        self._verify = verify
        self._place = placement.checked(place)
        if not parity >= 0.0:
            raise wrong("parity", parity, "0 or more")
        self._parity = parity

    def session(self, bundle: Bundle) -> Session:
        """Load the graph of a verified bundle.

        Raises:
            ImportError: what the placement needs is not installed.
            OSError: the bundle cannot be read.
            ValueError: it was changed since it was verified; or the placement that was asked for
                is not available here, did not take the graph or gives other answers; or it is
                not vouched for.
        """
        if self._verify is not None:
            self._verify(bundle)
        try:
            place = self._place
            if place == placement.AUTO:
                place = self._decided(bundle)
            if place == placement.CPU:
                return self._plain(bundle)
            return placement.load_checked(place, bundle, self._parity)
        finally:
            give_back()

    def prepare(self, bundle: Bundle) -> None:
        """Make what processes share of the graph of a verified bundle, if there is anything.

        Raises:
            Exception: as :meth:`session`.
        """
        if self._place == placement.AUTO or (self._place == placement.CPU and self._shares(bundle)):
            self.session(bundle)

    def _shares(self, bundle: Bundle) -> bool:
        weights = self._weights
        return weights is not None and bundle.manifest.files[GRAPH]["bytes"] >= weights.least

    def _decided(self, bundle: Bundle) -> str:
        """What ``auto`` means for this bundle."""

        def decide() -> str:
            choice = placement.choose(bundle, self._parity)
            log.info("placement of version %s: %s", bundle.digest[:12], choice)
            return choice.placement

        if self._weights is None:
            return decide()
        return self._weights.once(f"placement-{bundle.digest}", decide)

    def _plain(self, bundle: Bundle) -> Session:
        weights, graph = self._weights, bundle.manifest.files[GRAPH]
        if weights is not None and self._shares(bundle):
            try:
                return weights.session(graph["sha256"], lambda: bundle.read(GRAPH))
            except (ValueError, ImportError):
                raise
            except Exception as error:  # a full disk, or what ONNX Runtime cannot write
                log.warning("%s keeps its weights to itself: %s", bundle.path, error)
        return Session(bundle.read(GRAPH), threads=1)


def give_back() -> None:
    """Return what loading took for a while; glibc would keep it, as much as the weights again."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none, and need not
        if trim is not None:
            trim(0)
