"""Learning from a teacher, which is another bundle: the loss, and the source of what it says."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drivetrain.core.errors import unknown, wrong
from drivetrain.core.schema import Field, Schema
from drivetrain.core.seams import Shard, Source, Split
from drivetrain.train.loss import Loss, MeanSquaredError

if TYPE_CHECKING:
    from torch import Tensor

    from drivetrain.core.batch import Array, Batch
    from drivetrain.core.bundle import Bundle

CHUNK = 1024
"""Rows that the teacher sees at once: it may be large, and its activations are held in memory."""


def _digest(path: "str | Path") -> str:
    from drivetrain.core.bundle import digest_of

    return digest_of(Path(path))


@dataclass(frozen=True)
class Distill:
    """Blends a loss with the same loss toward a teacher's predictions.

    A loss and no strategy of its own: so every strategy on the one loop distils (``Single``,
    ``AllReduce``, ``DiLoCo``), in one process or many. The teacher answers each raw row once, by
    its own graph, features included; its answers lie beside the examples as one more target. So
    it may read other columns than the student, be no torch model at all, and cost nothing in the
    epochs.

    Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015,
    https://arxiv.org/abs/1503.02531

    Attributes:
        hard: the loss of the true targets; it says what is validated and served. One that has
            ``toward(outputs, teacher, temperature)``, as those of this package do.
        teacher: a bundle's directory, or the file that it is packed in; such as
            ``Registry("models").path("fraud@prod")``. Its digest, and not the path, is part of
            what is declared.
        weight: the share of the loss that is the teacher's, from 0 to 1.
        temperature: divides the logits of both before they are compared: above 1 the small
            probabilities say more. 1 for ``MeanSquaredError``.
        output: which of the teacher's outputs; None takes the one of the target's name.
    """

    hard: Loss | Callable[[Any, Mapping[str, Any]], Any]
    teacher: "str | Path" = field(kw_only=True, metadata={"as": _digest})
    weight: float = field(default=0.5, kw_only=True)
    temperature: float = field(default=1.0, kw_only=True)
    output: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if not callable(getattr(self.hard, "toward", None)):
            allowed = "BinaryCrossEntropy, CrossEntropy, MeanSquaredError, or one with toward()"
            raise wrong("Distill.hard", self.hard, allowed)
        if not 0 <= self.weight <= 1:
            raise wrong("Distill.weight", self.weight, "from 0 to 1")
        if not self.temperature > 0:
            raise wrong("Distill.temperature", self.temperature, "a number above 0")
        if isinstance(self.hard, MeanSquaredError) and self.temperature != 1:
            raise wrong("Distill.temperature", self.temperature, "1 for MeanSquaredError")

    @property
    def target(self) -> str | None:
        """The target of the hard loss, where it names one."""
        return getattr(self.hard, "target", None)

    @property
    def column(self) -> str:
        """The name under which the loss finds the teacher's predictions among the targets."""
        return f"teacher/{self.output or self.target}"

    def __call__(self, outputs: Any, targets: Mapping[str, "Tensor"]) -> "Tensor":
        """The blend, over the rows of a batch."""
        hard: Any = self.hard
        soft = hard.toward(outputs, targets[self.column], self.temperature)
        return (1 - self.weight) * hard(outputs, targets) + self.weight * soft

    def check(self, targets: Mapping[str, "Array"]) -> None:
        """What the hard loss asks of its targets."""
        check = getattr(self.hard, "check", None)
        if check is not None:
            check(targets)

    def predictions(self, outputs: Any) -> Mapping[str, Any]:
        """Those of the hard loss."""
        from drivetrain.train.predictions import named

        predictions = getattr(self.hard, "predictions", None)
        return named(outputs) if predictions is None else predictions(outputs)

    def scores(self, outputs: Any, targets: Mapping[str, "Tensor"]) -> Mapping[str, "Tensor"]:
        """Those of the hard loss: a student is judged by the truth, not by its teacher."""
        scores = getattr(self.hard, "scores", None)
        if scores is None:
            hard: Any = self.hard
            return {"loss": hard(outputs, targets)}
        return scores(outputs, targets)

    @cached_property
    def bundle(self) -> "Bundle":
        """The teacher, every byte of it verified.

        Raises:
            FileNotFoundError: no bundle lies there.
            ValueError: it was changed, or has no such output.
        """
        from drivetrain.core.bundle import Bundle

        found = Bundle.open(self.teacher)
        outputs = found.manifest.outputs
        if self.output is None and self.target not in outputs:
            raise wrong("Distill.output", None, f"one of {', '.join(outputs.names)}")
        name = str(self.output or self.target)
        if name not in outputs:
            raise unknown("output", name, outputs.names, f"the teacher {self.teacher}")
        return found

    def taught(self, source: Source) -> "Taught":
        """The source with the teacher's predictions beside its columns.

        Raises:
            ValueError: the teacher reads a column that the source lacks or has in another type.
        """
        return Taught(source, self.bundle, str(self.output or self.target), self.column)


@dataclass(frozen=True)
class Taught:
    """A source with a bundle's prediction as one more column of every batch.

    It is not ``Tabular``: the column lies in no file, and no engine may look for it there.

    Attributes:
        source: raw rows, with all columns that the teacher reads.
        teacher: answers them.
        output: which of its predictions.
        column: what that is called here.
    """

    source: Source
    teacher: "Bundle"
    output: str
    column: str

    def __post_init__(self) -> None:
        for needed in self.teacher.manifest.inputs:
            found = self.source.schema.field(needed.name, f"the teacher {self.teacher.path}")
            if (found.dtype, found.shape) != (needed.dtype, needed.shape):
                where = f"column {needed.name!r} of the events"
                raise wrong(where, found.dtype, f"{needed.dtype}, which the teacher was trained on")

    @property
    def field(self) -> Field:
        """The new column: float32, a number a row or one for each class."""
        return Field(self.column, "float32", self.teacher.manifest.outputs.field(self.output).shape)

    @property
    def schema(self) -> Schema:
        """The source's columns and the prediction."""
        return Schema((*self.source.schema, self.field))

    def batches(self, split: Split, shard: Shard = Shard()) -> Iterator["Batch"]:
        """The source's batches, each with the column.

        Raises:
            ValueError: a prediction is no number.
        """
        import numpy as np

        for batch in self.source.batches(split, shard):
            parts = [
                self._answers(batch.slice(start, min(start + CHUNK, len(batch))))
                for start in range(0, len(batch), CHUNK)
            ]
            empty = np.empty((0, *(n or 0 for n in self.field.shape)), np.float32)
            yield batch.with_columns({self.column: np.concatenate(parts) if parts else empty})

    def _answers(self, rows: "Batch") -> "Array":
        import numpy as np

        found = self.teacher.session.run(rows, [self.output])[self.output].astype(np.float32)
        bad = ~np.isfinite(found)
        if bad.any():
            row = int(np.argwhere(bad)[0][0])
            where = f"the teacher's {self.output!r}, row {row} of a batch"
            raise wrong(where, found[row].tolist(), "numbers only")
        return found
