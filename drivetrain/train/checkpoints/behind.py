"""Checkpoints that are written behind the training's back: it waits for a copy in memory only."""

import threading
from pathlib import Path

from drivetrain.train.checkpoints.checkpoint import Checkpoint, Storage


class Behind:
    """Writes the checkpoints of one training on a thread, one at a time.

    What a save could not write is said by the next call, or at the end of the ``with`` block, which
    waits for the thread, also when an error ends the training. One that is killed leaves the
    checkpoint before, which is whole.

    Args:
        checkpoints: where they go.
    """

    def __init__(self, checkpoints: Storage) -> None:
        self.checkpoints = checkpoints
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def save(self, checkpoint: Checkpoint, step: int, *, final: bool = False) -> None:
        """Copy this process's part of a checkpoint and begin to write it.

        A final one is written when this returns.

        Raises:
            OSError: this final one, or the one before, could not be written; the checkpoints are
                then as they were.
        """
        self.wait()
        part = self.checkpoints.part(checkpoint)
        if part is None:
            return
        tensors = {name: t.detach().to("cpu", copy=True) for name, t in part.tensors.items()}
        copy = Checkpoint(part.state, tensors)

        def write() -> None:
            try:
                self.checkpoints.save(copy, step, final=final)
            except Exception as error:
                self._error = error

        self._thread = threading.Thread(target=write, name="drivetrain-checkpoint")
        self._thread.start()
        if final:
            self.wait()

    def latest(self) -> tuple[Checkpoint, bool] | None:
        """As :meth:`drivetrain.train.checkpoints.checkpoint.Checkpoints.latest`."""
        self.wait()
        return self.checkpoints.latest()

    def wait(self) -> None:
        """Wait until what was begun is on disk.

        Raises:
            OSError: it could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def __enter__(self) -> "Behind":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            self.wait()
        except OSError:
            if error is None:  # or else what ended the training is the better news
                raise

    @property
    def directory(self) -> Path:
        """Where they go."""
        return self.checkpoints.directory
