"""Losses as declarations: what training minimises, and what the served graph answers instead."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from drivetrain.core.errors import wrong

if TYPE_CHECKING:
    from torch import Tensor

    from drivetrain.core.batch import Array


_SURE = 1e-6
"""How far a teacher's probability is kept from 0 and 1, whose logits are infinite."""


class Loss(Protocol):
    """Any callable is a loss; one that also has ``predictions`` and ``scores`` says more.

    One that has ``check`` is asked of each batch of arrays, once, whether it can learn from them.
    One that has ``toward`` can learn from a teacher's predictions: see ``distill.Distill``.
    """

    def __call__(self, outputs: Any, targets: Mapping[str, "Tensor"], /) -> "Tensor":
        """The mean loss of a batch: a scalar tensor.

        Args:
            outputs: what the model answered.
            targets: ``[rows]`` or ``[rows, …]`` for each target, as the events have them.
        """
        ...


@dataclass(frozen=True)
class BinaryCrossEntropy:
    """Log loss of one logit a row, or of one for each member of an ensemble.

    Members' losses are averaged in training; their probabilities are averaged in predictions
    (Gorishniy et al., "TabM", 2024).

    Attributes:
        target: the column that holds 0 and 1.
        smoothing: the share of each label that is replaced by one half.
    """

    target: str
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise wrong("BinaryCrossEntropy.smoothing", self.smoothing, "from 0 to below 1")

    def __call__(self, outputs: "Tensor", targets: Mapping[str, "Tensor"]) -> "Tensor":
        """The mean over rows and members of ``outputs``, ``[rows]`` or ``[rows, members]``."""
        from torch.nn.functional import binary_cross_entropy_with_logits

        labels = _like(targets[self.target], outputs)
        if self.smoothing:
            labels = labels * (1 - self.smoothing) + self.smoothing / 2
        return binary_cross_entropy_with_logits(outputs, labels)

    def toward(self, outputs: "Tensor", teacher: "Tensor", temperature: float = 1.0) -> "Tensor":
        """The cross-entropy to a teacher's probabilities of 1, ``[rows]``.

        Both sides' logits are divided by ``temperature``, and the loss is multiplied by its
        square, so that gradients keep their size (Hinton et al., 2015, section 2.1).
        """
        from torch.nn.functional import binary_cross_entropy_with_logits

        logits = teacher.to(outputs.dtype).logit(eps=_SURE) / temperature
        labels = _like(logits.sigmoid(), outputs)
        scaled = outputs / temperature
        return binary_cross_entropy_with_logits(scaled, labels) * temperature**2

    def check(self, targets: Mapping[str, "Array"]) -> None:
        """Refuse labels that are no probabilities: the loss would fall without end, below 0.

        Raises:
            ValueError: names the target, the label and the row of the batch.
        """
        labels = targets[self.target]
        _refuse(self.target, labels, (labels < 0) | (labels > 1), "0 and 1, or what lies between")

    def predictions(self, outputs: "Tensor") -> dict[str, "Tensor"]:
        """The probability of 1, ``[rows]``."""
        return {self.target: _mean_of_members(outputs.sigmoid(), 1)}

    def scores(self, outputs: "Tensor", targets: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
        """``loss``: the log loss of the predictions, without smoothing."""
        from torch.nn.functional import binary_cross_entropy

        probability = _mean_of_members(outputs.double().sigmoid(), 1)
        labels = targets[self.target].to(probability.dtype)
        return {"loss": binary_cross_entropy(probability, labels)}


@dataclass(frozen=True)
class CrossEntropy:
    """Log loss over classes: logits ``[rows, classes]``, or ``[rows, members, classes]``.

    Attributes:
        target: the column that holds the class, an integer from 0.
        smoothing: the share of each label that is spread over all classes.
    """

    target: str
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise wrong("CrossEntropy.smoothing", self.smoothing, "from 0 to below 1")

    def __call__(self, outputs: "Tensor", targets: Mapping[str, "Tensor"]) -> "Tensor":
        """The mean over rows and members."""
        from torch.nn.functional import cross_entropy

        labels = targets[self.target].long()
        if outputs.dim() == 3:
            labels = labels.repeat_interleave(outputs.shape[1])
            outputs = outputs.flatten(0, 1)
        return cross_entropy(outputs, labels, label_smoothing=self.smoothing)

    def toward(self, outputs: "Tensor", teacher: "Tensor", temperature: float = 1.0) -> "Tensor":
        """The cross-entropy to a teacher's probabilities ``[rows, classes]``.

        The logarithm of a probability is its logit but for a constant, which a softmax does not
        see: so ``temperature`` softens a teacher that answers probabilities exactly as one that
        answers logits (Hinton et al., 2015, section 2.1).
        """
        from torch.nn.functional import cross_entropy

        logits = teacher.to(outputs.dtype).clamp(min=_SURE).log() / temperature
        labels = logits.softmax(-1)
        if outputs.dim() == 3:
            labels = labels.repeat_interleave(outputs.shape[1], 0)
            outputs = outputs.flatten(0, 1)
        return cross_entropy(outputs / temperature, labels) * temperature**2

    def check(self, targets: Mapping[str, "Array"]) -> None:
        """Refuse labels that name no class; torch would pass over -100 without a word.

        Raises:
            ValueError: names the target, the label and the row of the batch.
        """
        labels = targets[self.target]
        _refuse(self.target, labels, (labels < 0) | (labels % 1 != 0), "classes as integers from 0")

    def predictions(self, outputs: "Tensor") -> dict[str, "Tensor"]:
        """The probability of each class, ``[rows, classes]``."""
        return {self.target: _mean_of_members(outputs.softmax(-1), 2)}

    def scores(self, outputs: "Tensor", targets: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
        """``loss`` and ``accuracy`` of the predictions, without smoothing."""
        from torch.nn.functional import nll_loss

        probability = _mean_of_members(outputs.double().softmax(-1), 2)
        labels = targets[self.target].long()
        right = probability.argmax(1) == labels
        loss = nll_loss(probability.clamp(min=1e-300).log(), labels)
        return {"loss": loss, "accuracy": right.double().mean()}


@dataclass(frozen=True)
class MeanSquaredError:
    """Squared error of one number a row, or of one for each member of an ensemble.

    Attributes:
        target: the column that holds the number.
    """

    target: str

    def __call__(self, outputs: "Tensor", targets: Mapping[str, "Tensor"]) -> "Tensor":
        """The mean over rows and members."""
        from torch.nn.functional import mse_loss

        return mse_loss(outputs, _like(targets[self.target], outputs))

    def toward(self, outputs: "Tensor", teacher: "Tensor", temperature: float = 1.0) -> "Tensor":
        """The mean squared distance from a teacher's numbers ``[rows]``: nothing to soften.

        Raises:
            ValueError: ``temperature`` is not 1.
        """
        if temperature != 1:
            raise wrong("temperature of MeanSquaredError", temperature, "1")
        return self(outputs, {self.target: teacher})

    def predictions(self, outputs: "Tensor") -> dict[str, "Tensor"]:
        """The number, ``[rows]``; the mean of members."""
        return {self.target: _mean_of_members(outputs, 1)}

    def scores(self, outputs: "Tensor", targets: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
        """``loss``: the squared error of the predictions."""
        error = _mean_of_members(outputs, 1).double() - targets[self.target].double()
        return {"loss": error.square().mean()}


@dataclass(frozen=True)
class Listwise:
    """Cross-entropy between what was wanted of a list and the softmax of its scores.

    One score for each candidate of a list, ``[rows, candidates]``, or ``[rows, members,
    candidates]``: only how candidates compare with those of their own list is learnt (ListNet's
    top-one loss; Cao et al., ICML 2007; Bruch et al., ICTIR 2019). A list of which nothing was
    wanted teaches nothing.

    Attributes:
        target: the column ``[candidates]`` that holds how much each was wanted, 0 or more.
    """

    target: str

    def __call__(self, outputs: "Tensor", targets: Mapping[str, "Tensor"]) -> "Tensor":
        """The mean over rows and members."""
        wanted = targets[self.target].to(outputs.dtype)
        share = wanted / wanted.sum(-1, keepdim=True).clamp(min=_SURE)
        if outputs.dim() == 3:
            share = share.unsqueeze(1)
        return -(share * outputs.log_softmax(-1)).sum(-1).mean()

    def check(self, targets: Mapping[str, "Array"]) -> None:
        """Refuse what is wanted less than nothing.

        Raises:
            ValueError: names the target, the value and the row of the batch.
        """
        wanted = targets[self.target]
        _refuse(self.target, wanted, wanted < 0, "0 or more")

    def predictions(self, outputs: "Tensor") -> dict[str, "Tensor"]:
        """The scores, ``[rows, candidates]``; the mean of members."""
        return {self.target: _mean_of_members(outputs, 2)}

    def scores(self, outputs: "Tensor", targets: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
        """``loss``: that of the predictions."""
        return {"loss": self(_mean_of_members(outputs, 2).double(), targets)}


def _refuse(target: str, labels: "Array", bad: "Array", allowed: str) -> None:
    rows = bad.nonzero()[0]
    if len(rows):
        raise wrong(f"target {target!r}, row {rows[0]} of a batch", labels[bad][0].item(), allowed)


def _like(labels: "Tensor", outputs: "Tensor") -> "Tensor":
    """Labels ``[rows]`` in the type of the outputs, one for each member where there are any."""
    labels = labels.to(outputs.dtype)
    return labels if outputs.dim() == 1 else labels.unsqueeze(1).expand_as(outputs)


def _mean_of_members(values: "Tensor", dimensions: int) -> "Tensor":
    """The mean over the dimension after the rows where there are more than ``dimensions``."""
    return values.mean(1) if values.dim() > dimensions else values
