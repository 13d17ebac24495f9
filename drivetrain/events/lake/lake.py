"""Rows that go into a Delta Lake table, each exactly once, with where their sources stand.

An append is one commit: the rows, and for each source the position behind the last of them, as the
Delta protocol's application transactions. So whoever starts anew asks for the positions and reads
on from there, and no stop at whatever moment loses a row or brings one twice. A commit holds only
if no other commit of the same writer came since the positions were last seen; appends, compactions
and deletions by others between do no harm.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING

import pyarrow as pa

from drivetrain.core.errors import wrong
from drivetrain.core.need import need
from drivetrain.core.schema import Schema
from drivetrain.events.delta import location
from drivetrain.events.lake.additions import Addition
from drivetrain.events.lake.doubt import Held, Pending
from drivetrain.events.lake.evolve import fields_of, fit, lake_schema
from drivetrain.events.lake.log import actions, applications, files_of, named_errors, open_table
from drivetrain.events.lake.parts import Part, made_of, parts_of, with_parts
from drivetrain.events.lake.upkeep import TARGET, Compaction, compact, vacuum

if TYPE_CHECKING:
    from deltalake import DeltaTable

MARK = "drivetrain.commit"
"""In a commit's own words, what tells it from every other: whether it landed can then be known."""

RETENTION = "delta.setTransactionRetentionDuration"
"""After how long a table forgets where a source stood; then its rows would come twice."""

TRIES = 10
"""Appends of which each was overtaken by a change of the table's columns, before it is an error."""


REOPEN = 32
"""Appends between two openings of the table: the library's handle grows slower with each."""


@dataclass
class Lake:
    """One Delta table that rows are appended to; used by one thread at a time.

    Attributes:
        path: the table's folder or URL.
        storage: options of its store beside those of the environment; never shown.
    """

    path: str
    storage: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    _parts: tuple[Part, ...] = ()
    _table: "DeltaTable | None" = field(default=None, repr=False)
    _due: pa.Schema | None = field(default=None, repr=False)
    _held: dict[str, Held] = field(default_factory=dict[str, Held], repr=False)
    _pending: Pending | None = field(default=None, repr=False)
    _landed: tuple[Pending, int] | None = field(default=None, repr=False)
    _sure: set[str] = field(default_factory=set[str], repr=False)
    _appends: int = field(default=0, repr=False)

    # -- opening ---------------------------------------------------------------------------------

    @classmethod
    def open(
        cls,
        path: str | PathLike[str],
        schema: Schema | None = None,
        *,
        partition_by: Sequence[str] = (),
        storage: Mapping[str, str] | None = None,
    ) -> "Lake":
        """Open a table, and make it where there is none.

        Args:
            path: its folder or URL; credentials are read from the environment.
            schema: the columns of a new table; None takes those of the first rows. A table that
                is there keeps its own.
            partition_by: columns by whose values a new table's files are kept apart, few values
                each; ``"day(at)"`` and ``"hour(at)"`` make a column ``at_day`` or ``at_hour`` of
                the times in ``at``, in UTC, as text. Of a table that is there: the same or none.
            storage: options of the store, as ``object_store`` names them, beside the environment.

        Raises:
            ValueError: the table is partitioned otherwise, or holds a column of another type.
            OSError: the store refuses.
        """
        if isinstance(partition_by, str):
            raise wrong(
                "Lake.open partition_by", partition_by, f"names, such as ({partition_by!r},)"
            )
        lake = cls(location(path, "Lake.open path"), dict(storage or {}), parts_of(partition_by))
        try:
            lake._adopt(open_table(lake.path, storage=lake.storage))
        except FileNotFoundError:
            if schema is not None:
                lake._create(lake_schema(schema, lake.path))
            return lake
        if schema is not None:
            lake.fits(schema)
        return lake

    def fits(self, schema: Schema) -> None:
        """Hold columns against those of the table, if there is one.

        Raises:
            ValueError: one is of another type, or two names differ in case alone.
        """
        columns = lake_schema(schema, self.path)
        if self._table is not None:
            fit(columns.empty_table(), self.due, self.path)

    def _create(self, columns: pa.Schema) -> None:
        deltalake = need("deltalake", "delta")
        for part in self._parts:
            columns = made_of(part, columns, self.path)
        try:
            with named_errors(self.path):
                made = deltalake.DeltaTable.create(
                    self.path,
                    schema=columns,
                    mode="ignore",
                    partition_by=[part.name for part in self._parts],
                    storage_options=dict(self.storage) or None,
                )
        except deltalake.exceptions.CommitFailedError:  # another process made it at this moment
            made = open_table(self.path, storage=self.storage)
        self._adopt(made)

    def _adopt(self, table: "DeltaTable") -> None:
        self._table, self._due = table, None
        found = table.metadata().partition_columns
        asked = [part.name for part in self._parts]
        if asked and asked != found:
            raise wrong(f"{self.path}, partition_by", asked, f"{found}, as the table is")

    @property
    def table(self) -> "DeltaTable":
        """The table as it was last seen.

        Raises:
            FileNotFoundError: nothing has been appended to it yet.
        """
        if self._table is None:
            raise FileNotFoundError(f"{self.path}: there is no Delta table")
        return self._table

    @property
    def due(self) -> pa.Schema:
        """The table's columns, as it has them."""
        if self._due is None:
            self._due = pa.schema(self.table.schema().to_arrow())
        return self._due

    @property
    def schema(self) -> Schema:
        """The columns that the table gives to a plan."""
        return Schema(tuple(fields_of(self.due).values()))

    @property
    def version(self) -> int:
        """The version that was last seen or made."""
        return self.table.version()

    def reload(self) -> None:
        """Look at what others have committed.

        Raises:
            OSError: the store refuses.
        """
        with named_errors(self.path):
            self.table.update_incremental()
        self._renewed()

    def _renewed(self) -> None:
        """Forget what was known of the version before."""
        self._due = None
        self._sure.clear()

    # -- upkeep ----------------------------------------------------------------------------------

    @property
    def files(self) -> int:
        """How many files the version has that was last seen; many small ones read slowly."""
        return len(self.table.file_uris())

    def compact(self, target: int = TARGET) -> Compaction:
        """Write small files together, as :func:`drivetrain.events.lake.upkeep.compact` does."""
        self._settle()
        self._renewed()
        return compact(self.table, self.path, target)

    def vacuum(self, hours: int | None = None, *, guard: bool = True) -> list[str]:
        """Remove what no version needs, as :func:`drivetrain.events.lake.upkeep.vacuum` does."""
        self._settle()
        self._renewed()
        return vacuum(self.table, self.path, hours, guard=guard)

    # -- appending -------------------------------------------------------------------------------

    def positions(self, writer: str) -> dict[str, int]:
        """Where each source of a writer stands in the table now; what it appends holds on to that.

        Raises:
            OSError: the store refuses.
        """
        _named(writer)
        if self._table is None:
            try:
                self._adopt(open_table(self.path, storage=self.storage))
            except FileNotFoundError:
                self._held[writer] = Held(None, {})
                return {}
        self._settle()
        self.reload()
        self._held[writer] = self._read(writer)
        return dict(self._held[writer].positions)

    def append(
        self, rows: pa.Table, writer: str = "", positions: Mapping[str, int] | None = None
    ) -> int:
        """Append rows and where their sources then stand, both or neither.

        Columns that the table lacks are added to it, and null in the rows before; columns that the
        rows lack are null.

        Args:
            rows: may be none, where only positions move.
            writer: whose sources these are: a name without ``/``. One process at a time writes
                under a name; empty for rows that nobody keeps account of.
            positions: of each source that moved, the position behind the last of its rows.

        Returns:
            The version of the table that has them.

        Raises:
            ValueError: another process has appended as this writer meanwhile (names both
                positions), a position would go back, or a column is of another type than the
                table's (names it); nothing was appended.
            OSError: the store refuses or is full; whether it was appended is found out before the
                next append, and the same rows given again then count once.
        """
        if self._table is None:
            self._create(_columns_of(rows, self.path))
        return self._append(rows, writer, dict(positions or {}))

    def commit_files(
        self,
        files: Sequence[Addition],
        writer: str = "",
        positions: Mapping[str, int] | None = None,
    ) -> int:
        """Append files that others have laid down below the table's folder; see :meth:`append`.

        Args:
            files: in order; there may be none, where only positions move.
            writer: as for :meth:`append`.
            positions: of each source that moved, the position behind the last of its rows.

        Raises:
            FileNotFoundError: there is no table yet.
            ValueError: as for :meth:`append`.
            OSError: as for :meth:`append`.
        """
        return self._append(files, writer, dict(positions or {}))

    def _append(self, rows: pa.Table | Sequence[Addition], writer: str, due: dict[str, int]) -> int:
        if writer or due:
            _named(writer)
        self._settle()
        if self._landed is not None:
            (pending, version), self._landed = self._landed, None
            if pending.again(rows, writer, due):
                return version
        mark = secrets.token_hex(8)
        if not writer:
            return self._commit(rows, Pending(mark, self.version, "", 0, {}, rows))
        held = self._held.get(writer)
        if held is None:
            held = self._held[writer] = self._read(writer)
        self._unmoved(writer, due)
        self._check(held, writer, due, len(rows))
        turn = 1 if held.turn is None else held.turn + 1
        return self._commit(rows, Pending(mark, self.version, writer, turn, due, rows))

    def _check(self, held: Held, writer: str, due: Mapping[str, int], rows: int) -> None:
        where = f"{self.path}, positions of {writer!r}"
        for source, position in due.items():
            if not 0 <= position < 1 << 63:
                raise wrong(f"{where}, {source!r}", position, "an int64 from 0")
            if position < held.positions.get(source, 0):
                raise wrong(
                    f"{where}, {source!r}", position, f"at least {held.positions[source]}, its last"
                )
        if rows and due and all(held.positions.get(s) == p for s, p in due.items()):
            raise wrong(where, due, "one that moves: these rows are in the table already")

    def _commit(self, rows: pa.Table | Sequence[Addition], pending: Pending) -> int:
        failed = need("deltalake.exceptions", "delta").CommitFailedError
        for _ in range(TRIES):
            fitted, grows = rows, False
            if isinstance(rows, pa.Table):
                fitted, grows = fit(with_parts(rows, self.due), self.due, self.path)
            try:
                self._write(fitted, grows, pending)
                return self._done(pending, self.version, alone=isinstance(rows, pa.Table))
            except (failed, OSError, ValueError) as error:
                failure = error
            self._pending = pending
            try:
                self._settle()
            except OSError as error:  # it is asked again before the next append
                raise (error if isinstance(failure, failed) else failure) from None
            if self._landed is not None:
                (_, version), self._landed = self._landed, None
                return version
            if not isinstance(failure, failed):
                raise failure
            if pending.writer:
                self._unmoved(pending.writer, pending.positions)
        raise OSError(f"{self.path}: other commits came first {TRIES} times: {failure}")

    def _write(self, rows: pa.Table | Sequence[Addition], grows: bool, pending: Pending) -> None:
        deltalake = need("deltalake", "delta")
        writer, moves = pending.writer, []
        if writer:
            # Of two commits with a transaction of one application the library refuses the later;
            # others it orders without writing the rows again.
            moves = [deltalake.Transaction(writer, pending.turn)]
            moves += [
                deltalake.Transaction(f"{writer}/{source}", position)
                for source, position in pending.positions.items()
            ]
        properties = deltalake.CommitProperties(
            custom_metadata={MARK: pending.mark}, app_transactions=moves
        )
        with named_errors(self.path):
            if isinstance(rows, pa.Table):
                deltalake.write_deltalake(
                    self.table,
                    rows,
                    mode="append",
                    schema_mode="merge" if grows else None,
                    commit_properties=properties,
                )
            else:
                self.table.create_write_transaction(
                    [file.action() for file in rows],
                    "append",
                    self.table.schema(),
                    self.table.metadata().partition_columns,
                    commit_properties=properties,
                )
                self.reload()  # the library leaves it at the version before
        if grows:
            self._due = None
        self._appends += 1
        if self._appends % REOPEN == 0:
            self._table = open_table(self.path, self.version, self.storage)

    def _done(self, pending: Pending, version: int, *, alone: bool) -> int:
        """Count an append that landed; ``alone`` if the table was not looked at again since."""
        if pending.writer:
            held = self._held[pending.writer]
            held.turn = pending.turn
            held.positions.update(pending.positions)
            # Later commits that were seen may be of another process as this very writer.
            if alone or self.table.transaction_version(pending.writer) == pending.turn:
                self._sure.add(pending.writer)
        return version

    def _settle(self) -> None:
        """Find out whether the last append landed, where that is not known."""
        pending = self._pending
        if pending is None:
            return
        self.reload()
        files = files_of(self.table, self.path, self.storage)
        for version in range(pending.since + 1, self.version + 1):
            marks = (
                a["commitInfo"].get(MARK) for a in actions(files, version) if "commitInfo" in a
            )
            if pending.mark in marks:
                self._done(pending, version, alone=False)
                self._landed = (pending, version)
                break
        self._pending = None  # not before: what could not be read is asked again

    def _read(self, writer: str) -> Held:
        """Where a writer stands in the version that was last seen."""
        kept = self.table.metadata().configuration.get(RETENTION)
        if kept is not None:
            raise wrong(f"{self.path}, {RETENTION}", kept, "none: positions are never forgotten")
        files = files_of(self.table, self.path, self.storage)
        with named_errors(self.path):
            known = applications(files, self.version)
            found = {
                name.removeprefix(f"{writer}/"): self.table.transaction_version(name)
                for name in sorted(known)
                if name.startswith(f"{writer}/")
            }
            turn = self.table.transaction_version(writer)
        self._sure.add(writer)
        positions = {source: place for source, place in found.items() if place is not None}
        return Held(turn, positions)

    def _unmoved(self, writer: str, due: Mapping[str, int]) -> None:
        """Hold that nobody else has appended as a writer since its positions were seen."""
        if writer in self._sure:
            return
        held = self._held[writer]
        with named_errors(self.path):
            names = (f"{writer}/{source}" for source in held.positions)
            places = [self.table.transaction_version(name) for name in names]
            turn = self.table.transaction_version(writer)
        if turn == held.turn and places == list(held.positions.values()):
            self._sure.add(writer)
            return
        found = self._read(writer)
        self._sure.discard(writer)
        raise ValueError(
            f"{self.path}: found another process that appends as {writer!r}: it has come to "
            f"{found.positions}, while this one stood at {held.positions} and would go to "
            f"{dict(due)}; allowed: one process at a time for a writer. This one appended nothing."
        )


def _named(writer: str) -> None:
    if not writer or "/" in writer:
        raise wrong("Lake writer", writer, "a name without '/'")


def _columns_of(rows: pa.Table, where: str) -> pa.Schema:
    """The columns of a table that begins with these rows."""
    return fit(rows, pa.schema([]), where)[0].schema
