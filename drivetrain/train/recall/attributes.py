"""What a table says of items, as vectors: TF-IDF of text and categories, in fewer numbers."""

import re
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from drivetrain.core.batch import Array, Batch
from drivetrain.core.errors import wrong
from drivetrain.core.schema import MISSING_INT, Field, Schema
from drivetrain.core.seams import SPLITS, Source
from drivetrain.train.recall.interactions import Interactions, Sparse

BUCKETS = 1 << 20
"""Terms are known by a hash below it."""
_SHORTEST, _LONGEST = 3, 5
"""Characters of the parts of a word."""
_MORE, _ROUNDS = 16, 4
"""Further directions that are looked for, and how often they are turned towards the largest."""
_WORD = re.compile(r"\w+")
_ENTRIES = 1 << 18
"""Entries whose rows are held at once in a product."""

Terms = Callable[[object], list[str]]
"""The terms of one value, repeats among them."""


def key_field(table: Source, key: str, catalogue: Array, where: str) -> Field:
    """The column of a table that names its items.

    Raises:
        ValueError: it is absent, or of another type than the items.
    """
    field = table.schema.field(key, where)
    kind = "string" if catalogue.dtype == object else "int64"
    if field.dtype != kind or field.shape:
        raise wrong(f"{where}, column {key!r}", field.dtype, f"{kind}, as the items are")
    return field


def rows_of(table: Source, schema: Schema, key: str, where: str) -> tuple[list[object], Batch]:
    """All rows of a table, one for each item: the items and their columns.

    Raises:
        ValueError: an item is missing, or has two rows.
    """
    parts: list[Batch] = []
    for split in SPLITS:  # nobody trains on it: whatever part a row is in, it is read
        parts += [batch.select(schema.names) for batch in table.batches(split)]
    if not parts:
        raise wrong(where, "a table without rows", "a row for each item")
    whole = Batch.concat([Batch({n: part[n] for n in schema.names}) for part in parts])
    keys: list[object] = whole[key].tolist()
    for item, times in Counter(keys).most_common(1):
        if times > 1:
            raise wrong(where, f"two rows of {item!r}", "one for each item")
    if MISSING_INT in keys or "" in keys:
        raise wrong(where, f"a row without {key!r}", "none")
    return keys, whole


def with_further(found: Interactions, keys: Sequence[object]) -> Interactions:
    """The interactions with those items behind theirs that they lack, which nobody had."""
    known = set(found.catalogue.tolist())
    new = sorted(item for item in keys if item not in known)  # pyright: ignore[reportArgumentType]
    catalogue = np.concatenate([found.catalogue, np.array(new, found.catalogue.dtype)])
    counts = np.concatenate([found.counts, np.zeros(len(new), np.int64)])
    had = replace(found.had, wide=len(catalogue))
    return Interactions(catalogue, counts, had)


def of_text(value: object) -> list[str]:
    """Words in lower case, and the parts of three to five characters that they have."""
    terms: list[str] = []
    for word in _WORD.findall(str(value).casefold()):
        terms.append(word)
        framed = f"<{word}>"
        for long in range(_SHORTEST, _LONGEST + 1):
            terms += [f"#{framed[at : at + long]}" for at in range(len(framed) - long + 1)]
    return terms


def of_categories(separator: str) -> Terms:
    """The categories of a value: a list's, those between separators, or the one number."""

    def terms(value: object) -> list[str]:
        if isinstance(value, list):
            return [term for each in value for term in terms(each)]  # pyright: ignore
        if isinstance(value, str):
            return [name for part in value.split(separator) if (name := part.strip())]
        return [] if value in (MISSING_INT, None) or value != value else [str(value)]

    return terms


def tfidf(values: Sequence[object], terms: Terms) -> Sparse:
    """Rows of length 1, or empty: ``(1 + ln tf) (1 + ln ((1 + n) / (1 + df)))`` by hashed terms.

    ``tf`` is how often a row has a term, ``df`` how many of the ``n`` rows have it (Salton and
    Buckley, 1988, smoothed so that a term of all rows still counts).
    """
    lengths, columns, times = [], list[int](), list[int]()
    for value in values:
        counted = Counter(zlib.crc32(term.encode()) % BUCKETS for term in terms(value))
        lengths.append(len(counted))
        columns += counted.keys()
        times += counted.values()
    column = np.array(columns, np.int64)
    used, place = np.unique(column, return_inverse=True)
    starts = np.concatenate([[0], np.cumsum(np.array(lengths, np.int64))])
    rare = 1 + np.log((1 + len(values)) / (1 + np.bincount(place, minlength=len(used))))
    weights = (1 + np.log(np.array(times, np.float64))) * rare[place]
    row = np.repeat(np.arange(len(values)), lengths)
    squares = np.bincount(row, weights=weights**2, minlength=len(values))
    weights /= np.sqrt(squares)[row]
    return Sparse(starts, place.astype(np.int32), weights.astype(np.float32), len(used))


def side_by_side(blocks: Sequence[Sparse]) -> Sparse:
    """The rows of several matrices as one, of length 1 where they are not empty."""
    wide, rows, columns, weights = 0, [], [], []
    for block in blocks:
        rows.append(np.repeat(np.arange(block.rows), block.lengths))
        columns.append(block.columns.astype(np.int64) + wide)
        weights.append(block.weights)
        wide += block.wide
    row = np.concatenate(rows)
    order = np.argsort(row, kind="stable")
    lengths = np.bincount(row, minlength=blocks[0].rows)
    column, weight = np.concatenate(columns)[order], np.concatenate(weights)[order]
    some = np.sum([block.lengths > 0 for block in blocks], axis=0)
    weight = weight / np.sqrt(some[row[order]])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return Sparse(starts, column.astype(np.int32), weight.astype(np.float32), wide)


def fewer(matrix: Sparse, width: int, seed: int = 0) -> Array:
    """Rows of ``width`` numbers whose products are nearest to those of the rows, float32.

    A truncated singular value decomposition by random directions that are turned towards the
    largest ones (Halko, Martinsson and Tropp, 2011; for text Deerwester et al., 1990). A matrix of
    no greater rank keeps its products. Rows that are not empty have the length 1.
    """
    most = min(matrix.rows, matrix.wide)
    if not most:
        return np.zeros((matrix.rows, width), np.float32)
    sides = min(width + _MORE, most)
    found = np.random.default_rng(seed).standard_normal((matrix.wide, sides))
    for _ in range(_ROUNDS):
        found, _ = np.linalg.qr(_product(matrix.turned, _product(matrix, found)))
    found, _ = np.linalg.qr(found)
    rows = _product(matrix, found)
    _, _, turn = np.linalg.svd(rows, full_matrices=False)
    rows = rows @ turn[:width].T
    rows = np.pad(rows, ((0, 0), (0, width - rows.shape[1])))
    long = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(long > 1e-6, long, 1)).astype(np.float32)


def _product(matrix: Sparse, dense: Array) -> Array:
    """Float64 ``[rows, dense columns]``."""
    found = np.zeros((matrix.rows, dense.shape[1]))
    for first, last in matrix.spans(_ENTRIES):
        span = slice(matrix.starts[first], matrix.starts[last])
        each = dense[matrix.columns[span]] * matrix.weights[span, None]
        filled = np.flatnonzero(matrix.lengths[first:last])
        begin = matrix.starts[first:last][filled] - matrix.starts[first]
        if len(filled):
            found[first + filled] = np.add.reduceat(each, begin)
    return found
