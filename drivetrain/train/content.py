"""A strategy that recommends what is like what one had, by text and categories of the items."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from drivetrain.core.errors import wrong
from drivetrain.core.seams import Examples, Run, Source
from drivetrain.train.recall.method import FromHistory

if TYPE_CHECKING:
    from drivetrain.core.batch import Array
    from drivetrain.train.recall.graph import Scorer, Serving
    from drivetrain.train.recall.interactions import Interactions


@dataclass(frozen=True, kw_only=True)
class Content(FromHistory):
    """Items by what is said of them, so that new ones can be recommended before anybody had them.

    A table has a row for each item. Words and parts of words of its text, and its categories, are
    weighted by how rare they are (TF-IDF), each column's as a vector of length 1; the item's is
    all of them, brought down to ``width`` numbers that keep the products best. A score is the
    cosine of the item with each of the profile, in their mean.

    The catalogue has all items of the table: those of the training rows come first, the others in
    their own order, which nobody had.

    Attributes:
        items: the table; it has the column ``target``. It is held in memory.
        text: its columns of text.
        categories: its columns of categories: a name or integer, a list of them, or names between
            separators.
        separator: between categories.
        width: numbers for each item, in the served graph.
        contrast: whether a score is by what somebody has more of than everybody has: the mean
            cosine less that with all that was had in training (Rocchio 1971 takes off the mean of
            what is not wanted). Without it what is much like anything commonly had comes first.
    """

    items: Source
    text: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    separator: str = "|"
    width: int = 128
    contrast: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("text", "categories"):
            if not isinstance(getattr(self, name), tuple):
                raise wrong(f"Content.{name}", getattr(self, name), "a tuple of columns")
        if not self.text + self.categories:
            raise wrong("Content.text and categories", (), "a column of the items at least")
        if not self.separator:
            raise wrong("Content.separator", self.separator, "at least a character")
        self.at_least("width", 1)

    @property
    def tables(self) -> tuple[Source, ...]:
        """The sources that it reads beside the events."""
        return (self.items,)

    def widened(self, found: "Interactions") -> "Interactions":
        """The training rows, and behind their items the table's others."""
        from drivetrain.core.schema import Schema
        from drivetrain.train.recall.attributes import key_field, rows_of, with_further

        where = "Content.items"
        key = key_field(self.items, self.target, found.catalogue, where)
        keys, _ = rows_of(self.items, Schema((key,)), self.target, where)
        return with_further(found, keys)

    def scorer(
        self, source: Examples, found: "Interactions", run: Run, served: "Serving"
    ) -> "Scorer":
        """Make vectors of the items."""
        from drivetrain.train.recall.from_history import by_vectors, scorer

        vectors = self.vectors(found.catalogue)
        common = None
        if self.contrast:
            common = found.counts @ vectors.astype(float) / found.counts.sum()
        return scorer(self, by_vectors(found, vectors, served.spare(found), common))

    def vectors(self, catalogue: "Array") -> "Array":
        """The vectors of items, float32 ``[items, width]``; of what the table lacks all 0."""
        import numpy as np

        from drivetrain.train.recall.attributes import (
            fewer,
            of_categories,
            of_text,
            rows_of,
            side_by_side,
            tfidf,
        )

        where = "Content.items"
        names = dict.fromkeys((self.target, *self.text, *self.categories))
        keys, rows = rows_of(self.items, self.items.schema.select(names), self.target, where)
        blocks = [tfidf(self._text(rows[name], name), of_text) for name in self.text]
        named = of_categories(self.separator)
        blocks += [tfidf(rows[name].tolist(), named) for name in self.categories]
        known = fewer(side_by_side(blocks), self.width)
        place = {key: at for at, key in enumerate(keys)}
        at = np.array([place.get(item, len(keys)) for item in catalogue.tolist()])
        return np.append(known, np.zeros((1, self.width), np.float32), axis=0)[at]

    def _text(self, column: "Array", name: str) -> list[object]:
        if column.dtype != object or column.ndim != 1:
            raise wrong(f"Content.text, column {name!r}", column.dtype.name, "text")
        return column.tolist()
