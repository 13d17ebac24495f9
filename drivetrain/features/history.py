"""The feature that turns several values a row into positions of another column's vocabulary."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from drivetrain.core.errors import wrong
from drivetrain.core.schema import FeatureField, Schema
from drivetrain.core.statistic import Statistic
from drivetrain.features.categorical import Index
from drivetrain.features.column import OneColumn, place

if TYPE_CHECKING:
    from drivetrain.core.measured import Fitted
    from drivetrain.features.builder import Builder


@dataclass(frozen=True)
class History(OneColumn):
    """What a user had last, as a bag of positions: those that an ``Index`` gives the same values.

    The column has ``[n]`` values a row, such as a window with ``stat="recent"``; a missing one is
    padding, 0. A value is known where the index knows it, and so ``Attention`` can let both share
    one table.

    Attributes:
        like: the index of the single value, such as ``Index("item", size=50_000)``.
    """

    like: Index

    takes: ClassVar[tuple[str, ...]] = ("int64", "string")
    instead: ClassVar[str] = "Raw takes arrays of other numbers"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.like, Index):
            raise wrong(f"{place(self)}: like", self.like, 'an Index, such as Index("item")')

    def statistics(self) -> Sequence[Statistic]:
        """Those of the index."""
        return self.like.statistics()

    def field(self, schema: Schema, fitted: "Fitted") -> FeatureField:
        """A bag in the order of the column.

        Raises:
            ValueError: the column has not ``[n]`` values a row, or others than the index's.
        """
        found = self.typed(schema)
        of = self.like.source(schema)
        where = f"{place(self)}: column {self.column!r}"
        if len(found.shape) != 1 or found.shape[0] is None:
            raise wrong(where, found.shape, "[n] values a row; Index takes one")
        if found.dtype != of.dtype:
            raise wrong(where, found.dtype, f"{of.dtype}, as column {of.name!r} has")
        return FeatureField(
            name=self.name,
            kind="bag",
            width=found.shape[0],
            cardinality=len(self.like.vocabulary(fitted)) + 2,
            columns=self.columns,
        )

    def nodes(self, graph: "Builder", schema: Schema, fitted: "Fitted") -> str:
        """Int64 ``[rows, n]``."""
        return self.like.positions(graph, self.column, schema, fitted)
