"""What a ranker is told of candidates, as a graph."""

import numpy as np
import pytest

from drivetrain.apps.recommender.candidates import Recalled
from drivetrain.core.batch import Batch
from drivetrain.core.schema import Dtype, Field
from drivetrain.models.list_ranking import HISTORY
from drivetrain.train.recall.graph import Asked, Scorer, Serving
from drivetrain.train.recall.interactions import Interactions, Sparse
from drivetrain.train.recall.nodes import Nodes

CATALOGUE = {
    "string": np.array(["film c", "film a", "film b"], object),
    "int64": np.array([30, 10, 20]),
}
LAST = {
    "string": np.array([["film b", "film c"], ["", "film z"]], object),
    "int64": np.array([[20, 30], [np.iinfo(np.int64).min, 99]]),
}


def alike(n: Nodes, asked: Asked) -> str:
    """A method to which all items are one."""
    one = n.held(np.ones((1, 4), np.float32))
    rows = n.op("Shape", asked.user)
    return n.op("Expand", one, n.op("Concat", rows, n.ints(4), axis=0))


@pytest.mark.parametrize("kind", ["string", "int64"])
@pytest.mark.parametrize("recalled_from", ["last", "other", None])
def test_a_history_is_told_by_places_from_1_and_looked_up_once(
    kind: Dtype, recalled_from: str | None
) -> None:
    nobody = Sparse(np.zeros(4, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32), 3)
    found = Interactions(CATALOGUE[kind], np.array([3, 2, 1]), nobody)
    history = None if recalled_from is None else Field(recalled_from, kind, (2,))
    serving = Serving(index=Field("index", "int64", (1,)), column=0, k=2, out=None, history=history)
    recalled = Recalled(serving, found, Scorer(score=alike), Field("last", kind, (2,)))
    graph = recalled.graph()
    columns = {"index": np.zeros((2, 1), np.int64), "last": LAST[kind], "other": LAST[kind][::-1]}
    given = Batch({field.name: columns[field.name] for field in recalled.inputs})
    assert graph.run(given)[HISTORY].tolist() == [[3, 1], [0, 0]]
    lookups = [node.input[0] for node in graph.proto.graph.node if node.op_type == "LabelEncoder"]
    assert sorted(lookups) == sorted({"last", recalled_from or "last"})
