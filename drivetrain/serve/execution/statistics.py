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
_BATCH_PARTS = _PARTS[3:]
_EXACT = 256
"""Runs of up to so many rows are told apart; longer ones by the power of two below them."""


class Tally:
    """What one version has done in one process, in seconds and in plain numbers.

    ``queue`` is a request's wait for its run; ``compute_input`` is the reading of its body and the
    joining of the batch, ``compute_infer`` the run, ``compute_output`` the writing of the answers.
    Each request of a batch counts the whole of the batch's durations, as Triton's do.

    Attributes:
        answered: requests.
        rows: of those.
        fails: requests that got an error.
        last: when the last run ended, in seconds of ``time.monotonic()``; 0 for never.
        seconds: of failed requests, of waiting, of reading bodies.
        more: what the requests beside the first of each run add to the three parts of runs.
        batches: by rows, how many runs, and the seconds of their three parts.
    """

    __slots__ = ("answered", "batches", "fails", "last", "more", "rows", "seconds")

    def __init__(self) -> None:
        self.answered = self.fails = self.rows = 0
        self.last = 0.0
        self.seconds = [0.0, 0.0, 0.0]
        self.more = [0.0, 0.0, 0.0]
        self.batches: dict[int, list[float]] = {}

    def failed(self, seconds: float) -> None:
        """Count a request that got an error, so long after it came."""
        self.fails += 1
        self.seconds[0] += seconds

    def ran(
        self,
        requests: int,
        rows: int,
        arrived: float,
        queued: float,
        begun: float,
        fed: float,
        inferred: float,
        ended: float,
    ) -> None:
        """Count the requests of a run that were answered: in every run, so it is kept short.

        Args:
            requests: how many.
            rows: theirs.
            arrived: when they came, the sum of their ``time.monotonic()``.
            queued: when each began to wait, their sum.
            begun: when the run began; this and the rest are ``time.monotonic()``.
            fed: when its inputs were joined.
            inferred: when the graph had run.
            ended: when the answers were written.
        """
        join, infer, write = fed - begun, inferred - fed, ended - inferred
        self.answered += requests
        self.rows += rows
        seconds = self.seconds
        seconds[1] += requests * begun - queued
        seconds[2] += queued - arrived
        if requests > 1:
            more = self.more
            more[0] += (requests - 1) * join
            more[1] += (requests - 1) * infer
            more[2] += (requests - 1) * write
        self.last = max(self.last, ended)  # threads may end in another order
        try:
            batch = self.batches[rows]
        except KeyError:
            size = rows if rows <= _EXACT else 1 << (rows.bit_length() - 1)
            batch = self.batches.setdefault(size, [0, 0.0, 0.0, 0.0])
        batch[0] += 1
        batch[1] += join
        batch[2] += infer
        batch[3] += write

    def numbers(self) -> Sequence[float]:
        """All of it as one row of numbers, for another process to :meth:`add`."""
        sizes = [n for size, batch in list(self.batches.items()) for n in (size, *batch)]
        head = (self.answered, self.fails, self.rows, self.last)
        return (*head, *self.seconds, *self.more, *sizes)

    def add(self, numbers: Sequence[float]) -> None:
        """Add what another process has counted."""
        answered, fails, rows, last = numbers[:4]
        self.answered += int(answered)
        self.fails += int(fails)
        self.rows += int(rows)
        self.last = max(self.last, last)
        for place in range(3):
            self.seconds[place] += numbers[4 + place]
            self.more[place] += numbers[7 + place]
        for at in range(10, len(numbers), 5):
            batch = self.batches.setdefault(int(numbers[at]), [0, 0.0, 0.0, 0.0])
            for place in range(4):
                batch[place] += numbers[at + 1 + place]

    def samples(self, name: str, labels: str, numbers: Sequence[float]) -> Sequence[str]:
        """Nothing: Prometheus has the same in histograms."""
        return ()

    def json(self, model: str, version: str) -> dict[str, Any]:
        """The statistics of a version, as the extension names them."""
        good, (failing, waiting, reading) = self.answered, self.seconds
        join, infer, write = (
            self.more[place] + sum(batch[1 + place] for batch in self.batches.values())
            for place in range(3)
        )
        # A request's parts lie end to end, so what it took is their sum.
        success = waiting + reading + join + infer + write
        parts = (
            *((good, success), (self.fails, failing), (good, waiting)),
            *((good, reading + join), (good, infer), (good, write)),
        )
        ago = time.monotonic() - self.last
        return {
            "name": model,
            "version": version,
            "last_inference": int((time.time() - ago) * 1e3) if self.last else 0,
            "inference_count": self.rows,
            "execution_count": int(sum(batch[0] for batch in self.batches.values())),
            "inference_stats": {
                **{name: _duration(*part) for name, part in zip(_PARTS, parts, strict=True)},
                "cache_hit": _duration(0, 0.0),
                "cache_miss": _duration(0, 0.0),
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


def _duration(count: float, seconds: float) -> dict[str, int]:
    return {"count": int(count), "ns": int(seconds * 1e9)}


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
