"""The two towers: who asks, and what an item is, as vectors of one width."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from drivetrain.core.schema import FeatureSchema
from drivetrain.models.embedding import Inputs
from drivetrain.models.layers import stack
from drivetrain.train.recall.interactions import FIRST_USER
from drivetrain.train.towers.pairs import HISTORY, ITEM
from drivetrain.train.towers.softmax import Sampled, drawn

Pooling = Literal["mean", "attention"]
_RARE = FIRST_USER - 1
_ITEMS = 65_536
"""Items whose vectors are made at once."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How towers are built.

    Attributes:
        dim: the width of vectors.
        hidden: widths of each tower's hidden layers.
        pooling: how the items of a history become one vector.
        normalize: whether vectors have the length 1.
        dropout: the share of hidden values that is dropped in training.
        unknown: the share of training rows whose user is hidden, and of candidates whose item is.
    """

    dim: int
    hidden: tuple[int, ...]
    pooling: Pooling
    normalize: bool
    dropout: float
    unknown: float


class UserTower(nn.Module):
    """The vector of a user, the other features and the items of a history, ``[rows, dim]``.

    It is a vector of the user's own, one of all users, and what a stack makes of the user's own,
    the other features and the history, where there are any or hidden layers.

    Args:
        features: of the rows, with the history where there is one; an item among them is no input.
        user: the name of the feature that says who.
        items: the vectors of items, which the item tower has too.
        shape: how it is built.
    """

    def __init__(
        self, features: FeatureSchema, user: str, items: nn.Embedding, shape: Shape
    ) -> None:
        super().__init__()
        self.features = _without(features, ITEM)
        self.column = features.slice(user).start
        self.users = _vectors(features.field(user).cardinality, shape.dim, FIRST_USER)
        columns = range(len(features.cardinalities))
        self.rest = [column for column in columns if column != self.column]
        others = _without(self.features, user, HISTORY)
        self.others = Inputs(others, shape.dim) if others.features else None
        has = len(others.features) + 1 < len(self.features.features)
        self.history = _History(items, shape) if has else None
        width = shape.dim + (self.others.width if self.others else 0) + has * shape.dim
        self.bias = nn.Parameter(torch.zeros(shape.dim))
        self.deep = _deep(width, shape)
        self.unknown = shape.unknown if width > shape.dim else 0.0
        self.normalize = shape.normalize

    def forward(self, *tensors: Tensor) -> Tensor:
        """Vectors ``[rows, dim]`` of one tensor for each of ``features.tensors``."""
        inputs = dict(zip(self.features.tensors.names, tensors, strict=True))
        user = inputs["index"][:, self.column].clamp(min=_RARE)
        if self.training and self.unknown:
            hidden = torch.rand(user.shape, device=user.device) < self.unknown
            user = user.masked_fill(hidden, _RARE)
        own = self.users(user)
        parts = [own]
        if self.others is not None:
            rest = {"index": inputs["index"][:, self.rest]} if self.rest else {}
            parts.append(self.others({**inputs, **rest}))
        if self.history is not None:
            parts.append(self.history(inputs[HISTORY]))
        whole = own + self.bias
        if self.deep is not None:
            whole = whole + self.deep(torch.cat(parts, 1) if len(parts) > 1 else own)
        return nn.functional.normalize(whole, dim=1) if self.normalize else whole

    @torch.no_grad()
    def forget(self, known: Tensor) -> None:
        """Give users without training rows, bool ``[users]``, the vector of those not known."""
        self.users.weight[~known] = self.users.weight[_RARE].clone()


class _History(nn.Module):
    """The mean of the items' vectors, or one that is weighted by what they say; none gives 0.

    With ``attention`` an item weighs ``exp(v · tanh(W e + p))``, where ``e`` is its vector and
    ``p`` one of its place in the history (Bahdanau et al., ICLR 2015, without a query).
    """

    def __init__(self, items: nn.Embedding, shape: Shape) -> None:
        super().__init__()
        self.items = items
        self.attention = None
        if shape.pooling == "attention":
            self.attention = nn.Linear(shape.dim, shape.dim)
            self.query = nn.Parameter(torch.zeros(shape.dim))

    def forward(self, places: Tensor) -> Tensor:
        vectors = self.items(places)
        there = places != 0
        if self.attention is None:
            weights = there.to(vectors.dtype)
        else:
            said = torch.tanh(self.attention(vectors)) @ self.query
            # What is missing weighs nothing, and where all is, the sum below is 0 over 1.
            weights = said.exp() * there.to(vectors.dtype)
        total = (vectors * weights.unsqueeze(2)).sum(1)
        sums = weights.sum(1, keepdim=True)
        return total / torch.where(there.any(1, keepdim=True), sums, torch.ones_like(sums))


class ItemTower(nn.Module):
    """The vector of an item, ``[items, dim]``: its own, and what a stack makes of its attributes.

    Args:
        items: vectors of items; the first is that of items that are not known.
        content: float32 ``[items, width]``: what is known of each; None is nothing.
        shape: how it is built.
    """

    def __init__(self, items: nn.Embedding, content: Tensor | None, shape: Shape) -> None:
        super().__init__()
        self.items = items
        self.content: Tensor | None
        if content is not None:
            content = nn.functional.pad(content, (0, 0, 1, 0))
        self.register_buffer("content", content, persistent=False)
        width = 0 if content is None else content.shape[1]
        self.deep = _deep(shape.dim + width, shape)
        self.unknown = shape.unknown if width else 0.0
        self.normalize = shape.normalize

    def forward(self, ids: Tensor) -> Tensor:
        """Vectors of ids, int64 ``[items]``: places in the catalogue and 1."""
        hidden = ids
        if self.training and self.unknown:
            hidden = ids.masked_fill(torch.rand(ids.shape, device=ids.device) < self.unknown, 0)
        whole = own = self.items(hidden)
        if self.deep is not None:
            known = own if self.content is None else torch.cat([own, self.content[ids]], 1)
            whole = own + self.deep(known)
        return nn.functional.normalize(whole, dim=1) if self.normalize else whole

    @torch.no_grad()
    def forget(self, known: Tensor) -> None:
        """Give items without training rows, bool ``[items]``, the vector of those not known."""
        self.items.weight[1:][~known] = self.items.weight[0].clone()

    @torch.no_grad()
    def all(self) -> Tensor:
        """The vectors of the whole catalogue in its order, float32 ``[items, dim]``."""
        ids = torch.arange(1, self.items.num_embeddings, device=self.items.weight.device)
        return torch.cat([self(part) for part in ids.split(_ITEMS)])


class Towers(nn.Module):
    """Both towers over a batch of pairs, as they are trained.

    Args:
        features: of the pairs.
        user: the name of the feature that says who.
        counts: in how many training rows each item is, ``[items]``; those without any are no
            negatives, for nothing could be said against them.
        content: as :class:`ItemTower`.
        shape: how they are built.
        mixed: items that are drawn uniformly for a batch.
    """

    def __init__(
        self,
        features: FeatureSchema,
        user: str,
        counts: Tensor,
        content: Tensor | None,
        shape: Shape,
        mixed: int,
    ) -> None:
        super().__init__()
        self.features = features
        items = _vectors(len(counts) + 1, shape.dim, 1)
        self.user = UserTower(features, user, items, shape)
        self.item = ItemTower(items, content, shape)
        self.mixed = mixed
        rows = max(1, int(counts.sum()) - 1)
        self.frequency: Tensor
        self.sold: Tensor
        frequency = torch.cat([torch.zeros(1), counts / rows])
        self.register_buffer("frequency", frequency.float(), persistent=False)
        self.register_buffer("sold", counts.nonzero()[:, 0] + 1, persistent=False)

    def forward(self, *tensors: Tensor) -> Sampled:
        """Both sides of a batch: one tensor for each of ``features.tensors``."""
        inputs: Mapping[str, Any] = dict(zip(self.features.tensors.names, tensors, strict=True))
        users = self.user(*(inputs[name] for name in self.user.features.tensors.names))
        ids = inputs[ITEM][:, 0]
        among = len(self.sold)
        # What is measured, beside what is trained, is measured against the same items each time.
        generator = None if self.training else torch.Generator().manual_seed(0)
        picked = torch.randint(among, (self.mixed,), generator=generator)
        negatives = self.sold[picked.to(ids.device)]
        candidates, own, correction = drawn(ids, self.frequency, negatives, among)
        return Sampled(users, self.item(candidates), own, correction)

    def settle(self, users: Tensor) -> None:
        """After training: what no row spoke of is as what is not known.

        Args:
            users: bool ``[users]``: who has training rows.
        """
        self.user.forget(users)
        self.item.forget(self.frequency[1:] > 0)


def _vectors(rows: int, dim: int, unknown: int) -> nn.Embedding:
    """A table of small random vectors; of what is not known, which comes first, they are 0."""
    table = nn.Embedding(rows, dim)
    nn.init.normal_(table.weight, std=0.05)
    with torch.no_grad():
        table.weight[:unknown] = 0
    return table


def _without(features: FeatureSchema, *names: str) -> FeatureSchema:
    return FeatureSchema(tuple(f for f in features.features if f.name not in names))


def _deep(width: int, shape: Shape) -> nn.Module | None:
    """A stack to a vector; None where there is nothing that it could add."""
    if width == shape.dim and not shape.hidden:
        return None
    layers = stack(width, shape.hidden, norm="none", activation="relu", dropout=shape.dropout)
    last = nn.Linear((width, *shape.hidden)[-1], shape.dim)
    return nn.Sequential(*layers, last)
