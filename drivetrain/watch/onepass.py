"""One pass over the rows for any number of probes: each batch is read once and scored once."""

from collections.abc import Iterable, Iterator, Sequence
from queue import Full, Queue
from threading import Event, Thread
from typing import cast

from drivetrain.core.batch import Batch
from drivetrain.core.bundle import Bundle
from drivetrain.core.metric import Metric
from drivetrain.core.seams import Probe
from drivetrain.watch.probes import Measurement, Shared


def run(bundle: Bundle, probes: Sequence[Probe], batches: Iterable[Batch]) -> list[Metric]:
    """The metrics of all probes, in their order and under the names that they give.

    Probes that share predictions see them in the caller's thread. Every other probe reads the
    same batches in a thread of its own, in step, so that no more than a few batches are held
    however many probes there are.
    """
    measurements = [probe.begin(bundle) if isinstance(probe, Shared) else None for probe in probes]
    shared = [m for m in measurements if m is not None]
    lanes = [
        None if m is not None else Lane(probe, bundle)
        for probe, m in zip(probes, measurements, strict=True)
    ]
    reading = [lane for lane in lanes if lane is not None]
    try:
        _show(bundle, shared, reading, batches)
    finally:
        for lane in reading:
            lane.close()
    found: list[Metric] = []
    for measurement, lane in zip(measurements, lanes, strict=True):
        found.extend(measurement.finish() if measurement else cast(Lane, lane).result())
    return found


def _show(
    bundle: Bundle, shared: Sequence[Measurement], lanes: Sequence["Lane"], batches: Iterable[Batch]
) -> None:
    outputs = list(dict.fromkeys(name for m in shared for name in m.outputs))
    for batch in batches:
        for lane in lanes:
            lane.put(batch)
        predictions = bundle.session.run(batch, outputs) if outputs and len(batch) else Batch({})
        for measurement in shared:
            if len(batch):
                measurement.add(batch, predictions)


class Lane:
    """A thread in which one probe reads the batches that are put in front of it."""

    def __init__(self, probe: Probe, bundle: Bundle) -> None:
        self._queue: Queue[Batch | None] = Queue(maxsize=2)
        self._ended = Event()
        self._metrics: Sequence[Metric] = ()
        self._error: BaseException | None = None
        name = f"probe {type(probe).__name__}"
        self._thread = Thread(target=self._measure, args=(probe, bundle), name=name, daemon=True)
        self._thread.start()

    def put(self, batch: Batch | None) -> None:
        """Wait until there is room for a batch, or until the probe wants no more."""
        while not self._ended.is_set():
            try:
                self._queue.put(batch, timeout=0.05)
            except Full:
                continue
            return

    def close(self) -> None:
        """Tell the probe that there are no more rows, and wait for its end."""
        self.put(None)
        self._thread.join()

    def result(self) -> Sequence[Metric]:
        """What the probe answered, or raises what it raised."""
        if self._error is not None:
            raise self._error
        return self._metrics

    def _measure(self, probe: Probe, bundle: Bundle) -> None:
        try:
            self._metrics = list(probe(bundle, self._batches()))
        except BaseException as error:  # raised again in the caller's thread
            self._error = error
        finally:
            self._ended.set()

    def _batches(self) -> Iterator[Batch]:
        while (batch := self._queue.get()) is not None:
            yield batch
