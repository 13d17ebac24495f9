"""What a model's declaration may hold: options with a name of their own, and their checks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from drivetrain.core.errors import unknown, wrong

ACTIVATIONS = ("relu", "gelu", "silu", "tanh")
NORMS = ("none", "batch", "layer")


@dataclass(frozen=True, kw_only=True)
class Periodic:
    """Dense columns as sines and cosines of learned frequencies, then a small linear map each.

    Lets a network draw sharp boundaries in a number (Gorishniy et al., "On Embeddings for
    Numerical Features in Tabular Deep Learning", 2022, PLR). The columns should be scaled.

    Attributes:
        frequencies: how many a column has.
        sigma: the standard deviation of the initial frequencies; the setting that matters.
        dim: the width of each column's embedding.
    """

    frequencies: int = 16
    sigma: float = 0.1
    dim: int = 8

    def __post_init__(self) -> None:
        positive(self, "frequencies", "dim")
        if self.sigma <= 0:
            raise wrong("Periodic.sigma", self.sigma, "a number above 0")


@dataclass(frozen=True, kw_only=True)
class Attention:
    """A user's history as the sum of its vectors, each weighed by what it is to the item at hand.

    The weight of a vector ``h`` beside the item's ``q`` is what a small network says of ``h``,
    ``q``, ``h - q`` and ``h * q`` (Zhou et al., "Deep Interest Network for Click-Through Rate
    Prediction", KDD 2018, section 4.3). A bag and an index of one vocabulary (such as ``History``
    and its ``Index``) share their rows of the table. Without it a bag is the mean of its vectors,
    whatever the item.

    Attributes:
        history: the bag; 0 is padding wherever it stands, and an empty history is the zero vector.
        item: the index feature of one column, of the same cardinality.
        hidden: the widths of the small network's hidden layers, one at least.
        activation: ``relu``, ``gelu``, ``silu`` or ``tanh``.
        normalize: whether a history's weights sum to 1 (softmax). As published they do not: how
            much of a history speaks for an item is then lost.
    """

    history: str
    item: str
    hidden: tuple[int, ...] = (64, 32)
    activation: Literal["relu", "gelu", "silu", "tanh"] = "silu"
    normalize: bool = False

    def __post_init__(self) -> None:
        widths(self, "hidden")
        if not self.hidden:
            raise wrong("Attention.hidden", self.hidden, "one layer at least")
        if self.activation not in ACTIVATIONS:
            raise unknown("Attention.activation", self.activation, ACTIVATIONS)


# -- checks, which name the declaration and the option -----------------------------------------


def positive(factory: object, *names: str) -> None:
    """Refuse what is no integer of at least 1.

    Raises:
        ValueError: names the option.
    """
    for name in names:
        value = getattr(factory, name)
        if not isinstance(value, int) or value < 1:
            raise wrong(f"{type(factory).__name__}.{name}", value, "an integer of at least 1")


def share(factory: object, name: str) -> None:
    """Refuse what is no share.

    Raises:
        ValueError: names the option.
    """
    value = getattr(factory, name)
    if not 0 <= value < 1:
        raise wrong(f"{type(factory).__name__}.{name}", value, "a share from 0 to below 1")


def widths(factory: object, name: str) -> None:
    """Refuse what is no tuple of widths.

    Raises:
        ValueError: names the option.
    """
    value = getattr(factory, name)
    if not isinstance(value, tuple) or not all(isinstance(n, int) and n > 0 for n in value):
        raise wrong(f"{type(factory).__name__}.{name}", value, "a tuple of widths, such as (64,)")


def stacks(factory: object, name: str) -> None:
    """Refuse what is no tuple of tuples of widths, each with one at least.

    Raises:
        ValueError: names the option.
    """
    value = getattr(factory, name)
    right = isinstance(value, tuple) and value and all(isinstance(one, tuple) for one in value)
    if not right or not all(
        one and all(isinstance(n, int) and n > 0 for n in one) for one in value
    ):
        allowed = "a tuple of tuples of widths, such as ((64, 64), (64,))"
        raise wrong(f"{type(factory).__name__}.{name}", value, allowed)


def attentions(factory: object) -> None:
    """Refuse what are no attentions, or two of one history.

    Raises:
        ValueError: names the option, or the history.
    """
    where, found = f"{type(factory).__name__}.attention", getattr(factory, "attention", ())
    if not isinstance(found, tuple) or not all(isinstance(one, Attention) for one in found):
        raise wrong(where, found, "a tuple of Attention(…)")
    histories = [one.history for one in found]
    twice = sorted({name for name in histories if histories.count(name) > 1})
    if twice:
        raise wrong(where, f"{', '.join(twice)} twice", "one Attention for each history")


def deep(factory: Any) -> None:
    """Check the options that deep models share, those that this one has.

    Raises:
        ValueError: names the option.
    """
    where = type(factory).__name__
    if hasattr(factory, "hidden"):
        widths(factory, "hidden")
    for name in ("dropout", "embedding_dropout", "field_dropout"):
        if hasattr(factory, name):
            share(factory, name)
    dims: Mapping[str, Any] = getattr(factory, "dims", {})
    for name, width in dims.items():
        if not isinstance(width, int) or width < 1:
            raise wrong(f"{where}.dims[{name!r}]", width, "an integer of at least 1")
    named: Sequence[tuple[str, Sequence[str]]] = (("norm", NORMS), ("activation", ACTIVATIONS))
    for name, allowed in named:
        if hasattr(factory, name) and getattr(factory, name) not in allowed:
            raise unknown(f"{where}.{name}", getattr(factory, name), allowed)
    attentions(factory)
