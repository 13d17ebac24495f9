"""A graph whose inputs and outputs lie at fixed places, so that a run hands nothing over.

ONNX Runtime wraps each array that it is given, and checks it, in every run. A cheap graph of forty
columns takes less time than that. Bound once to memory that stays, it only runs.

Source: https://onnxruntime.ai/docs/api/python/api_summary.html#iobinding
"""

import math
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from drivetrain.core.batch import Array
from drivetrain.core.graph import Session
from drivetrain.core.schema import Field
from drivetrain.serve.execution.packed import Form

MOST_ROWS = 256
"""Beyond them what is saved is nothing beside the run."""


class Bound:
    """One graph on the CPU with all its inputs in one piece of memory.

    Args:
        session: the loaded graph.
        form: where its columns lie.
        inputs: the graph's inputs, each with the number of its column.
        outputs: what it gives; of fixed shapes and numeric.

    Attributes:
        memory: where a run finds its rows.
        lock: held by who fills the memory and runs.
    """

    def __init__(
        self,
        session: Session,
        form: Form,
        inputs: Sequence[tuple[str, int]],
        outputs: Sequence[Field],
    ) -> None:
        self.memory = np.zeros(MOST_ROWS * form.row // 8 + 1, np.int64).data.cast("B")
        self.lock = threading.Lock()
        self._session = session
        self._form = form
        self._inputs = inputs
        self._outputs = outputs
        widths = [math.prod(n or 0 for n in field.shape) for field in outputs]
        self._said = [
            np.zeros(MOST_ROWS * width, field.numpy)
            for field, width in zip(outputs, widths, strict=True)
        ]
        self._bindings: dict[int, tuple[Any, list[Array]]] = {}

    @classmethod
    def of(
        cls,
        session: Session,
        form: "Form | None",
        inputs: Sequence[tuple[str, int]],
        outputs: Sequence[Field],
    ) -> "Bound | None":
        """A binding of a graph, None where it cannot have one."""
        fixed = all(field.numpy != "object" and None not in field.shape for field in outputs)
        if form is None or not fixed or len(inputs) != len(session.inputs):
            return None
        if not session.bindable or any(len(shape) != 1 for _, shape in session.inputs):
            return None
        return cls(session, form, inputs, outputs)

    def run(self, rows: int) -> list[Array]:
        """The outputs for the rows that lie in the memory, ``[rows, …]`` each; copies.

        Raises:
            Exception: what ONNX Runtime says of values that the graph does not take.
        """
        found = self._bindings.get(rows)
        if found is None:
            found = self._bindings[rows] = self._bind(rows)
        binding, said = found
        self._session.run_bound(binding)
        return [array.copy() for array in said]

    def _bind(self, rows: int) -> tuple[Any, list[Array]]:
        given = {
            name: self._form.column(self.memory, number, rows) for name, number in self._inputs
        }
        said = [
            memory[: rows * (memory.size // MOST_ROWS)].reshape(
                rows, *(n or 0 for n in field.shape)
            )
            for memory, field in zip(self._said, self._outputs, strict=True)
        ]
        names = [field.name for field in self._outputs]
        return self._session.bind(given, dict(zip(names, said, strict=True))), said
