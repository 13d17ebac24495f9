"""Lists are ranked candidate by candidate, whatever else is in the list."""

import numpy as np
import pytest
import torch

from drivetrain.core.schema import FeatureField, FeatureSchema
from drivetrain.models import MLP, Attention, DCNv2
from drivetrain.models.list_ranking import HISTORY, PLACES, RECALL, Items, Ranking, Shape
from drivetrain.train.export import export

ITEMS, CANDIDATES = 6, 4
ASKED = FeatureSchema(
    (
        FeatureField(name="age", kind="dense"),
        FeatureField(name="country", kind="index", cardinality=3),
        FeatureField(name="words", kind="bag", width=2, cardinality=5),
    )
)
OF_ITEMS = FeatureSchema(
    (
        FeatureField(name="year", kind="dense", width=2),
        FeatureField(name="studio", kind="index", cardinality=4),
        FeatureField(name="genres", kind="bag", width=3, cardinality=7),
    )
)
MODELS = {
    "attention": DCNv2(dim=4, hidden=(8,), attention=(Attention(history="history", item="item"),)),
    "members": MLP(dim=4, hidden=(8,), members=3),
}


def items() -> Items:
    random = np.random.default_rng(0)
    tensors = {
        "dense": random.normal(size=(ITEMS + 1, 2)).astype(np.float32),
        "index": random.integers(0, 4, (ITEMS + 1, 1)),
        "genres": random.integers(0, 7, (ITEMS + 1, 3)),
    }
    return Items(ITEMS, OF_ITEMS, tensors)


def lists(rows: int) -> dict[str, torch.Tensor]:
    random = np.random.default_rng(1)
    found = {
        "dense": random.normal(size=(rows, 1)).astype(np.float32),
        "index": random.integers(0, 3, (rows, 1)),
        "words": random.integers(0, 5, (rows, 2)),
        PLACES: random.integers(0, ITEMS + 1, (rows, CANDIDATES)),
        HISTORY: random.integers(0, ITEMS + 1, (rows, 5)),
        RECALL: random.normal(size=(rows, CANDIDATES, 3)).astype(np.float32),
    }
    return {name: torch.from_numpy(array) for name, array in found.items()}


def ranking(name: str) -> Ranking:
    return Ranking(MODELS[name], Shape(ASKED, CANDIDATES, 3, 5), items(), seed=0).eval()


@pytest.mark.parametrize("name", MODELS)
def test_a_score_is_recall_and_what_the_model_says_of_the_candidate_alone(name: str) -> None:
    module, given, held = ranking(name), lists(3), items()
    with torch.no_grad():
        found = module(*[given[n] for n in module.features.tensors.names])
        assert found.shape == ((3, CANDIDATES) if name == "attention" else (3, 3, CANDIDATES))
        for row in range(3):
            for column in range(CANDIDATES):
                place = int(given[PLACES][row, column])
                recall = given[RECALL][row : row + 1, column]
                own = {
                    n: torch.from_numpy(held.tensors[n][place : place + 1]) for n in held.tensors
                }
                identity = torch.tensor([[(place + 1) * (place < ITEMS)]])
                alone = {
                    "dense": torch.cat([given["dense"][row : row + 1], own["dense"], recall], 1),
                    "index": torch.cat([given["index"][row : row + 1], own["index"], identity], 1),
                    "genres": own["genres"],
                    **{n: given[n][row : row + 1] for n in ("words", HISTORY)},
                }
                names = module.model.features.tensors.names
                due = recall[0, 0] + 0.1 * module.model(*[alone[n] for n in names])
                torch.testing.assert_close(found[row, ..., column], due.squeeze(0))


@pytest.mark.parametrize("name", MODELS)
def test_the_graph_ranks_as_the_module_does(name: str) -> None:
    module = ranking(name)
    graph = export(module, module.features, lambda scores: {"had": scores})
    assert set(graph.inputs.names) == {"dense", "index", "words", PLACES, HISTORY, RECALL}
    assert not [name for name in module.state_dict() if "item_" in name], "data is in no checkpoint"


def test_all_that_is_learnt_gets_gradients() -> None:
    module, given = ranking("attention").train(), lists(8)
    scores = module(*[given[n] for n in module.features.tensors.names])
    # Of no loss that only compares candidates: what all of them share has no gradient there.
    scores.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in module.parameters())
