"""What the features of one column share: their names, their type checks, their compilation."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from drivetrain.core.errors import wrong
from drivetrain.core.schema import Field, Schema

if TYPE_CHECKING:
    from drivetrain.core.measured import Fitted
    from drivetrain.core.statistic import Statistic
    from drivetrain.features.builder import Builder

NUMBERS = ("int64", "float32", "float64", "timestamp")
INTEGERS = ("int64", "timestamp")
TEXTS = ("string", "bytes")


@dataclass(frozen=True)
class OneColumn:
    """A feature of one column.

    Attributes:
        column: the raw column.
        name: the feature's name, a Python identifier; by default the column's name and the
            class's, such as ``amount_log``.
    """

    column: str
    name: str = field(default="", kw_only=True)

    takes: ClassVar[tuple[str, ...]] = NUMBERS
    instead: ClassVar[str] = "Index, Hash and Text take strings"
    """What the error for another type recommends."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", identifier(self, self.name, self.column))

    @property
    def columns(self) -> tuple[str, ...]:
        """The raw columns that it reads."""
        return (self.column,)

    def statistics(self) -> Sequence["Statistic"]:
        """Nothing need be known of the data, unless a feature says otherwise."""
        return ()

    def source(self, schema: Schema) -> Field:
        """The column's field, one value a row.

        Raises:
            ValueError: the column is absent, of a type that the feature can't take, or holds
                arrays.
        """
        found = self.typed(schema)
        if found.shape:
            allowed = "one value a row; Raw takes arrays of numbers"
            raise wrong(f"{place(self)}: column {self.column!r}", found.shape, allowed)
        return found

    def typed(self, schema: Schema) -> Field:
        """The column's field, of any shape.

        Raises:
            ValueError: the column is absent or of a type that the feature can't take.
        """
        found = schema.field(self.column, place(self))
        if found.dtype not in self.takes:
            allowed = f"{', '.join(self.takes)}; {self.instead}"
            raise wrong(f"{place(self)}: column {self.column!r}", found.dtype, allowed)
        return found


class Together:
    """A feature of which many compile to the same few nodes, over a matrix of all columns."""

    @classmethod
    def together(
        cls, graph: "Builder", features: Sequence[Any], schema: Schema, fitted: "Fitted"
    ) -> str:
        """The tensor ``[width of all features, rows]`` of features of this class, in order.

        Columns first: each is contiguous in memory, and a constant for each column broadcasts
        along the rows, which is what vector units like.
        """
        raise AssertionError(f"{cls.__name__} says how its features compile together")

    def nodes(self, graph: "Builder", schema: Schema, fitted: "Fitted") -> str:
        """The feature alone, ``[rows, width]``."""
        return graph.transpose(type(self).together(graph, [self], schema, fitted))


def place(feature: Any) -> str:
    """How errors name a feature, such as ``feature Scale('delay_scale')``."""
    return f"feature {type(feature).__name__}({feature.name!r})"


def identifier(feature: object, name: str, *columns: str) -> str:
    """The feature's name, or the default one made of its columns' names and its class's.

    Raises:
        ValueError: the name is no Python identifier, which a parameter of ``forward`` must be.
    """
    kind = type(feature).__name__
    if not name:
        name = re.sub(r"\W", "_", "_".join((*columns, kind.lower())))
        return name if name.isidentifier() else f"_{name}"
    if not name.isidentifier():
        raise wrong(f"{kind}(name=…)", name, "a Python identifier")
    return name


def positive(where: str, value: object, least: int = 1) -> None:
    """Check that an option is an integer of at least ``least``.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise wrong(where, value, f"an integer of {least} or more")
