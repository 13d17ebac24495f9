"""How the graph of a bundle gets into memory: by itself, or with weights that workers share."""

import ctypes
import logging
import sys

from drivetrain.core.bundle import GRAPH, Bundle
from drivetrain.core.graph import Session
from drivetrain.serve.weights import Weights

log = logging.getLogger("drivetrain.serve")


class Loader:
    """Loads the graphs of bundles, each for runs of one thread.

    Args:
        weights: where several processes share what they load; None in a process by itself.
    """

    def __init__(self, weights: Weights | None = None) -> None:
        self._weights = weights

    def session(self, bundle: Bundle) -> Session:
        """Load the graph of a verified bundle.

        Raises:
            OSError: it cannot be read.
            ValueError: it was changed since the bundle was verified.
        """
        try:
            return self._session(bundle)
        finally:
            _give_back()

    def _session(self, bundle: Bundle) -> Session:
        weights, graph = self._weights, bundle.manifest.files[GRAPH]
        if weights is not None and graph["bytes"] >= weights.least:
            try:
                return weights.session(graph["sha256"], lambda: bundle.read(GRAPH))
            except (ValueError, ImportError):
                raise
            except Exception as error:  # a full disk, or what ONNX Runtime cannot write
                log.warning("%s keeps its weights to itself: %s", bundle.path, error)
        return Session(bundle.read(GRAPH), threads=1)


def _give_back() -> None:
    """Return what loading took for a while; glibc would keep it, as much as the weights again."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none, and need not
        if trim is not None:
            trim(0)
