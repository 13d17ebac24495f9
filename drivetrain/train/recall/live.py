"""The tensors of a factorization that goes on to learn while it is served."""

from typing import TYPE_CHECKING

import numpy as np

from drivetrain.core.batch import Array
from drivetrain.core.errors import wrong
from drivetrain.core.learner_tensors import (
    CATALOGUE,
    FOUND,
    FOUND_SCORES,
    HAD,
    ITEM_COUNTS,
    ITEMS,
    NEW,
    SPEC,
    USER,
    USER_COUNTS,
    USER_FACTORS,
    USERS,
)
from drivetrain.core.online import Online, Spec
from drivetrain.core.schema import MISSING_INT, Field
from drivetrain.core.seams import Examples
from drivetrain.train.recall.graph import Asked, Serving
from drivetrain.train.recall.interactions import FIRST_USER, Interactions, aligned
from drivetrain.train.recall.nodes import Nodes

if TYPE_CHECKING:
    from drivetrain.train.als import ALS

FEW = 16
"""Rows up to which reading the items once costs less than packing them; from 32 on it costs more
to turn the scores."""


def live(
    method: "ALS",
    online: Online,
    source: Examples,
    found: Interactions,
    served: Serving,
    asking: Array,
    answering: Array,
) -> dict[str, Array]:
    """The initializers that :class:`drivetrain.core.learner.Learner` reads, by their names.

    Args:
        method: its target and objective.
        online: how it learns.
        source: the training rows, for who their users are.
        found: the same, as it was read.
        served: has room for new items.
        asking: float32 ``[users, factors + 1]``.
        answering: float32 ``[items, factors + 1]``.

    Raises:
        ValueError: users or items are of a type that cannot be told of, or several users share a
            row.
    """
    raw = user_field(method, source)
    text = found.catalogue.dtype == object
    beyond = len(found.catalogue) + served.room
    places = len(found.catalogue) + served.spare(found)
    items = np.zeros((places, answering.shape[1]), np.float32)
    items[: len(answering)] = answering
    nothing = "" if text else MISSING_INT
    spec = Spec(
        user=raw.name,
        item=method.target,
        user_type=raw.dtype,
        item_type="string" if text else "int64",
        alpha=method.alpha,
        l2=method.l2,
        online=online,
    )
    found_before = served.out is found.had and served.history is None
    findings = {
        FOUND: np.full((1, served.k), -1, np.int64),
        FOUND_SCORES: np.full((1, served.k), -np.inf, np.float32),
    }
    return {
        **(findings if found_before else {}),
        SPEC: np.array(spec.to_json(), object),
        USER: np.full((1, asking.shape[1]), np.nan, np.float32),
        HAD: np.full((1, online.recent), beyond, np.int64),
        ITEMS: items,
        NEW: np.full(places - len(found.catalogue), nothing, found.catalogue.dtype),
        CATALOGUE: found.catalogue,
        USERS: users_of(source, raw, served.column, found),
        USER_FACTORS: asking,
        USER_COUNTS: found.had.lengths.astype(np.int64),
        ITEM_COUNTS: found.had.turned.lengths.astype(np.int64),
    }


def score(n: Nodes, asked: Asked) -> str:
    """Products of the live row of who asks, or else of their trained one, and the live items."""
    trained = n.op("Gather", USER_FACTORS, asked.user)
    row = asked.rows[USER]
    who = n.op("Where", n.op("IsNaN", row), trained, row)
    rows = n.op("Shape", who, start=0, end=1)
    few = n.op("And", n.op("Greater", rows, n.ints(1)), n.op("Less", rows, n.ints(FEW + 1)))
    (scores,) = n.either(
        few, lambda n: [_of_few(n, who)], lambda n: [n.op("Gemm", who, ITEMS, transB=1)]
    )
    return scores


def _of_few(n: Nodes, who: str) -> str:
    """The same products from the items' side.

    ONNX Runtime packs the second matrix of a product, and one that may change in every run: from
    this side that are the few rows, and the items are read once. One row alone is not packed.
    """
    columns = n.op("Transpose", who, perm=[1, 0])
    return n.op("Transpose", n.op("MatMul", ITEMS, columns), perm=[1, 0])


def user_field(method: "ALS", source: Examples) -> Field:
    """The raw column that says who a user is.

    Raises:
        ValueError: it is no single column of text or integers.
    """
    column = method.user_column(source.features)
    features = [f for f in source.features.of("index") for _ in range(f.width)]
    names = features[column].columns
    where = f"{type(method).__name__}.online, feature {features[column].name!r}"
    if len(names) != 1:
        raise wrong(where, names, "an Index of one column: events name a user by it")
    field = source.events.schema.field(names[0], where)
    if field.dtype not in ("string", "int64") or field.shape:
        raise wrong(f"{where}, column {field.name!r}", field.dtype, "string or int64")
    return field


def users_of(source: Examples, raw: Field, column: int, found: Interactions) -> Array:
    """Who each position of the users' index is, int64 or object; missing where it is nobody.

    Raises:
        ValueError: several users share a position.
    """
    nobody: str | int = "" if raw.dtype == "string" else MISSING_INT
    users = np.full(found.had.rows, nobody, object if raw.dtype == "string" else np.int64)
    for position, batch in aligned(source, column, "train"):
        known = position >= FIRST_USER
        at, who = position[known], batch[raw.name][known]
        new = users[at] == nobody
        users[at[new]] = who[new]
        other = np.flatnonzero(users[at] != who)
        if len(other):
            pair = (users[at[other[0]]], who[other[0]])
            raise wrong(
                f"online, column {raw.name!r}",
                f"{pair[0]!r} and {pair[1]!r} at one position",
                "a position for each user, as Index gives them",
            )
    return users
