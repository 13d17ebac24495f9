"""The nodes that choose the answered places of a list among its candidates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from drivetrain.core.batch import BYTES_SUFFIX, Array
from drivetrain.core.errors import unknown, wrong
from drivetrain.core.schema import MISSING_INT, Field, Schema
from drivetrain.train.recall.nodes import Nodes
from drivetrain.train.rerank.noise import gumbel, seeds, uniform
from drivetrain.train.rerank.steps import Allowed, Diverse, Explore, Filter, Rerank

FLOAT, INT64, DOUBLE = 1, 7, 11
LARGEST = float(np.finfo(np.float32).max)
LEAST = float(np.finfo(np.float64).min)
MISSING, UNKNOWN, NONE = -2, 0, -1
"""Codes: a value that a request lacks, one that no item has, and an item without one."""


@dataclass(frozen=True)
class Listed:
    """The tensors of an answered list, ``[rows, k]`` each.

    Attributes:
        candidates: int64: which candidate each place is; 0 where there is none.
        places: int64: the place in the catalogue that the candidate came with.
        scores: float32: the score that it came with, -inf where no item is left.
        propensities: float32: how likely it was, given the places before; NaN where there is none.
    """

    candidates: str
    places: str
    scores: str
    propensities: str


def fields(steps: Sequence[Rerank], schema: Schema) -> tuple[Field, ...]:
    """The raw inputs that the steps' nodes take.

    Args:
        steps: as declared.
        schema: of the raw columns.

    Raises:
        ValueError: a column is absent, or of a type that its step can't take.
    """
    found: dict[str, Field] = {}
    for step in steps:
        if isinstance(step, Explore):
            for name in step.columns:
                field = schema.field(name, "Explore")
                if field.shape or field.dtype not in ("string", "bytes", "int64", "timestamp"):
                    shown = f"{field.dtype} {list(field.shape)}"
                    raise wrong(f"Explore.by, column {name!r}", shown, "text, int64 or a timestamp")
                if field.numpy == "object":
                    field = Field(name + BYTES_SUFFIX, "uint8", (None,))
                found[field.name] = field
        elif not isinstance(step, Diverse):
            field = schema.field(step.column, type(step).__name__)
            if len(field.shape) > 1 or field.dtype not in ("string", "int64"):
                where = f"{type(step).__name__}, column {field.name!r}"
                raise wrong(where, f"{field.dtype} {list(field.shape)}", "text or int64, [] or [n]")
            found[field.name] = field
    return tuple(found.values())


def listed(
    n: Nodes,
    places: str,
    scores: str,
    *,
    k: int,
    wide: int,
    steps: Sequence[Rerank],
    schema: Schema,
    attributes: Mapping[str, Array],
    vectors: Array | None,
) -> Listed:
    """Choose ``k`` of the candidates as the steps say; without any, the best of them.

    A candidate whose score is -inf or not a number is no item. Of equal values the higher score
    comes first, then the earlier candidate. Memory grows with rows times candidates, with
    ``Diverse`` times the numbers of a vector.

    Args:
        n: takes the nodes; its graph has the inputs :func:`fields`.
        places: int64 ``[rows, wide]``: of the candidates in the catalogue.
        scores: float32 ``[rows, wide]``.
        k: how many places are answered.
        wide: how many candidates a row has.
        steps: as declared, checked.
        schema: of the raw columns.
        attributes: of the items in the order of the catalogue, int64 or strings ``[items]``, or
            ``[items, several]``.
        vectors: float ``[items, d]``, of any length; what ``Diverse`` compares. An item beyond them
            or whose vector is zero or no number is like none.

    Raises:
        ValueError: an attribute is absent or of another type than its column, or ``Diverse`` has
            no vectors.
    """
    if wide < k:
        beyond = n.ints(0, 0, 0, k - wide)
        places = n.op("Pad", places, beyond)
        scores = n.op("Pad", scores, beyond, n.held(np.array(-np.inf, np.float32)))
        wide = k
    minus = n.held(np.array(-np.inf, np.float32))
    real = n.op("Where", n.op("IsNaN", scores), minus, scores)
    for step in steps:
        if isinstance(step, Filter):
            out = _left_out(n, step, schema, attributes, places)
            real = n.op("Where", out, minus, real)
    diverse = next((step for step in steps if isinstance(step, Diverse)), None)
    explore = next((step for step in steps if isinstance(step, Explore)), None)
    cut = diverse is None and explore is None
    best, order = n.ops("TopK", real, n.ints(k if cut else wide), outputs=2, axis=1)
    if cut:
        chosen, likely = order, ""
    else:
        sorted_places = n.op("GatherElements", places, order, axis=1)
        choice = _Choice(n, sorted_places, best, k, explore, schema)
        chosen, likely = choice.drawn() if diverse is None else choice.greedy(diverse, vectors)
        best = n.op("GatherElements", best, chosen, axis=1)
        chosen = n.op("GatherElements", order, chosen, axis=1)
    there = n.op("Cast", n.op("Greater", real, minus), to=INT64)
    there = n.op("ReduceSum", there, n.ints(1), keepdims=1)
    gone = n.op("GreaterOrEqual", n.held(np.arange(k)[None]), there)
    one, nan = (n.held(np.array(value, np.float32)) for value in (1, np.nan))
    zero = n.held(np.array(0, np.int64))
    return Listed(
        n.op("Where", gone, zero, chosen),
        n.op("GatherElements", places, chosen, axis=1),
        n.op("Where", gone, minus, best),
        n.op("Where", gone, nan, likely or one),
    )


def _left_out(
    n: Nodes, step: Filter, schema: Schema, attributes: Mapping[str, Array], places: str
) -> str:
    """Whether each candidate is left out, bool ``[rows, wide]``."""
    where, field = type(step).__name__, schema.field(step.column)
    if step.attribute not in attributes:
        raise unknown("attribute", step.attribute, attributes, where)
    values = attributes[step.attribute]
    text = values.dtype == object
    if text != (field.dtype == "string"):
        shown = "strings" if text else str(values.dtype)
        raise wrong(
            f"{where}, attribute {step.attribute!r}", shown, f"{field.dtype}, as the column"
        )
    missing = "" if text else MISSING_INT
    known = {value: code for code, value in enumerate(sorted({*values.flat} - {missing}), start=1)}
    codes = [known.get(value, NONE) for value in values.reshape(-1).tolist()]
    several = values.shape[1] if values.ndim > 1 else 1
    table = np.full((len(values) + 1, several), NONE, np.int64)  # the last row: beyond the items
    table[:-1] = np.reshape(codes, (len(values), several))
    wanted = n.op(
        "LabelEncoder",
        step.column,
        domain="ai.onnx.ml",
        **{"keys_strings" if text else "keys_int64s": [*known, missing]},
        values_int64s=[*known.values(), MISSING],
        default_int64=UNKNOWN,
    )
    wanted = n.op("Unsqueeze", wanted, n.ints(1, 2) if field.shape else n.ints(1, 2, 3))
    inside = n.op("Min", places, n.held(np.array(len(values), np.int64)))
    has = n.op("Unsqueeze", n.op("Gather", n.held(table), inside), n.ints(3))
    same = n.op("Cast", n.op("Equal", has, wanted), to=INT64)
    match = n.op("Cast", n.op("ReduceMax", same, n.ints(2, 3), keepdims=0), to=9)
    if not isinstance(step, Allowed):
        return match
    most = n.op("ReduceMax", wanted, n.ints(2, 3), keepdims=0)
    some = n.op("Greater", most, n.held(np.array(MISSING, np.int64)))
    return n.op("And", some, n.op("Not", match))


class _Choice:
    """Chooses ``k`` candidates, sorted by score, and says how likely each choice was.

    Args:
        n: takes the nodes.
        places: int64 ``[rows, wide]``.
        scores: float32 ``[rows, wide]``, -inf for no item.
        k: how many are chosen.
        explore: how they are drawn; None takes the best.
        schema: of the raw columns.
    """

    def __init__(
        self, n: Nodes, places: str, scores: str, k: int, explore: Explore | None, schema: Schema
    ) -> None:
        self._n, self._k = n, k
        self._places = places
        self._relevance = self._scaled(scores)
        self._explore = explore
        if explore is not None:
            self._seed, self._known = seeds(n, explore.columns, schema)
            self._cold = self._double(explore.temperature)

    def _double(self, value: float) -> str:
        return self._n.held(np.array(value, np.float64))

    def _scaled(self, scores: str) -> str:
        """Scores between 0 and 1, float64; of one value they are 0."""
        n = self._n
        wide = n.op("Min", n.op("Cast", scores, to=DOUBLE), self._double(LARGEST))
        none = n.op("IsInf", wide)
        low = n.op("Where", none, self._double(np.inf), wide)
        low = n.op("ReduceMin", low, n.ints(1), keepdims=1)
        span = n.op("Sub", n.op("ReduceMax", wide, n.ints(1), keepdims=1), low)
        some = n.op("Greater", span, self._double(0))
        return n.op("Div", n.op("Sub", wide, low), n.op("Where", some, span, self._double(1)))

    def drawn(self) -> tuple[str, str]:
        """All places at once: candidates int64 ``[rows, k]``, propensities float32 ``[rows, k]``.

        The largest of values with independent Gumbel noise are a draw without replacement.
        """
        n, k = self._n, self._k
        logits = n.op("Div", self._relevance, self._cold)
        noise = gumbel(n, uniform(n, self._seed, self._places))
        noise = n.op("Mul", noise, n.op("Cast", self._known, to=DOUBLE))
        _, chosen = n.ops("TopK", n.op("Add", logits, noise), n.ints(k), outputs=2, axis=1)
        each = n.op("GatherElements", logits, chosen, axis=1)
        minus = self._double(-np.inf)
        taken = n.op("Expand", minus, n.op("Shape", chosen))
        rest = self._log_sum(n.op("ScatterElements", logits, chosen, taken, axis=1))
        # Place j was drawn among the chosen from j on and the rest.
        left = n.op("Unsqueeze", n.op("Concat", each, rest, axis=1), n.ints(1))
        later = np.tri(k, k + 1, -1, bool)[None]
        left = n.op("Where", n.held(later), minus, left)
        whole = n.op("Squeeze", self._log_sum(left, 2), n.ints(2))
        return chosen, self._likely(n, n.op("Exp", n.op("Sub", each, whole)))

    def _log_sum(self, logits: str, axis: int = 1) -> str:
        n = self._n
        most = n.op("ReduceMax", logits, n.ints(axis), keepdims=1)
        most = n.op("Max", most, self._double(LEAST))  # of nothing at all: -inf, and no NaN
        total = n.op("ReduceSum", n.op("Exp", n.op("Sub", logits, most)), n.ints(axis), keepdims=1)
        return n.op("Add", n.op("Log", total), most)

    def _likely(self, n: Nodes, chance: str) -> str:
        """A chance as propensity, float32; 1 where nothing is drawn."""
        one = n.held(np.array(1, np.float32))
        return n.op("Where", self._known, n.op("Cast", chance, to=FLOAT), one)

    def greedy(self, diverse: Diverse, vectors: Array | None) -> tuple[str, str]:
        """Place by place; propensities are "" where nothing is ever drawn."""
        if vectors is None:
            raise wrong("Diverse", "no vectors of the items", "a method that has some")
        n = self._n
        table = n.held(_normal(vectors))
        inside = n.op("Min", self._places, n.held(np.array(len(vectors), np.int64)))
        each = n.op("Transpose", n.op("Gather", table, inside), perm=[0, 2, 1])
        weight, minus = self._double(diverse.weight), self._double(-np.inf)
        value = n.op("Mul", self._relevance, self._double(1 - diverse.weight))
        out = n.op("IsInf", self._relevance)
        value = n.op("Where", out, minus, value)  # 0 times -inf is no number
        # As far from what is chosen as can be: of the first place it decides nothing.
        near = n.op("Expand", self._double(-1), n.op("Shape", value))

        def body(b: Nodes, left: str, near: str, *drawn: str) -> list[tuple[str, str]]:
            worth = b.op("Sub", left, b.op("Mul", near, weight))
            chosen = b.op("ArgMax", worth, axis=1, keepdims=1)
            likely: list[tuple[str, str]] = []
            if self._explore is not None:
                chosen, chance = self._one(b, worth, chosen, drawn[0])
                likely = [(chance, "float32")]
            taken = b.op("Expand", minus, b.op("Shape", chosen))
            left = b.op("ScatterElements", left, chosen, taken, axis=1)
            vector = b.op("Gather", table, b.op("GatherElements", inside, chosen, axis=1))
            like = b.op("Squeeze", b.op("MatMul", vector, each), b.ints(1))
            near = b.op("Max", near, b.op("Cast", like, to=DOUBLE))
            return [(left, "float64"), (near, "float64"), (chosen, "int64"), *likely]

        number = n.held(np.arange(self._k)[:, None, None])
        inputs = [(number, "int64")]
        if self._explore is not None:
            inputs = [(uniform(n, self._seed, number), "float64")]
        found = n.scan(inputs, body, [(value, "float64"), (near, "float64")])
        flat = [n.op("Squeeze", n.op("Transpose", t, perm=[1, 0, 2]), n.ints(2)) for t in found]
        return flat[0], flat[1] if self._explore is not None else ""

    def _one(self, b: Nodes, worth: str, best: str, drawn: str) -> tuple[str, str]:
        """Draw one candidate of each row, or take the best; and how likely that was."""
        logits = b.op("Div", worth, self._cold)
        most = b.op("ReduceMax", logits, b.ints(1), keepdims=1)
        chances = b.op("Exp", b.op("Sub", logits, most))
        sums = b.op("CumSum", chances, b.held(np.array(1, np.int64)))
        whole = b.op("Slice", sums, b.ints(-1), b.ints(2**62), b.ints(1))
        # The first whose sum reaches the drawn share: its own chance is then above 0.
        reached = b.op("GreaterOrEqual", sums, b.op("Mul", whole, drawn))
        chosen = b.op("ArgMax", b.op("Cast", reached, to=6), axis=1, keepdims=1)
        chosen = b.op("Where", self._known, chosen, best)
        chance = b.op("GatherElements", chances, chosen, axis=1)
        return chosen, self._likely(b, b.op("Div", chance, whole))


def _normal(vectors: Array) -> Array:
    """Vectors of length 1, and one of zeros behind them for whatever has none."""
    wide = np.asarray(vectors, np.float64)
    wide = np.where(np.isfinite(wide).all(axis=1, keepdims=True), wide, 0)
    wide = wide / np.maximum(np.abs(wide).max(axis=1, keepdims=True, initial=0), 1e-300)
    long = np.linalg.norm(wide, axis=1, keepdims=True)
    found = wide / np.where(long > 0, long, 1)
    return np.append(found, np.zeros((1, wide.shape[1])), axis=0).astype(np.float32)
