"""What each served version has done, as V2's statistics extension counts it.

Source: https://github.com/triton-inference-server/server/blob/main/docs/protocol/
extension_statistics.md. Durations are nanoseconds, sums over requests.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

NAME = "statistics"
"""Under which processes tell each other their tallies."""

_PARTS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
_BATCH_PARTS = ("compute_input", "compute_infer", "compute_output")
_EXACT = 256
"""Runs of up to so many rows are told apart; longer ones by the power of two below them."""


class Tally:
    """What one version has done in one process.

    ``queue`` is a request's wait for its run; ``compute_input`` is the reading of its body and the
    joining of the batch, ``compute_infer`` the run, ``compute_output`` the writing of the answers.
    Each request of a batch counts the whole of the batch's durations, as Triton's do.

    Attributes:
        numbers_of: count and nanoseconds, in pairs, of each part.
        rows: rows that were predicted.
        runs: runs of the graph.
        last: when the last run ended, in milliseconds since 1970-01-01 UTC; 0 for never.
        batches: runs, and the nanoseconds of their three parts, by rows.
    """

    __slots__ = ("batches", "last", "parts", "rows", "runs")

    def __init__(self) -> None:
        self.parts = [0] * (2 * len(_PARTS))
        self.rows = self.runs = self.last = 0
        self.batches: dict[int, list[int]] = {}

    def failed(self, seconds: float) -> None:
        """Count a request that got an error, so long after it came."""
        self.parts[2] += 1
        self.parts[3] += int(seconds * 1e9)

    def ran(
        self,
        requests: int,
        rows: int,
        *,
        arrived: float,
        queued: float,
        begun: float,
        fed: float,
        inferred: float,
        ended: float,
    ) -> None:
        """Count the requests of a run that were answered.

        Args:
            requests: how many.
            rows: of the whole run.
            arrived: when they came, the sum of their ``time.monotonic()``.
            queued: when each began to wait, their sum.
            begun: when the run began; this and the rest are ``time.monotonic()``.
            fed: when its inputs were joined.
            inferred: when the graph had run.
            ended: when the answers were written.
        """
        join, infer, write = (
            int((fed - begun) * 1e9),
            int((inferred - fed) * 1e9),
            int((ended - inferred) * 1e9),
        )
        parts = self.parts
        parts[0] += requests
        parts[1] += int((requests * ended - arrived) * 1e9)
        parts[4] += requests
        parts[5] += int((requests * begun - queued) * 1e9)
        parts[6] += requests
        parts[7] += int((queued - arrived) * 1e9) + requests * join
        parts[8] += requests
        parts[9] += requests * infer
        parts[10] += requests
        parts[11] += requests * write
        self.rows += rows
        self.runs += 1
        self.last = int(time.time() * 1e3)
        size = rows if rows <= _EXACT else 1 << (rows.bit_length() - 1)
        batch = self.batches.get(size)
        if batch is None:
            self.batches[size] = batch = [0, 0, 0, 0]
        batch[0] += 1
        batch[1] += join
        batch[2] += infer
        batch[3] += write

    def numbers(self) -> Sequence[int]:
        """All of it as one row of numbers, for another process to :meth:`add`."""
        sizes = [n for size, batch in list(self.batches.items()) for n in (size, *batch)]
        return (*self.parts, self.rows, self.runs, self.last, *sizes)

    def add(self, numbers: Sequence[float]) -> None:
        """Add what another process has counted."""
        found = [int(number) for number in numbers]
        size = len(self.parts)
        self.parts = [a + b for a, b in zip(self.parts, found, strict=False)]
        rows, runs, last = found[size : size + 3]
        self.rows, self.runs, self.last = self.rows + rows, self.runs + runs, max(self.last, last)
        for at in range(size + 3, len(found), 5):
            batch = self.batches.setdefault(found[at], [0, 0, 0, 0])
            for place in range(4):
                batch[place] += found[at + 1 + place]

    def samples(self, name: str, labels: str, numbers: Sequence[float]) -> Sequence[str]:
        """Nothing: Prometheus has the same in histograms."""
        return ()

    def json(self, model: str, version: str) -> dict[str, Any]:
        """The statistics of a version, as the extension names them."""
        parts = self.parts
        shown = {name: _duration(*parts[2 * n : 2 * n + 2]) for n, name in enumerate(_PARTS)}
        return {
            "name": model,
            "version": version,
            "last_inference": self.last,
            "inference_count": self.rows,
            "execution_count": self.runs,
            "inference_stats": {
                **shown,
                "cache_hit": _duration(0, 0),
                "cache_miss": _duration(0, 0),
            },
            "batch_stats": [
                {
                    "batch_size": size,
                    **{
                        name: _duration(batch[0], batch[1 + n])
                        for n, name in enumerate(_BATCH_PARTS)
                    },
                }
                for size, batch in sorted(self.batches.items())
            ],
        }


def _duration(count: int, ns: int) -> dict[str, int]:
    return {"count": count, "ns": ns}


def model_statistics(
    versions: Sequence[tuple[str, str]],
    own: Mapping[tuple[str, ...], Sequence[float]],
    others: Sequence[Mapping[str, Sequence[tuple[Sequence[str], Sequence[float]]]]] = (),
) -> dict[str, Any]:
    """The answer to a request for statistics, summed over processes.

    Args:
        versions: the name and the version of each.
        own: the numbers of this process' tallies, by name and version.
        others: what the other processes have told.
    """
    found = {pair: Tally() for pair in versions}
    for figures in ({NAME: list(own.items())}, *others):
        for (model, version), numbers in figures.get(NAME, ()):
            tally = found.get((model, version))
            if tally is not None:
                tally.add(numbers)
    return {"model_stats": [tally.json(*pair) for pair, tally in found.items()]}
