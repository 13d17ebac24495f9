"""Schemas of tables whose files have not changed, so that nobody reads their heads again."""

import json
from contextlib import suppress
from pathlib import Path

from drivetrain.core.describe import canonical, describe, digest
from drivetrain.core.durable import write
from drivetrain.core.schema import Schema
from drivetrain.core.seams import Source
from drivetrain.events.prepared import FORMAT, leaves
from drivetrain.events.table import Table

Stamp = tuple[str, int, int]


def known_schema(source: Source, room: Path) -> Schema:
    """The schema of a source; that of a table of local files is kept in ``room`` between runs.

    Telling the columns of a text file takes an engine and the head of the file. While the
    declaration is the same and every file has the size and the time of change that it had, the
    answer is the same.

    Raises:
        ValueError: as ``source.schema``.
        OSError: a file is absent; ``room`` that can't be written is no error.
    """
    stamps = _stamps(source)
    if stamps is None:
        return source.schema
    path = room / f"{digest(FORMAT, describe(source), stamps)}.json"
    try:
        return Schema.from_json(json.loads(path.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or one that is damaged
        schema = source.schema
    with suppress(OSError):  # it is then told anew the next time
        write(path, canonical(schema.to_json()).encode())
    return schema


def _stamps(source: Source) -> list[Stamp] | None:
    """Path, size and time of change of every file; None unless all are local and there."""
    if not isinstance(source, Table):
        return None
    found: list[Stamp] = []
    for leaf in leaves(source):
        stamps = leaf.local_stamps()
        if stamps is None:
            return None
        found += stamps
    return found
