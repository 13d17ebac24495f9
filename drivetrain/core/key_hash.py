"""Hashes of keys, the same in every process and on every machine."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from drivetrain.core.batch import Array, Batch, Categorical, Column
from drivetrain.core.native import kernel
from drivetrain.core.schema import Dtype


def hashes_of(column: Column, dtype: Dtype) -> Array:
    """The 128-bit hash of each value: uint64 ``[rows, 2]``, (0, 0) for what is missing.

    It is the same in every process and on every machine: SipHash-2-4 with a fixed key over the
    value's bytes and its type.

    Args:
        column: as a batch holds it.
        dtype: of its field: ``string``, ``bytes``, ``int64`` or ``timestamp``.
    """
    if isinstance(column, Categorical):
        return hashes_of(column.values, dtype).take(column.codes, axis=0)
    found = np.empty((len(column), 2), np.uint64)
    if dtype in ("string", "bytes"):
        kernel().hash_objects(np.ascontiguousarray(column, object), found)
    else:
        kernel().hash_integers(np.ascontiguousarray(column, np.int64), found)
    return found


def together(hashes: Sequence[Array]) -> Array:
    """The hash of several columns' hashes, row by row; of one column it is the hash itself."""
    if len(hashes) == 1:
        return hashes[0]
    found = np.empty_like(hashes[0])
    kernel().hash_together(np.stack(hashes, axis=1), found, len(hashes))
    return found


class Hashes:
    """The hashes of a batch's keys, each column and each key once."""

    def __init__(self, types: Mapping[str, Dtype], batch: Batch) -> None:
        self._types = types
        self._batch = batch
        self._columns: dict[str, Array] = {}
        self._keys: dict[tuple[str, ...], Array] = {}

    def of(self, keys: tuple[str, ...]) -> Array:
        """Of the key of these columns: uint64 ``[rows, 2]``."""
        if keys not in self._keys:
            self._keys[keys] = together(list(self._each(keys)))
        return self._keys[keys]

    def _each(self, keys: tuple[str, ...]) -> Iterator[Array]:
        for name in keys:
            if name not in self._columns:
                column = self._batch.column(name)
                self._columns[name] = hashes_of(column, self._types[name])
            yield self._columns[name]
