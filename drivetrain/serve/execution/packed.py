"""Rows of numeric columns in one piece of memory, column behind column, as a graph reads them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from drivetrain.core.batch import Array
from drivetrain.core.schema import Field

CODES = {"int64": "q", "timestamp": "q", "float32": "f", "float64": "d"}
"""The type of a column in the letters of ``struct`` and numpy."""
_SIZES = {"q": 8, "d": 8, "f": 4}


class Form:
    """Where the columns of some rows lie: those of one type together, the widest first.

    So each column is aligned for any number of rows, and columns of one type can be written at
    once.

    Args:
        fields: numeric columns that are one value a row.

    Attributes:
        codes: the type of each column, in the order of the fields.
        before: for each column, the bytes of one row that lie before it: it begins at so many
            times the rows.
        row: the bytes of one row.
        groups: the columns of each type, by the order in which they lie.
    """

    def __init__(self, fields: Sequence[Field]) -> None:
        self.codes = "".join(CODES[field.dtype] for field in fields)
        order = [(code, [i for i, c in enumerate(self.codes) if c == code]) for code in "qdf"]
        self.groups = [(code, group) for code, group in order if group]
        before: dict[int, int] = {}
        self.row = 0
        for code, group in self.groups:
            for number in group:
                before[number] = self.row
                self.row += _SIZES[code]
        self.before = [before[number] for number in range(len(self.codes))]

    @classmethod
    def of(cls, fields: Sequence[Field]) -> "Form | None":
        """The form of some columns, None if one of them is not one number a row."""
        if not all(field.dtype in CODES and not field.shape for field in fields):
            return None
        return cls(fields)

    def column(self, memory: Any, number: int, rows: int) -> Array:
        """One column of so many rows; a view of the memory."""
        return np.frombuffer(memory, self.codes[number], rows, self.before[number] * rows)

    def block(self, memory: Any, code: str, group: Sequence[int], rows: int) -> Array:
        """All columns of one type, ``[columns, rows]``; a view of the memory."""
        start = self.before[group[0]] * rows
        flat = np.frombuffer(memory, code, len(group) * rows, start)
        return flat.reshape(len(group), rows)


class Packed(Sequence[Array]):
    """The columns of one request in memory of their own, each cut out only when somebody looks.

    Args:
        form: where they lie.
        data: ``form.row`` bytes for each row; nobody changes them any more.
        rows: how many.
    """

    __slots__ = ("data", "form", "rows")

    def __init__(self, form: Form, data: "bytes | memoryview", rows: int) -> None:
        self.form = form
        self.data = data
        self.rows = rows

    def __len__(self) -> int:
        return len(self.form.codes)

    def __getitem__(self, index: Any) -> Any:
        form = self.form
        if isinstance(index, slice):
            numbers = range(*index.indices(len(form.codes)))
            return [form.column(self.data, number, self.rows) for number in numbers]
        number = range(len(form.codes))[index]
        return form.column(self.data, number, self.rows)
