"""A job as a value: what would run, and the resources that it asks for."""

from collections.abc import Mapping
from dataclasses import dataclass, field

LOST = 75
"""Exit status of a process that would go on if it was started anew: EX_TEMPFAIL of sysexits.

Another process of its job has ended, or it was asked to end and wrote a checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one job asks of a site.

    Attributes:
        nodes: machines.
        processes: processes on each machine.
        cpus: cores for each process; 0 leaves the choice to the site.
        gpus: accelerators for each process.
        memory: for each process, as Kubernetes writes it (``"32Gi"``); empty for no limit.
    """

    nodes: int = 1
    processes: int = 1
    cpus: int = 0
    gpus: int = 0
    memory: str = ""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A command with its environment and its resources; rendering one starts nothing."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    resources: Resources = Resources()
