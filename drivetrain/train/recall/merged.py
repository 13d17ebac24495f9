"""Examples whose training rows are those of several splits: what is served knows all of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from drivetrain.core.batch import Batch
from drivetrain.core.schema import FeatureSchema, Schema
from drivetrain.core.seams import Examples, Order, Shard, Source, Split


@dataclass(frozen=True)
class MergedSource:
    """A source whose ``train`` has the rows of some splits, one after another.

    The other splits among them are empty, so that nothing is judged by what it learnt from.
    """

    source: Source
    splits: Sequence[Split]

    @property
    def schema(self) -> Schema:
        """The columns of every batch."""
        return self.source.schema

    def batches(self, split: Split, shard: Shard = Shard()) -> Iterator[Batch]:
        """The rows of one shard of a split."""
        for each in _of(split, self.splits):
            yield from self.source.batches(each, shard)


@dataclass(frozen=True)
class MergedExamples:
    """Examples over such a source.

    Attributes:
        examples: where the rows come from.
        splits: what ``train`` has the rows of.
    """

    examples: Examples
    splits: Sequence[Split]

    @property
    def events(self) -> Source:
        """The source underneath."""
        return MergedSource(self.examples.events, self.splits)

    @property
    def features(self) -> FeatureSchema:
        """What the model's inputs are; fitted on the training rows alone."""
        return self.examples.features

    @property
    def targets(self) -> Schema:
        """The columns that the loss sees."""
        return self.examples.targets

    def rows(self, split: Split) -> int | None:
        """How many rows a split has; None where nobody can know."""
        total = 0
        for each in _of(split, self.splits):
            rows = self.examples.rows(each)
            if rows is None:
                return None
            total += rows
        return total

    def batches(
        self,
        split: Split,
        shard: Shard = Shard(),
        *,
        size: int,
        order: Order | None = None,
        start: int = 0,
    ) -> Iterator[Batch]:
        """Batches of ``size`` rows, each of one split; an order shuffles within each."""
        for each in _of(split, self.splits):
            rows = self.examples.rows(each) if start else None
            if rows is not None and start >= rows:
                start -= rows
                continue
            yield from self.examples.batches(each, shard, size=size, order=order, start=start)
            start = 0


def _of(split: Split, splits: Sequence[Split]) -> Sequence[Split]:
    """The splits whose rows one of them has now."""
    if split == "train":
        return splits
    return () if split in splits else (split,)
