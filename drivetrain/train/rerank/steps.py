"""What a ranked list goes through before it is answered: filters, diversity, exploration."""

from collections.abc import Sequence
from dataclasses import dataclass

from drivetrain.core.errors import wrong


@dataclass(frozen=True)
class Allowed:
    """Leaves out every item whose attribute is none of the values that the request brings.

    A request that brings none leaves nothing out. An item whose attribute is missing is left out
    of whatever request brings one.

    Attributes:
        column: the raw column of what is allowed: one value, or ``[n]`` of them.
        attribute: the items' attribute, of the same type: one value an item, or several.
    """

    column: str
    attribute: str


@dataclass(frozen=True)
class Blocked:
    """Leaves out every item whose attribute is one of the values that the request brings.

    Attributes:
        column: the raw column of what is not wanted: one value, or ``[n]`` of them.
        attribute: the items' attribute, of the same type: one value an item, or several.
    """

    column: str
    attribute: str


@dataclass(frozen=True)
class Diverse:
    """Puts items behind that are like those before them: maximal marginal relevance.

    Each place takes the item with the largest ``(1 - weight) * relevance - weight * likeness``
    (Carbonell and Goldstein, SIGIR 1998). The relevance is the score, brought to 0 for the worst
    candidate of the request and 1 for the best; the likeness is the largest cosine to an item that
    stands before, 0 for items without a vector.

    Attributes:
        weight: of the likeness, 0 to 1.
    """

    weight: float

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise wrong("Diverse.weight", self.weight, "0 to 1")


@dataclass(frozen=True)
class Explore:
    """Draws each place, so that what is answered can be learnt from without bias.

    A place is drawn from the candidates that are left, with probabilities that are the softmax of
    ``value / temperature``. The value is the one that ``Diverse`` looks at, or without it the
    relevance as defined there: then lists are those of Plackett (1975) and Luce (1959), drawn by
    the noise of Gumbel. ``propensities`` says how likely each place was, given those before it,
    exactly.

    The noise is a hash of raw columns, so the same request has the same list and who trains again
    sees what was answered. Where one of them is missing nothing is drawn, and propensities are 1.

    Attributes:
        temperature: 0.1 makes the best candidate e^10 times as likely as the worst.
        by: the raw column that names a request, or several: text (the first 256 bytes count),
            int64 or a timestamp. It must not be one that the user can choose freely.
    """

    temperature: float = 0.1
    by: str | tuple[str, ...] = "request"

    def __post_init__(self) -> None:
        if not 1e-6 <= self.temperature < float("inf"):
            raise wrong("Explore.temperature", self.temperature, "0.000001 or more")
        if not self.by:
            raise wrong("Explore.by", self.by, "a raw column, or several")

    @property
    def columns(self) -> tuple[str, ...]:
        """The raw columns that it hashes."""
        return (self.by,) if isinstance(self.by, str) else self.by


Filter = Allowed | Blocked
Rerank = Filter | Diverse | Explore


def check(steps: Sequence[Rerank], where: str = "rerank") -> None:
    """Hold a declaration together.

    Filters come first wherever they stand; what is diverse and what is drawn is decided together,
    place by place.

    Raises:
        ValueError: a step is none, or two are diverse or explore.
    """
    allowed = "Allowed(…), Blocked(…), Diverse(…), Explore(…)"
    for step in steps:
        if not isinstance(step, Allowed | Blocked | Diverse | Explore):
            raise wrong(where, step, allowed)
    for kind in (Diverse, Explore):
        if sum(isinstance(step, kind) for step in steps) > 1:
            raise wrong(where, f"{kind.__name__} twice", "once")


def columns(steps: Sequence[Rerank]) -> tuple[str, ...]:
    """The raw columns that the steps read, each once."""
    found: list[str] = []
    for step in steps:
        if isinstance(step, Explore):
            found += step.columns
        elif not isinstance(step, Diverse):
            found.append(step.column)
    return tuple(dict.fromkeys(found))


def attributes(steps: Sequence[Rerank]) -> tuple[str, ...]:
    """The attributes of items that the steps read, each once."""
    filters = [step for step in steps if isinstance(step, Allowed | Blocked)]
    return tuple(dict.fromkeys(step.attribute for step in filters))
