"""Rows within a graph: tensors cut into parts, and lists of unlike lengths side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from drivetrain.train.recall.interactions import Sparse
from drivetrain.train.recall.nodes import Nodes


@dataclass(frozen=True)
class Cut:
    """Cuts tensors into ``parts`` of ``part`` rows each, ``more`` rows filling the last one up."""

    nodes: Nodes
    parts: str
    part: str
    more: str

    def slices(self, tensor: str, shape: Sequence[int | None], fill: str = "") -> str:
        """``[rows, *shape]`` to ``[parts, part, *shape]``; what is filled up is 0 or ``fill``."""
        n, inner = self.nodes, [0] * len(shape)
        pads = n.op("Concat", n.ints(0, *inner), self.more, *[n.ints(0)] * len(shape), axis=0)
        padded = n.op("Pad", tensor, pads, *[fill] * bool(fill))
        ends = [n.op("Shape", tensor, start=1)] if shape else []
        return n.op("Reshape", padded, n.op("Concat", self.parts, self.part, *ends, axis=0))


class Lists:
    """A compressed matrix in the graph, whose rows come side by side.

    Args:
        nodes: of the graph.
        matrix: the rows.
        weighted: whether their weights are in it too.
        names: of the initializers, where a learner reads them.
    """

    def __init__(
        self,
        nodes: Nodes,
        matrix: Sparse,
        *,
        weighted: bool = False,
        names: tuple[str, str] = ("", ""),
    ) -> None:
        # The entry behind the last one stands for nothing had.
        columns = np.append(matrix.columns, np.int32(matrix.wide))
        weights = np.append(matrix.weights, np.float32(0))
        self._starts = nodes.held(matrix.starts, names[0])
        self._columns = nodes.held(columns, names[1])
        self._weights = nodes.held(weights) if weighted else ""
        self._behind = nodes.held(np.array(len(matrix.columns), np.int64))
        self._zero, self._one = (nodes.held(np.array(x, np.int64)) for x in (0, 1))

    def of(self, n: Nodes, row: str) -> tuple[str, str, str]:
        """Columns ``[part, longest]``, ``wide`` beyond a row's end; weights; lengths ``[part, 1]``.

        Args:
            n: takes the nodes.
            row: int64 ``[part]``.
        """
        start = n.op("Gather", self._starts, row)
        end = n.op("Gather", self._starts, n.op("Add", row, n.ints(1)))
        length = n.op("Unsqueeze", n.op("Sub", end, start), n.ints(1))
        longest = n.op("ReduceMax", length, keepdims=0)
        step = n.op("Unsqueeze", n.op("Range", self._zero, longest, self._one), n.ints(0))
        at = n.op("Add", n.op("Unsqueeze", start, n.ints(1)), step)
        at = n.op("Where", n.op("Less", step, length), at, self._behind)
        had = n.op("Cast", n.op("Gather", self._columns, at), to=7)
        return had, n.op("Gather", self._weights, at) if self._weights else "", length
