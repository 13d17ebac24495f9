"""Examples that are those of others, but for the batches."""

from drivetrain.core.schema import FeatureSchema, Schema
from drivetrain.core.seams import Examples, Source, Split


class Relayed:
    """What a class gives whose batches alone differ from those of the examples that it is given.

    Args:
        examples: whose source, schemas and numbers of rows these are.
    """

    def __init__(self, examples: Examples) -> None:
        self._relayed = examples

    @property
    def events(self) -> Source:
        """The source underneath."""
        return self._relayed.events

    @property
    def features(self) -> FeatureSchema:
        """What the model's inputs are."""
        return self._relayed.features

    @property
    def targets(self) -> Schema:
        """The columns that the loss sees."""
        return self._relayed.targets

    def rows(self, split: Split) -> int | None:
        """How many rows a split has."""
        return self._relayed.rows(split)
