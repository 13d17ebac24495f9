"""How requests share runs of a graph, and what may wait for one."""

from dataclasses import dataclass

from drivetrain.core.cores import cores

_FULL_SECONDS = 750e-6
"""Beside others who want its core, a run takes longer than it should and soon exceeds this: then
two threads are better off than one that the scheduler takes for greedy."""


@dataclass(frozen=True, kw_only=True)
class Batching:
    """How requests share runs of the graph.

    Attributes:
        rows: a run takes further requests up to this many rows.
        request_rows: rows of one request.
        queue_rows: rows that may wait for a run; a request that finds more is sent away.
        queue_bytes: what the requests of all models that wait or run may hold together, by an
            estimate from above; one that finds none is always taken.
        queue_seconds: what the rows that wait may take by what was measured, where more than
            ``queue_requests`` wait.
        queue_requests: those that may wait whatever they take.
        inline_seconds: a run that is expected to take less happens on the loop's own thread. A
            hand-over to another costs about as much as 300 µs would hide where a core is free for
            it, and where none is it hides nothing (:meth:`of`). What decodes images is always
            handed over.
        threads: for the runs that take longer, all models together.
        runs: of one version at once, where what waits takes long and as long together as apart.
    """

    rows: int = 256
    request_rows: int = 8192
    queue_rows: int = 1 << 17
    queue_bytes: int = 256 << 20
    queue_seconds: float = 0.25
    queue_requests: int = 64
    inline_seconds: float = 300e-6
    threads: int = 2
    runs: int = 1

    @classmethod
    def of(cls, workers: int) -> "Batching":
        """What suits so many processes on this machine's cores.

        One process alone may use two cores for one version; of several each has its own. Where
        each has one and no more, a thread only takes turns with the loop that handed over, and
        longer runs stay on the loop's thread.
        """
        spare = cores() > workers
        runs = min(cores(), cls.threads) if workers == 1 else 1
        return cls(runs=runs) if spare else cls(runs=runs, inline_seconds=_FULL_SECONDS)

    @property
    def most_rows(self) -> int:
        """Of one request."""
        return min(self.request_rows, self.queue_rows)
