"""The pooling of a user's history by an item at hand (DIN), and which features it is of."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from drivetrain.core.errors import wrong
from drivetrain.core.schema import FeatureSchema
from drivetrain.models.layers import ACTIVATION, stack
from drivetrain.models.options import Attention

UNSEEN = -1e30
"""The weight of padding before a softmax; finite in bfloat16 too."""


class HistoryPool(nn.Module):
    """A history's vectors, weighed by what they are to an item, and summed (Zhou et al., 2018).

    The network's first layer is linear in ``h``, ``q``, ``h - q`` and ``h * q``, and so in ``h``,
    ``q`` and ``h * q`` alone: the difference is no input of its own, and what hangs on ``q`` only
    is multiplied once a row and not once a place.

    Args:
        dim: the width of a vector.
        config: the declaration.
    """

    def __init__(self, dim: int, config: Attention) -> None:
        super().__init__()
        first, *rest = config.hidden
        self.history = nn.Linear(2 * dim, first, bias=False)
        self.item = nn.Linear(dim, first)
        self.activation = ACTIVATION[config.activation]()
        self.hidden = stack(first, rest, norm="none", activation=config.activation, dropout=0.0)
        self.head = nn.Linear(config.hidden[-1], 1)
        self.normalize = config.normalize

    def forward(self, history: Tensor, item: Tensor, there: Tensor) -> Tensor:
        """The pooled history ``[rows, 1, dim]``; zeros where nothing is there.

        Args:
            history: ``[rows, places, dim]``.
            item: ``[rows, dim]``.
            there: bool ``[rows, places]``; False is padding.
        """
        both = torch.cat([history, history * item.unsqueeze(1)], 2)
        x = self.activation(self.history(both) + self.item(item).unsqueeze(1))
        weight = self.head(self.hidden(x)).squeeze(2)
        if self.normalize:
            weight = weight.masked_fill(~there, UNSEEN).softmax(1)
        weight = weight * there.to(weight.dtype)
        return torch.bmm(weight.unsqueeze(1), history)


def columns_of(attention: Sequence[Attention], features: FeatureSchema) -> Mapping[str, int]:
    """For each history the column of the block ``index`` that its item is.

    Raises:
        ValueError: a feature is not there, is of another kind, or the two have not the same
            vocabulary.
    """
    found: dict[str, int] = {}
    for one in attention:
        history, item = features.field(one.history), features.field(one.item)
        if history.kind != "bag":
            raise wrong(f"Attention.history {one.history!r}", history.kind, "a bag, as History is")
        if item.kind != "index" or item.width != 1:
            allowed = "an index feature of one column"
            raise wrong(f"Attention.item {one.item!r}", f"{item.kind} of {item.width}", allowed)
        if history.cardinality != item.cardinality:
            sizes = f"cardinalities {history.cardinality} and {item.cardinality}"
            allowed = "the same values in both: History takes the Index whose vocabulary it has"
            raise wrong(f"Attention of {one.history!r} and {one.item!r}", sizes, allowed)
        found[one.history] = features.slice(one.item).start
    return found
