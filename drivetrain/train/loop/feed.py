"""Batches of numpy arrays as tensors on a device, without a copy where none is needed."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from drivetrain.core.batch import Array, Batch
from drivetrain.core.errors import unknown, wrong
from drivetrain.core.schema import MISSING_INT, Schema
from drivetrain.core.seams import Examples


class Feed:
    """Turns batches into a model's inputs and a loss's targets.

    Args:
        examples: says which columns are inputs and which are targets.
        device: where the tensors live.
        labels: raises ValueError for targets that the loss can't learn from; None takes all.

    Raises:
        ValueError: a target is text.
    """

    def __init__(
        self,
        examples: Examples,
        device: str = "cpu",
        labels: Callable[[Mapping[str, Array]], None] | None = None,
    ) -> None:
        self.inputs = examples.features.tensors.names
        self.targets = examples.targets.names
        self.device = None if device == "cpu" else torch.device(device)
        self.labels = labels
        _check_numbers(examples.targets)

    def __call__(self, batch: Batch) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Inputs in the order of ``features.tensors``, and targets by name.

        Raises:
            ValueError: the batch lacks a column.
        """
        columns = batch.columns
        try:
            return (
                [self._tensor(columns[name]) for name in self.inputs],
                {name: self._tensor(columns[name]) for name in self.targets},
            )
        except KeyError as error:
            raise unknown("column", error.args[0], columns, "a batch of examples") from None

    def _tensor(self, column: object) -> Tensor:
        assert isinstance(column, np.ndarray)
        if not column.flags.writeable:  # torch can't promise to leave it alone
            column = column.copy()
        tensor = torch.from_numpy(column)
        return tensor if self.device is None else tensor.to(self.device, non_blocking=True)

    def check(self, batch: Batch) -> None:
        """Hold a batch's targets against what a loss can use.

        Raises:
            ValueError: a target is missing somewhere, or is none that the loss knows; names the
                row.
        """
        for name in self.targets:
            column = batch[name]
            missing = column == MISSING_INT if column.dtype.kind in "iu" else ~np.isfinite(column)
            if missing.any():
                row = int(np.argwhere(missing)[0][0])
                raise wrong(
                    f"target {name!r}, row {row} of a batch",
                    column[row].item() if column.ndim == 1 else column[row].tolist(),
                    "numbers only; drop the rows that have no outcome from the events",
                )
        if self.labels is not None:
            self.labels({name: batch[name] for name in self.targets})


def _check_numbers(targets: Schema) -> None:
    for field in targets:
        if field.numpy == "object":
            raise wrong(
                f"target {field.name!r}", field.dtype, "a number; turn text into a class number"
            )
