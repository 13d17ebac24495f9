"""What workers share of their graphs, made while the server is still put together."""

import ctypes
import logging
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from drivetrain.serve.execution.weights import Weights

log = logging.getLogger("drivetrain.serve")

_PR_SET_PDEATHSIG = 1


class Ahead:
    """A process that does what the first worker would have to, and then ends.

    To optimise a graph and to write its weights takes as long as to import a server, and so the
    two are done side by side. Nobody depends on it: what is not made when a worker looks for it
    the worker waits for, or makes; and what is wrong with a bundle the worker finds too, and tells.

    Args:
        weights: where it puts what it makes.
        make: loads what workers will load; forked before anything has started a thread.

    Attributes:
        weights: where workers find it.

    Raises:
        OSError: there cannot be another process.
    """

    def __init__(self, weights: Weights, make: Callable[[], object]) -> None:
        self.weights = weights
        parent = os.getpid()
        self._pid = os.fork()
        if not self._pid:
            _become(parent, make)

    def end(self) -> None:
        """End it, whatever it is at: a lock or a file of it is in nobody's way."""
        if self._pid:
            # Where SIGCHLD is ignored since before this process the kernel has waited for it.
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(self._pid, signal.SIGKILL)
                os.waitpid(self._pid, 0)
            self._pid = 0


def _become(parent: int, make: Callable[[], object]) -> NoReturn:
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == parent:
            make()
    except Exception as error:
        log.debug("nothing is made ahead: %s", error)
    finally:
        os._exit(0)
