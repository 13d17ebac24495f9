"""How many connections a process can have: as its limits say, if so many files may be open."""

import logging
import resource
from contextlib import suppress
from dataclasses import replace

from drivetrain.serve.transport.http import HttpLimits

log = logging.getLogger("drivetrain.serve")

_BESIDE = 64
"""For what is no connection: listeners, logs, the files of bundles and of feedback."""


def room_for(limits: HttpLimits) -> HttpLimits:
    """The limits that this process can keep to, after it has been given what files they need.

    Many systems let a process open 1,024 files unless it asks for more. Where they run out a
    client is closed without a word, no idle one makes way for it, and no new version is read.
    Connections count twice: those beyond the limit are told so.
    """
    needed = 2 * limits.connections + _BESIDE
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _fewer(files, needed):
        wanted = most if _fewer(most, needed) else needed
        with suppress(OSError, ValueError):  # a system may have a bound that it does not tell
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
            files = wanted
    if not _fewer(files, needed):
        return limits
    found = max((files - _BESIDE) // 2, 1)
    message = "connections: %d at once instead of %d, as no more than %d files may be open"
    log.warning(message, found, limits.connections, files)
    return replace(limits, connections=found)


def _fewer(files: int, needed: int) -> bool:
    return files != resource.RLIM_INFINITY and files < needed
