"""The event loop of a serving process: uvloop's, where there is one."""

import asyncio
from types import ModuleType


def import_loop() -> ModuleType | None:
    """uvloop, or None on a platform that it does not know."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop


def new_loop() -> asyncio.AbstractEventLoop:
    """A loop of its kind, else asyncio's."""
    uvloop = import_loop()
    return asyncio.new_event_loop() if uvloop is None else uvloop.new_event_loop()
