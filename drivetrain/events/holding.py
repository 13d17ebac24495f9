"""Holds the table that a join looks rows up in: by key in memory; if it is large, in the engine."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from drivetrain.core.schema import Schema
from drivetrain.events.by_key import ByKey
from drivetrain.events.dialect.forms import FORMS
from drivetrain.events.dialect.sql import identifier, quote
from drivetrain.events.duckdb import CHUNK, Engine
from drivetrain.events.stages import one

if TYPE_CHECKING:
    from drivetrain.events.join import Join

LARGE = 64 << 20
"""A joined table of more bytes is the engine's, which has a bound and spills."""


class Held:
    """The rows that a join looks up, each key once and none of them missing."""

    def __init__(self, step: "Join", schema: Schema, engine: Engine) -> None:
        """Begin without rows; ``schema`` is of the keys and of the columns that are added."""
        self._step, self._schema, self._engine = step, schema, engine
        self._keys = [right for _, right in step.on]
        self._bytes = 0
        self.table = engine.create(columns_of(schema))

    def fill(self, chunks: Iterable[pa.Table]) -> None:
        """Take in all rows.

        Raises:
            ValueError: a key occurs twice.
        """
        present = " AND ".join(f"{quote(key)} IS NOT NULL" for key in self._keys)
        listed = ", ".join(quote(name) for name in self._schema.names)
        for chunk in chunks:
            chunk = chunk.rename_columns([identifier(name) for name in chunk.column_names])
            query = f"SELECT {listed} FROM {CHUNK} WHERE {present}"
            self._engine.insert(self.table, query, chunk, self._step.label)
            self._bytes += chunk.nbytes
        by = ", ".join(quote(key) for key in self._keys)
        twice = self._engine.connection.sql(
            f"SELECT {by}, count(*) FROM {self.table} GROUP BY {by} HAVING count(*) > 1 "
            f"ORDER BY {by} LIMIT 1"
        ).fetchall()
        if twice:
            *values, times = twice[0]
            raise self._step.twice(values, times)

    def by_key(self, columns: Sequence[str]) -> tuple[ByKey, pa.Table] | None:
        """The rows by key, and some of their columns in the order of the keys' numbers.

        The engine then has them no longer. None: it keeps them, for they are large. Never with
        arrays: DuckDB 2.0.0 gives wrong ones, or fails, where a left join finds some and some not.
        """
        if self._bytes > LARGE and not any(field.shape for field in self._schema):
            return None
        rows = self._engine.connection.table(self.table).to_arrow_table().combine_chunks()
        self._engine.drop(self.table)
        found = ByKey([one(rows[identifier(key)]) for key in self._keys])
        rows = rows.select([identifier(name) for name in columns])
        return found, rows.take(pa.array(found.numbers.argsort()))


def columns_of(schema: Schema) -> str:
    """Columns as SQL declares them."""
    types = FORMS["duckdb"].types
    shaped = ((f, "".join(f"[{size}]" for size in f.shape)) for f in schema)
    return ", ".join(f"{quote(f.name)} {types[f.dtype]}{shape}" for f, shape in shaped)
