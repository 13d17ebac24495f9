"""What a stream counts, and the file from which others see it."""

import json
from pathlib import Path
from threading import Thread

import numpy as np

from drivetrain.core.metric import silent
from drivetrain.events.follow.pace import Pace


def test_a_batch_may_be_counted_while_another_thread_looks(tmp_path: Path) -> None:
    pace = Pace("made", "topic", silent, tmp_path / "status.json")
    due: list[None] = []

    class Asked(np.ndarray):
        """Times in whose midst another thread counts a batch."""

        def __len__(self) -> int:
            if due:
                due.pop()
                thread = Thread(target=pace.batch, args=(5, 4, 1, 2, np.array([1_000_000])))
                thread.start()
                thread.join()
            return super().__len__()

    pace.batch(3, 3, 0, 1, np.array([1_000_000, 2_000_000]).view(Asked))
    due.append(None)
    pace.look({0: 8}, {0: 0}, ended=False)
    assert not due, "the times were looked at"
    assert (pace.messages, pace.rows, pace.dead, pace.commits, pace.version) == (8, 7, 1, 2, 2)
    said = json.loads((tmp_path / "status.json").read_text())
    assert said["latency_ms"]["p50"] > 0
