"""Made graphs with a learner, trained by exact least squares on made users of two tastes."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from drivetrain.core import learner as names
from drivetrain.core.learner import Learner
from drivetrain.core.online import Online, Spec
from drivetrain.core.schema import MISSING_INT

ALPHA, L2 = 4.0, 2.0


@dataclass(frozen=True, kw_only=True)
class Made:
    """A trained factorization and what happens after it.

    Attributes:
        users: known ones are ``0 … users - 1``; raw values are ten times that and one.
        items: known ones are ``0 … items - 1``; the raw item 7 is ``"item 7"``.
        events: rows of training, pairs may repeat.
        trained: iterations; 0 leaves items random and users unknown.
    """

    users: int = 30
    items: int = 20
    events: int = 250
    factors: int = 6
    trained: int = 10
    online: Online = Online(capacity=8, recent=64)
    alpha: float = ALPHA
    l2: float = L2
    seed: int = 0

    def pairs(
        self, number: int, seed: int, users: int | None = None, items: int | None = None
    ) -> Any:
        """Different pairs in the order in which they happen, int64 ``[n, 2]``: users of two tastes,
        of whom each has items of their own taste nine times in ten."""
        random = np.random.default_rng((self.seed, seed))
        user = random.integers(0, users or self.users, number)
        item = (random.random(number) ** 1.5 * ((items or self.items) // 2)).astype(int) * 2
        item += np.where(random.random(number) < 0.9, user % 2, 1 - user % 2)
        _, first = np.unique(user * 10_000 + item, return_index=True)
        return np.stack([user, item], axis=1)[np.sort(first)]

    @property
    def trained_pairs(self) -> Any:
        return self.pairs(self.events if self.trained else 0, 1)

    @cache  # noqa: B019 (a handful of values, as long as the tests run)
    def tensors(self) -> dict[str, Any]:
        """The initializers of the graph."""
        d, online = self.factors, self.online
        had = np.zeros((self.users, self.items), bool)
        had[tuple(self.trained_pairs.T)] = True
        random = np.random.default_rng((self.seed, 0))
        y = random.standard_normal((self.items, d)) * 0.1 / d**0.5
        x = np.zeros((self.users, d))
        for _ in range(self.trained):
            x = np.array([solved(y, row, self.alpha, self.l2) for row in had])
            y = np.array([solved(x, row, self.alpha, self.l2) for row in had.T])
        known = had.any(axis=1)
        items = np.zeros((self.items + online.capacity + 2, d + 1), np.float32)
        items[: self.items] = np.concatenate([y, had.sum(axis=0)[:, None]], axis=1)
        catalogue = np.array([f"item {n}" for n in range(self.items)], object)
        nobody = np.eye(1, d + 1, d)
        trained = np.where(known[:, None], np.pad(x, [(0, 0), (0, 1)]), nobody)
        lengths = np.concatenate([[0, 0], had.sum(axis=1)])
        raw = np.where(known, np.arange(self.users) * 10 + 1, MISSING_INT)
        spec = Spec(
            user="who", item="what", user_type="int64", item_type="string",
            alpha=self.alpha, l2=self.l2, online=online,
        )  # fmt: skip
        return {
            names.SPEC: np.array(spec.to_json(), object),
            names.USER: np.full((1, d + 1), np.nan, np.float32),
            names.HAD: np.full((1, online.recent), self.items + online.capacity),
            names.ITEMS: items,
            names.NEW: np.full(online.capacity + 2, "", object),
            names.CATALOGUE: catalogue,
            names.NEW: np.full(online.capacity + 2, "", object),
            names.USERS: np.concatenate([[MISSING_INT] * 2, raw]),
            names.USER_FACTORS: np.concatenate([nobody, nobody, trained]).astype(np.float32),
            names.USER_COUNTS: lengths,
            names.ITEM_COUNTS: had.sum(axis=0),
            names.STARTS: np.concatenate([[0], np.cumsum(lengths)]),
            names.KNOWN: np.append(np.nonzero(had)[1], self.items).astype(np.int32),
        }

    def model(self, **changes: Any) -> bytes:
        """The serialized graph: of initializers alone."""
        held = [numpy_helper.from_array(a, n) for n, a in {**self.tensors(), **changes}.items()]
        live = [
            helper.make_tensor_value_info(t.name, t.data_type, list(t.dims))
            for t in held
            if t.name in names.LIVE
        ]
        out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["rows"])
        return helper.make_model(
            helper.make_graph([], "made", live, [out], held)
        ).SerializeToString()

    def learner(self, **changes: Any) -> Learner:
        found = Learner.of(self.model(**changes))
        assert found is not None
        return found


def solved(others: Any, had: Any, alpha: float = ALPHA, l2: float = L2) -> Any:
    """The row that minimises least squares, given the other side and what it had, in float64."""
    if not had.any():
        return np.zeros(others.shape[1])
    near = others[had]
    system = others.T @ others + l2 * np.eye(others.shape[1]) + alpha * near.T @ near
    return np.linalg.solve(system, (1 + alpha) * near.sum(axis=0))


def raw(pair: Any) -> tuple[int, str]:
    """A pair as events name it."""
    return int(pair[0]) * 10 + 1, f"item {pair[1]}"


def tell(learner: Learner, pairs: Any) -> list[tuple[int, int, int]]:
    return [learner.tell(raw(pair)) for pair in pairs]


def users_of(learner: Learner, numbers: Any) -> Any:
    """What users' vectors are now, float64 ``[n, factors]``; noughts for who is not known."""
    held = learner._trained
    trained = dict(zip(held[names.USERS].tolist(), held[names.USER_FACTORS], strict=True))
    rows = []
    for number in numbers:
        row = learner.ask(int(number) * 10 + 1)
        row = trained.get(int(number) * 10 + 1) if row is None else row
        rows.append(np.zeros(learner._factors) if row is None else np.array(row, float)[:-1])
    return np.array(rows)


def items_of(learner: Learner) -> Any:
    """What items' vectors are now, float64 ``[places, factors]``."""
    return learner.tensors()[names.ITEMS][:, :-1].astype(float)


def loss(x: Any, y: Any, had: Any, alpha: float = ALPHA, l2: float = L2) -> float:
    """What least squares minimise: the sum over all pairs, and the penalty."""
    confidence = 1 + alpha * had
    return float((confidence * (had - x @ y.T) ** 2).sum() + l2 * ((x**2).sum() + (y**2).sum()))


def catalogue_of(learner: Learner) -> list[str]:
    """What stands at each place."""
    return [*learner._trained[names.CATALOGUE], *learner.tensors()[names.NEW]]
