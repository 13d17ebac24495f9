"""How many processor cores this process may use."""

import os


def cores() -> int:
    """The cores that the scheduler lets this process run on, where it says so; else all."""
    if hasattr(os, "sched_getaffinity"):  # Linux alone has it
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
