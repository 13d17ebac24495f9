"""A listener that writes on its own thread: it never holds a run up, and says what it dropped."""

import threading
import time
from collections.abc import Sequence

from drivetrain.core.metric import Metric, Note
from drivetrain.watch.queued import BATCH, Heard, Queued


class Written(Queued):
    """Keeps what it writes; waits before each batch until it may."""

    def __init__(self, **options: float) -> None:
        self.told: list = []
        self.batches: list[list[Metric]] = []
        self.may = threading.Event()
        self.ends: list[str] = []
        super().__init__(self.told.append, **{"every": 0.001, **options})

    def write(self, batch: Sequence[Heard]) -> None:
        self.may.wait(10)
        self.batches.append([metric for metric, _ in batch])

    def finish(self, failed: bool) -> None:
        self.ends.append(f"failed {failed}")

    def release(self) -> None:
        self.ends.append("released")


def point(step: int | None) -> Metric:
    return Metric(name="train/loss", value=1.0, step=step)


def test_everything_is_written_in_order_and_in_batches_before_the_end() -> None:
    listener = Written()
    listener.may.set()
    with listener:
        for step in range(2 * BATCH + 7):
            listener(point(step))
    assert [m.step for batch in listener.batches for m in batch] == list(range(2 * BATCH + 7))
    assert max(map(len, listener.batches)) <= BATCH
    assert listener.ends == ["failed False", "released"]
    assert (listener.told, listener.dropped) == ([], 0)


def test_what_does_not_fit_is_dropped_and_counted_and_single_figures_never_are() -> None:
    listener = Written(room=10)
    listener(point(0))
    while listener._waiting:  # the first batch is being written, for as long as we like
        time.sleep(0.001)
    for step in range(1, 31):
        listener(point(step))
    listener(point(None))
    assert listener.dropped == 20
    listener.may.set()
    listener.close()
    assert [m.step for batch in listener.batches for m in batch] == [*range(11), None]
    (note,) = listener.told
    text = "Written wrote slower than the run measured: 20 points of series were dropped"
    assert note == Note(stage="listen", text=text, warning=True)


def test_a_store_that_hangs_holds_the_end_up_no_longer_than_its_grace() -> None:
    listener = Written(grace=0.05)
    listener(point(0))
    listener.close()
    (note,) = listener.told
    assert "stopped listening" in note.text
    assert "could not write in time" in note.text
    listener.may.set()
    assert listener._thread is not None
    listener._thread.join(10)


def test_a_run_that_fails_is_told_so_behind_its_last_metric() -> None:
    listener = Written()
    listener.may.set()
    listener(point(0))
    listener.close(failed=True)
    assert listener.ends == ["failed True", "released"]


def test_an_error_of_writing_is_told_once_and_nothing_waits_any_more() -> None:
    class Full(Written):
        def write(self, batch: Sequence[Heard]) -> None:
            raise OSError(28, "No space left on device")

    listener = Full()
    listener(point(0))
    assert listener._thread is not None
    listener._thread.join(10)
    for step in range(5):
        listener(point(step))
    listener.close()
    (note,) = listener.told
    assert "No space left on device" in note.text
    assert not listener._waiting
    assert listener.ends == ["released"]


def test_who_hears_nothing_starts_no_thread() -> None:
    listener = Written()
    listener.close()
    assert listener._thread is None
    assert listener.ends == []
