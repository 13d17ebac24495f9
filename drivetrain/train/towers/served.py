"""The nodes of two towers: the user's as it was exported, and a product with the vectors of all."""

import numpy as np
import torch

from drivetrain.core.batch import Array
from drivetrain.core.graph import Graph
from drivetrain.core.seams import Examples
from drivetrain.train.export import export
from drivetrain.train.recall.graph import Asked, Score, Scorer
from drivetrain.train.recall.interactions import Interactions
from drivetrain.train.recall.nodes import Nodes
from drivetrain.train.towers.pairs import HISTORY
from drivetrain.train.towers.towers import Towers

_VECTOR = "vector"


def scorer(
    towers: Towers, source: Examples, found: Interactions, known: Array, spare: int, scale: float
) -> Scorer:
    """How fitted towers score: a logit of the softmax over all items, or how often it was had.

    Args:
        towers: on the CPU.
        source: whose tensors the graph takes.
        found: the training rows.
        known: bool ``[users]``: who has training rows.
        spare: columns of scores behind the items.
        scale: of the products.
    """
    user = towers.user
    graph = export(user, user.features, lambda vector: {_VECTOR: vector})
    vectors = towers.item.all().numpy() * np.float32(scale)
    columns = np.zeros((vectors.shape[1] + 2, len(vectors) + spare), np.float32)
    columns[:-2, : len(vectors)] = vectors.T
    # Two more numbers: whom nothing is known of scores every item by how often it was had, and
    # for all others what nothing is known of, new items behind the others too, is lowest.
    columns[-2, : len(vectors)] = found.counts
    silent = np.ones(columns.shape[1], bool)
    silent[: len(vectors)] = (found.counts == 0) & (towers.item.content is None)
    columns[:-2, silent] = 0
    columns[-1, silent] = -np.linalg.norm(vectors, axis=1).max()
    tensors = source.features.tensors
    return Scorer(
        score=_score(graph, len(found.catalogue), known, columns, towers),
        rows=tuple(field for field in tensors if field.name in graph.inputs),
    )


def _score(graph: Graph, items: int, known: Array, columns: Array, towers: Towers) -> Score:
    by_history = towers.user.history is not None
    by_features = towers.user.others is not None

    def score(n: Nodes, asked: Asked) -> str:
        inputs = {name: asked.rows[name] for name in graph.inputs.names if name in asked.rows}
        unknown = n.op("Unsqueeze", n.op("Gather", n.held(~known), asked.user), n.ints(1))
        if by_history:
            # Places from 1, and 0 where there is none that training knows.
            there = n.op("Less", asked.had, n.ints(items))
            after = n.op("Add", asked.had, n.ints(1))
            inputs[HISTORY] = n.op("Where", there, after, n.ints(0))
            none = n.op("Equal", n.op("ReduceMax", inputs[HISTORY], n.ints(1)), n.ints(0))
            unknown = n.op("And", unknown, none)
        vector = n.placed(graph, inputs)[_VECTOR]
        if by_features:
            unknown = n.op("And", unknown, n.held(np.array(False)))
        lost = n.op("Cast", unknown, to=1)
        found = n.op("Sub", n.held(np.array(1, np.float32)), lost)
        whole = n.op("Concat", n.op("Mul", vector, found), lost, found, axis=1)
        return n.op("MatMul", whole, n.held(columns))

    return score


def on_cpu(towers: Towers) -> Towers:
    """The towers where the graph is made, as they are asked."""
    return towers.to(torch.device("cpu")).eval()
