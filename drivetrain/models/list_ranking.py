"""Ranks lists: any model of single candidates over the candidates of each row."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from drivetrain.core.schema import FeatureField, FeatureSchema
from drivetrain.models.bind import build

if TYPE_CHECKING:
    from drivetrain.core.batch import Array
    from drivetrain.core.seams import ModelFactory

PLACES, RECALL, HISTORY, ITEM = "places", "recall", "history", "item"
"""Tensors of a list: candidates as places in the catalogue, what recall says of each, and the last
items of who asks. A model sees the features ``recall``, ``history`` and ``item``."""


@dataclass(frozen=True, eq=False)
class Items:
    """The attributes of all items as a model takes them.

    Attributes:
        count: how many items there are.
        features: what is known of each.
        tensors: ``[items + 1, …]`` each, in the catalogue's order; the last row is of no item.
    """

    count: int
    features: FeatureSchema
    tensors: Mapping[str, "Array"]

    def __len__(self) -> int:
        return self.count


@dataclass(frozen=True)
class Shape:
    """What a list looks like.

    Attributes:
        asked: the features of who asks that candidates are ranked by.
        candidates: of a list.
        recall: numbers that recall gives each; the first is the score that it ordered them by.
        history: how many last items; 0 for none.
    """

    asked: FeatureSchema
    candidates: int
    recall: int
    history: int

    def lists(self, items: int) -> FeatureSchema:
        """The features of a list, which a row of the ranker's examples is."""
        found = [*self.asked.features]
        found.append(_bag(PLACES, self.candidates, items + 1))
        if self.history:
            found.append(_bag(HISTORY, self.history, items + 1))
        shape = (self.candidates, self.recall)
        return FeatureSchema((*found, FeatureField(name=RECALL, kind="tensor", shape=shape)))

    def candidate(self, items: Items) -> FeatureSchema:
        """The features of one candidate: of who asks, of the item, and what recall says."""
        size = len(items) + 1
        found = [*self.asked.features, *items.features.features]
        found.append(FeatureField(name=ITEM, kind="index", cardinality=size))
        if self.history:
            found.append(_bag(HISTORY, self.history, size))
        found.append(FeatureField(name=RECALL, kind="dense", width=self.recall))
        return FeatureSchema(tuple(found))


def _bag(name: str, width: int, cardinality: int) -> FeatureField:
    return FeatureField(name=name, kind="bag", width=width, cardinality=cardinality)


class Ranking(nn.Module):
    """Scores the candidates of each row: what recall thought of them, and what a model adds.

    A score is ``scale * r + gain * f``: ``r`` is the score by which recall ordered them, ``f``
    the model's. Both factors are learnt; at the start the order is recall's but for little.

    Args:
        factory: makes the model.
        shape: of a list.
        items: the attributes of all items.
        seed: of the model's initial weights.
    """

    def __init__(self, factory: "ModelFactory", shape: Shape, items: Items, seed: int) -> None:
        super().__init__()
        self.features = shape.lists(len(items))
        self.model = build(factory, shape.candidate(items), seed)
        self.asked = shape.asked
        self.items = len(items)
        self.names = self.features.tensors.names
        self.of_items = {name: f"item_{number}" for number, name in enumerate(items.tensors)}
        for name, key in self.of_items.items():  # they are data, and in no checkpoint
            self.register_buffer(key, torch.from_numpy(items.tensors[name]), persistent=False)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.gain = nn.Parameter(torch.tensor(0.1))

    def forward(self, *tensors: Tensor) -> Tensor:
        """Scores ``[rows, candidates]``, or ``[rows, members, candidates]`` of an ensemble.

        Args:
            tensors: one for each of ``features.tensors``; a place behind the last item is empty.
        """
        given = dict(zip(self.names, tensors, strict=True))
        recall = given[RECALL]
        candidates = recall.shape[1]
        flat = self._candidates(given)
        found = self.model(*[flat[name] for name in self.model.features.tensors.names])
        if found.dim() == 1:
            found = found.view(-1, candidates)
            return self.scale * recall[..., 0] + self.gain * found
        found = found.view(-1, candidates, found.shape[1]).transpose(1, 2)
        return self.scale * recall[..., 0].unsqueeze(1) + self.gain * found

    def _candidates(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of single candidates, those of one list side by side."""
        places, recall = given[PLACES], given[RECALL]
        count = places.shape[1]

        def each(tensor: Tensor) -> Tensor:
            """What is said of a row, for each of its candidates."""
            apart = tensor.unsqueeze(1)
            return apart.expand(-1, count, *tensor.shape[1:]).flatten(0, 1)

        found = {name: each(given[name]) for name in self.asked.tensors.names}
        if HISTORY in given:
            found[HISTORY] = each(given[HISTORY])
        flat = places.flatten()
        identity = (flat + 1) * (flat < self.items)
        parts = {
            "dense": [*_there(found, "dense")],
            "index": [*_there(found, "index")],
        }
        for name, key in self.of_items.items():
            taken = getattr(self, key)[flat]
            if name in parts:
                parts[name].append(taken)
            else:
                found[name] = taken
        parts["dense"].append(recall.flatten(0, 1))
        parts["index"].append(identity.unsqueeze(1))
        return found | {name: torch.cat(tensors, 1) for name, tensors in parts.items()}


def _there(found: Mapping[str, Tensor], name: str) -> list[Tensor]:
    return [found[name]] if name in found else []
