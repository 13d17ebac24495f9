"""How index, bag, dense and tensor features become vectors: the first layer of every model."""

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from drivetrain.core.errors import unknown, wrong
from drivetrain.core.schema import FeatureSchema
from drivetrain.models.attention import HistoryPool, columns_of
from drivetrain.models.factories import MLP, DCNv2, FinalNet, MaskNet, WideAndDeep
from drivetrain.models.options import Attention

Embedded: TypeAlias = MLP | WideAndDeep | DCNv2 | FinalNet | MaskNet
"""Declarations with every option of :class:`Inputs`."""


class Tables(nn.Module):
    """Every index column and every bag as a vector of one width, out of one table.

    One table with offsets makes one gather (and one gradient) of dozens. A bag is the mean of
    its values' vectors, or pooled by attention; the id 0 pads a bag and an empty bag is the zero
    vector. A history that an item attends to has the item's rows of the table.

    Args:
        features: the fitted features.
        dim: the width of a vector.
        columns: the columns of the block ``index`` to embed; None takes all.
        bags: the names of the bags to embed; None takes all.
        dropout: the share of whole vectors that is dropped in training, as if a feature were
            not known; the others are scaled up.
        attention: for the bags among these whose item is one of the columns.
    """

    def __init__(
        self,
        features: FeatureSchema,
        dim: int,
        columns: Sequence[int] | None = None,
        bags: Sequence[str] | None = None,
        dropout: float = 0.0,
        attention: Sequence[Attention] = (),
    ) -> None:
        super().__init__()
        cardinalities = features.cardinalities
        chosen = range(len(cardinalities)) if columns is None else columns
        self.bags = {b.name: 0 for b in features.of("bag") if bags is None or b.name in bags}
        sizes = [cardinalities[column] for column in chosen]
        offsets = [sum(sizes[:position]) for position in range(len(sizes))]
        total = sum(sizes)
        of_items = columns_of(attention, features)
        self.items = {name: chosen.index(of_items[name]) for name in self.bags if name in of_items}
        for name in self.bags:
            if name in self.items:
                self.bags[name] = offsets[self.items[name]]
                continue
            self.bags[name] = total
            total += features.field(name).cardinality
        self.pools = nn.ModuleDict(
            {one.history: HistoryPool(dim, one) for one in attention if one.history in self.items}
        )
        self.dim = dim
        self.fields = len(sizes) + len(self.bags)
        self.columns = None if len(sizes) == len(cardinalities) else list(chosen)
        self.offsets: Tensor
        self.register_buffer("offsets", torch.tensor(offsets, dtype=torch.int64), persistent=False)
        self.table = nn.Embedding(total, dim) if self.fields else None
        if self.table is not None:
            nn.init.normal_(self.table.weight, std=0.05)
        # Dropout1d drops channels of [rows, channels, length]: here the vectors of fields.
        self.dropout = nn.Dropout1d(dropout) if dropout else None

    def lookups(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """The rows of the table that :meth:`forward` takes: the index columns', then each bag's."""
        found: list[Tensor] = []
        if len(self.offsets):
            index = inputs["index"]
            if self.columns is not None:
                index = index[:, self.columns]
            found.append(index + self.offsets)
        found.extend(inputs[name] + offset for name, offset in self.bags.items())
        return found

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Vectors ``[rows, fields, dim]`` from the named input tensors."""
        assert self.table is not None, "there is nothing to embed"
        vectors = [self.table(ids) for ids in self.lookups(inputs)]
        for number, name in enumerate(self.bags, start=len(vectors) - len(self.bags)):
            there = inputs[name] != 0
            if name in self.items:
                item = vectors[0][:, self.items[name]]
                vectors[number] = self.pools[name](vectors[number], item, there)
                continue
            present = there.unsqueeze(2).to(vectors[number].dtype)
            total = (vectors[number] * present).sum(1, keepdim=True)
            vectors[number] = total / present.sum(1, keepdim=True).clamp(min=1)
        joined = vectors[0] if len(vectors) == 1 else torch.cat(vectors, 1)
        return joined if self.dropout is None else self.dropout(joined)


class PeriodicColumns(nn.Module):
    """Each dense column as a linear map of sines and cosines of learned frequencies.

    Args:
        columns: the width of the block ``dense``.
        frequencies: learned frequencies a column.
        sigma: the standard deviation of the initial frequencies.
        dim: the width of a column's embedding.
    """

    def __init__(self, columns: int, frequencies: int, sigma: float, dim: int) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(torch.randn(columns, frequencies) * sigma)
        bound = 1 / math.sqrt(2 * frequencies)
        self.weight = nn.Parameter(torch.empty(columns, 2 * frequencies, dim))
        self.bias = nn.Parameter(torch.empty(columns, dim))
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, dense: Tensor) -> Tensor:
        """Embeddings ``[rows, columns * dim]`` of numbers ``[rows, columns]``."""
        angle = 2 * math.pi * self.frequencies * dense.unsqueeze(2)
        waves = torch.cat([torch.cos(angle), torch.sin(angle)], 2)
        # One small matrix for each column: a product batched over columns.
        product = torch.bmm(waves.transpose(0, 1), self.weight).transpose(0, 1)
        return torch.relu(product + self.bias).flatten(1)


class Inputs(nn.Module):
    """Every feature side by side in one vector: numbers, embeddings, flattened tensors.

    Args:
        features: the fitted features.
        dim: the width of an embedding.
        dims: other widths for the index and bag features named here.
        numeric: a module for the block ``dense`` that answers ``numeric_width`` columns;
            None passes the numbers on.
        dropout: the share of values dropped in training.
        field_dropout: the share of whole embeddings dropped in training.
        skip: bags and tensor features that come in another way.
        attention: how histories are pooled.

    Attributes:
        width: the length of the vector.
        spans: where the embeddings of each width lie in it: first column, fields, width of one.
    """

    def __init__(
        self,
        features: FeatureSchema,
        dim: int,
        dims: Mapping[str, int] | None = None,
        *,
        numeric: nn.Module | None = None,
        numeric_width: int = 0,
        dropout: float = 0.0,
        field_dropout: float = 0.0,
        skip: Sequence[str] = (),
        attention: Sequence[Attention] = (),
    ) -> None:
        super().__init__()
        self.dense = features.dense_width > 0
        self.numeric = numeric if self.dense else None
        tables = [
            Tables(features, width, columns, bags, field_dropout, attention)
            for width, columns, bags in _groups(features, dim, dims or {}, skip, attention)
        ]
        self.tables = nn.ModuleList(tables)
        self.flat = [f.name for f in features.of("tensor") if f.name not in skip]
        self.dropout = nn.Dropout(dropout) if dropout else None
        width = features.dense_width if self.numeric is None else numeric_width
        spans: list[tuple[int, int, int]] = []
        for table in tables:
            spans.append((width, table.fields, table.dim))
            width += table.fields * table.dim
        self.spans = tuple(spans)
        width += sum(math.prod(features.field(name).shape) for name in self.flat)
        self.width: int = width

    @classmethod
    def of(
        cls,
        features: FeatureSchema,
        config: Embedded,
        *,
        numeric: nn.Module | None = None,
        numeric_width: int = 0,
    ) -> "Inputs":
        """As the declaration of a model says; ``numeric`` as above."""
        return cls(
            features,
            config.dim,
            config.dims,
            numeric=numeric,
            numeric_width=numeric_width,
            dropout=config.embedding_dropout,
            field_dropout=config.field_dropout,
            attention=config.attention,
        )

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """One vector a row, ``[rows, width]``, from the named input tensors."""
        parts: list[Tensor] = []
        if self.dense:
            dense = inputs["dense"]
            parts.append(dense if self.numeric is None else self.numeric(dense))
        parts.extend(table(inputs).flatten(1) for table in self.tables)
        parts.extend(inputs[name].flatten(1) for name in self.flat)
        joined = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        return joined if self.dropout is None else self.dropout(joined)


def _groups(
    features: FeatureSchema,
    dim: int,
    dims: Mapping[str, int],
    skip: Sequence[str],
    attention: Sequence[Attention],
) -> list[tuple[int, list[int], list[str]]]:
    """The columns of ``index`` and the bags that share a width: one table for each width."""
    bags = [bag for bag in features.of("bag") if bag.name not in skip]
    embedded = [*features.of("index"), *bags]
    for name in dims:
        if name not in {feature.name for feature in embedded}:
            raise unknown("index or bag feature", name, [f.name for f in embedded], "dims")
    items = {one.history: one.item for one in attention}
    groups: dict[int, tuple[list[int], list[str]]] = {}
    column = 0
    for feature in embedded:
        width = dims.get(items.get(feature.name, feature.name), dim)
        if dims.get(feature.name, width) != width:
            allowed = f"{width}, the width of {items[feature.name]!r}, whose vectors it has"
            raise wrong(f"dims[{feature.name!r}]", dims[feature.name], allowed)
        columns, bags = groups.setdefault(width, ([], []))
        if feature.kind == "bag":
            bags.append(feature.name)
        else:
            columns.extend(range(column, column + feature.width))
            column += feature.width
    return [(width, columns, bags) for width, (columns, bags) in groups.items()]


class Linear(nn.Module):
    """A generalised linear model over every feature: the wide part, and a whole model by itself.

    Args:
        features: the fitted features.
        outputs: logits a row.
    """

    def __init__(self, features: FeatureSchema, outputs: int) -> None:
        super().__init__()
        self.weights = Tables(features, outputs)
        if self.weights.table is not None:
            nn.init.zeros_(self.weights.table.weight)
        self.flat = [f.name for f in features.of("tensor")]
        width = features.dense_width + sum(math.prod(f.shape) for f in features.of("tensor"))
        self.dense = features.dense_width > 0
        self.linear = nn.Linear(width, outputs, bias=False) if width else None
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Logits ``[rows, outputs]``."""
        logits = self.bias
        if self.linear is not None:
            parts = [inputs["dense"]] if self.dense else []
            parts += [inputs[name].flatten(1) for name in self.flat]
            logits = logits + self.linear(torch.cat(parts, 1) if len(parts) > 1 else parts[0])
        if self.weights.table is not None:
            logits = logits + self.weights(inputs).sum(1)
        return logits
