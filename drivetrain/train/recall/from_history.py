"""Scores as sums over a profile: of weights between all items, or of each one's neighbours."""

import numpy as np

from drivetrain.core.batch import Array
from drivetrain.train.recall.graph import Asked, Score, Scorer, popular
from drivetrain.train.recall.interactions import Interactions
from drivetrain.train.recall.method import FromHistory
from drivetrain.train.recall.nodes import Nodes


def scorer(method: FromHistory, score: Score) -> Scorer:
    """Such a method goes through one profile after another."""
    return Scorer(
        score=score, part=1, weighted=method.weight is not None and method.history is None
    )


def by_weights(found: Interactions, weights: Array, spare: int) -> Score:
    """The sum of rows of float32 ``[items, items]``."""
    nothing = np.zeros((1, spare), np.float32)

    def score(n: Nodes, asked: Asked) -> str:
        profile, each = _profile(n, asked, len(found.catalogue))
        rows = n.op("Gather", n.held(weights), profile)
        if each:
            rows = n.op("Mul", rows, n.op("Unsqueeze", each, n.ints(1)))
        sums = n.op("ReduceSum", rows, n.ints(0), keepdims=1)
        sums = n.op("Concat", sums, n.held(nothing), axis=1)
        return popular(n, found.counts, spare, asked, sums)

    return score


def by_neighbours(found: Interactions, numbers: Array, values: Array, spare: int) -> Score:
    """The sum of each item's neighbours: int32 and float32 ``[items, neighbours]``."""
    items = len(found.catalogue)

    def score(n: Nodes, asked: Asked) -> str:
        profile, each = _profile(n, asked, items)
        near = n.op("Gather", n.held(values), profile)
        if each:
            near = n.op("Mul", near, n.op("Unsqueeze", each, n.ints(1)))
        where = n.op("Reshape", n.op("Gather", n.held(numbers), profile), n.ints(1, -1))
        sums = n.op(
            "ScatterElements",
            n.held(np.zeros((1, items + spare), np.float32)),
            where,
            n.op("Reshape", near, n.ints(1, -1)),
            axis=1,
            reduction="add",
        )
        return popular(n, found.counts, spare, asked, sums)

    return score


def by_vectors(
    found: Interactions, vectors: Array, spare: int, common: Array | None = None
) -> Score:
    """The mean product with each item's vector: float32 ``[items, width]``.

    The profile's mean is taken less ``common``, where that is given: ``[width]``.
    """
    items, width = vectors.shape
    held = np.concatenate([vectors, np.zeros((spare, width), np.float32)])

    def score(n: Nodes, asked: Asked) -> str:
        every = n.held(held)
        profile, each = _profile(n, asked, items)
        rows = n.op("Gather", every, profile)
        whole = n.op("Cast", n.op("Shape", profile), to=1)
        if each:
            rows = n.op("Mul", rows, n.op("Unsqueeze", each, n.ints(1)))
            whole = n.op("ReduceSum", each, n.ints(0), keepdims=1)
        some = n.op("Max", whole, n.held(np.array(1e-12, np.float32)))
        mean = n.op("Div", n.op("ReduceSum", rows, n.ints(0), keepdims=1), some)
        if common is not None:
            mean = n.op("Sub", mean, n.held(common[None].astype(np.float32)))
        return popular(n, found.counts, spare, asked, n.op("Gemm", mean, every, transB=1))

    return score


def _profile(n: Nodes, asked: Asked, items: int) -> tuple[str, str]:
    """The one row's items, each once, and their weights where they have any."""
    had = n.op("Reshape", asked.had, n.ints(-1))
    if asked.once:
        return had, n.op("Reshape", asked.weights, n.ints(-1)) if asked.weights else ""
    each_once = n.op("Unique", had)
    known = n.op("Less", each_once, n.ints(items))
    return n.op("Compress", each_once, known, axis=0), ""
