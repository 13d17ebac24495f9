"""Histories: the positions that an index gives the same values, in bags."""

from typing import Any

import numpy as np
import pytest

from drivetrain.core.batch import Batch
from drivetrain.core.measured import measure
from drivetrain.core.schema import MISSING_INT, Field, Schema
from drivetrain.core.values import column_of
from drivetrain.features.categorical import Index
from drivetrain.features.compile import compile
from drivetrain.features.history import History
from drivetrain.models import MLP, Attention
from drivetrain.models.bind import build

SCHEMA = Schema(
    (
        Field("item", "int64"),
        Field("title", "string"),
        Field("recent", "int64", (3,)),
        Field("titles", "string", (2,)),
        Field("free", "int64", (None,)),
    )
)
ITEM = Index("item", size=3)
TRAIN = Batch({"item": np.array([7, 7, 7, 5, 5, 9, 9, 2])})


def compiled(*features: Any, train: Batch = TRAIN) -> tuple[Any, Any]:
    fitted = {s: measure(s, train) for feature in features for s in feature.statistics()}
    return compile(list(features), SCHEMA, fitted)


def test_a_value_has_the_position_that_its_index_gives_it_and_what_is_missing_is_padding() -> None:
    graph, fields = compiled(ITEM, History("recent", like=ITEM))
    history = fields.field("recent_history")
    assert (history.kind, history.width) == ("bag", 3)
    assert history.cardinality == fields.cardinalities[0] == 5
    recent = np.array([[7, 5, 9], [2, 7, MISSING_INT], [MISSING_INT] * 3, [8, -1, 5]])
    found = graph.run(Batch({"item": np.array([7, 5, 2, MISSING_INT]), "recent": recent}))
    assert found["index"][:, 0].tolist() == [2, 3, 1, 0]
    assert found["recent_history"].tolist() == [[2, 3, 4], [1, 2, 0], [0, 0, 0], [1, 1, 3]]


def test_texts_are_histories_too() -> None:
    title = Index("title")
    train = Batch({"title": column_of(["b", "a", "b"], SCHEMA.field("title"))})
    graph, _ = compiled(History("titles", like=title, name="seen"), train=train)
    seen = np.array([["a", "b"], ["", "c"]], object)
    assert graph.run(Batch({"titles": seen}))["seen"].tolist() == [[3, 2], [0, 1]]


def test_an_item_can_attend_to_it() -> None:
    _, fields = compiled(ITEM, History("recent", like=ITEM))
    attention = (Attention(history="recent_history", item="item_index"),)
    module: Any = build(MLP(attention=attention), fields).module
    assert module.inputs.tables[0].table.num_embeddings == 5


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: compiled(History("item", like=ITEM)), r"found \(\), allowed: \[n\] values a row"),
        (lambda: compiled(History("free", like=ITEM)), r"found \(None,\), allowed: \[n\] values"),
        (lambda: compiled(History("titles", like=ITEM)), "found 'string', allowed: int64, as col"),
        (lambda: History("recent", like="item"), "History.*: like"),  # pyright: ignore
    ],
)
def test_what_is_no_history_of_the_index_is_named(make: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()
