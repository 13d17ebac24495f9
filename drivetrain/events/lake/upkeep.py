"""The upkeep of a Delta table: small files written together, files that none needs removed."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from drivetrain.core.errors import wrong
from drivetrain.core.need import need
from drivetrain.events.lake.log import named_errors

if TYPE_CHECKING:
    from deltalake import DeltaTable

TARGET = 128 << 20
"""Bytes of a file that compaction makes."""

TRIES = 5
"""Compactions that another one overtook, before it is an error."""


@dataclass(frozen=True)
class Compaction:
    """What a compaction did.

    Attributes:
        removed: how many small files it left behind, for :func:`vacuum` to remove some day.
        added: how many it wrote instead.
        version: the table's then.
    """

    removed: int
    added: int
    version: int


def compact(table: "DeltaTable", path: str, target: int = TARGET) -> Compaction:
    """Write small files together into larger ones, in one commit that changes no row.

    Rows that lay in one file stay in order; of files that are written together the latest comes
    first. One file is written at a time, from batches, so memory does not grow with the table.
    Whoever appends meanwhile is not disturbed.

    Args:
        table: what is compacted; it is then at the version made.
        path: where it lies, for errors.
        target: about how many bytes a file is to have; larger ones are left as they are.

    Raises:
        OSError: the store refuses, or others compact the same files at the same time.
    """
    if target < 1:
        raise wrong("compact target", target, "a number of bytes")
    failed = need("deltalake.exceptions", "delta").CommitFailedError
    for _ in range(TRIES):
        try:
            with named_errors(path):
                table.update_incremental()
                done = table.optimize.compact(target_size=target, max_concurrent_tasks=1)
                return Compaction(done["numFilesRemoved"], done["numFilesAdded"], table.version())
        except failed as error:
            failure = error
    raise OSError(f"{path}: others changed the same files {TRIES} times: {failure}")


def vacuum(
    table: "DeltaTable", path: str, hours: int | None = None, *, guard: bool = True
) -> list[str]:
    """Remove files that no commit within the last ``hours`` needed, those of failed ones included.

    Versions from before then can no longer be read.

    Args:
        table: what is cleaned.
        path: where it lies, for errors.
        hours: None takes what the table says (``delta.deletedFileRetentionDuration``, a week).
        guard: refuse fewer hours than the table says: a reader may still be at an old version,
            and a writer at a file that it has not yet committed, which would be removed too.

    Returns:
        The files that were removed, within the table.

    Raises:
        ValueError: fewer hours than the table says.
        OSError: the store refuses.
    """
    if hours is not None and hours < 0:
        raise wrong("vacuum hours", hours, "a number of hours from 0")
    with named_errors(path):
        table.update_incremental()
        return table.vacuum(hours, dry_run=False, enforce_retention_duration=guard, full=True)
