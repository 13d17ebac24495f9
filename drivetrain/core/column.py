"""One column of a batch: an array, or the codes of its distinct values."""

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Categorical:
    """A column that names its distinct values once.

    Attributes:
        codes: int32 ``[rows]``, positions in ``values``.
        values: object ``[distinct]``, strings or bytes.
    """

    codes: Array
    values: Array

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, rows: Any) -> "Categorical":
        return Categorical(self.codes[rows], self.values)

    def decode(self) -> Array:
        """The column as an object array ``[rows]``."""
        return self.values[self.codes]


Column = Array | Categorical
