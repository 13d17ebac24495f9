"""A table run once and laid down: Parquet files by split, with the digest of what is in them."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any

from drivetrain.core import durable
from drivetrain.core.describe import canonical, describe
from drivetrain.core.describe import digest as digest_of
from drivetrain.core.errors import unknown, wrong
from drivetrain.core.metric import Emit, Metric, Note, silent
from drivetrain.core.schema import Schema
from drivetrain.core.seams import SPLITS, Shard, Source, Split

if TYPE_CHECKING:
    from drivetrain.core.batch import Batch
    from drivetrain.events.duckdb import Limits
    from drivetrain.events.plan import Plan
    from drivetrain.events.table import Leaf, Table

FORMAT = 1
"""The layout of a prepared directory, and the meaning of the digest; part of every fingerprint."""

MANIFEST = "prepared.json"

CHUNK = 65_536
"""Rows of the spine that go through the steps together: few, since several such are at hand."""


@dataclass(frozen=True)
class Prepared:
    """Rows that lie ready in Parquet files, one directory a split; a ``core.seams.Tabular``.

    Attributes:
        directory: where they lie.
        schema: the columns.
        contents: for each split its rows, files and column digests, as the manifest says.
        dropped: for each step that left rows out, how many it was given and how many it kept.
        sources: what names the rows of each leaf that can say so: a table and its version, a topic
            and its offsets.
    """

    directory: Path
    schema: Schema
    contents: Mapping[str, Any]
    dropped: Sequence[Mapping[str, Any]] = ()
    sources: Sequence[Mapping[str, Any]] = ()

    @classmethod
    def open(cls, directory: Path) -> "Prepared":
        """The rows that :func:`prepare` laid down.

        Raises:
            ValueError: what lies there is not whole, or of another version.
            FileNotFoundError: nothing lies there.
        """
        manifest = Path(directory) / MANIFEST
        try:
            data = json.loads(manifest.read_text())
            if data["format"] != FORMAT:
                raise wrong(f"{manifest}, format", data["format"], f"{FORMAT}; prepare it anew")
            schema = Schema.from_json(data["schema"])
            dropped, sources = tuple(data["dropped"]), tuple(data.get("sources", ()))
            found = cls(Path(directory), schema, data["splits"], dropped, sources)
            sizes = {f["name"]: f["bytes"] for s in SPLITS for f in found.contents[s]["files"]}
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise wrong(str(manifest), str(error), "a whole manifest; prepare it anew") from error
        for name, size in sizes.items():
            file = found.directory / name
            if not file.is_file() or file.stat().st_size != size:
                raise ValueError(
                    f"{file}: found it absent or torn, allowed: {size} bytes; remove "
                    f"{found.directory} and prepare it anew."
                )
        return found

    @property
    def digest(self) -> str:
        """SHA-256 (hexadecimal) of the rows: their values, columns, order and split.

        It depends neither on how the files are encoded nor on where they lie, and that of a
        selection of columns is that of the same columns prepared by themselves.
        """
        rows = {
            split: [
                self.contents[split]["rows"],
                [self.contents[split]["columns"][name] for name in self.schema.names],
            ]
            for split in SPLITS
        }
        text = canonical({"format": FORMAT, "schema": self.schema.to_json(), "rows": rows})
        return hashlib.sha256(text.encode()).hexdigest()

    def select(self, columns: Sequence[str]) -> "Prepared":
        """The same rows with only these columns, in this order; nothing is written."""
        return dataclasses.replace(self, schema=self.schema.select(columns, "Prepared.select"))

    def rows(self, split: Split) -> int:
        """How many rows a split has."""
        return int(self._content(split)["rows"])

    def files(self, split: Split) -> Sequence[str]:
        """The Parquet files that hold a split, in order; they may hold more columns."""
        return [str(self.directory / file["name"]) for file in self._content(split)["files"]]

    def batches(self, split: Split, shard: Shard = Shard()) -> Iterator["Batch"]:
        """The rows of one shard of a split, in order, at most 65,536 at a time.

        Shard ``i`` of ``n`` is the ``i``-th of ``n`` ranges of consecutive rows whose sizes
        differ by one at most; strings come as ``Categorical``.

        Raises:
            ValueError: a file is torn.
        """
        from drivetrain.events.shelf import read

        rows = self.rows(split)
        if not 0 <= shard.index < shard.count:
            raise wrong("shard", shard, "an index from 0 and below count")
        start = rows * shard.index // shard.count
        stop = rows * (shard.index + 1) // shard.count
        yield from read(self.files(split), self.schema, start, stop)

    def _content(self, split: Split) -> Mapping[str, Any]:
        if split not in SPLITS:
            raise unknown("split", split, SPLITS)
        return self.contents[split]


def prepare(
    table: Source,
    columns: Sequence[str],
    directory: Path,
    *,
    memory: str = "1GB",
    threads: int = 0,
    emit: Emit = silent,
) -> Prepared:
    """Run a plan once and lay its rows down as ``directory/{train,validate,test}/part-*.parquet``.

    The directory appears whole or not at all; one that is there already is opened instead, so
    name it by what is in it (:func:`fingerprint`). Any source will do: one that is not a table
    is read split by split.

    Args:
        table: where rows come from.
        columns: which columns are kept; a table reads no more than these need.
        directory: where the rows are to lie.
        memory: the engine's memory limit; past it, it spills beside ``directory``.
        threads: 0 takes the cores that this process may use.
        emit: is told of progress, of rows left out at each step, and of rows written.

    Raises:
        ValueError: the plan does not fit the files, a file is damaged, or no row is left.
        OSError: a file is absent or may not be read, or the disk is full.
    """
    from drivetrain.events.duckdb import Limits
    from drivetrain.events.shelf import Shelf, from_source
    from drivetrain.events.table import Table

    directory = Path(directory)
    if directory.exists():
        return Prepared.open(directory)
    if not columns:
        raise wrong("prepare columns", columns, "at least one column")
    sources: list[Mapping[str, Any]] = []
    if isinstance(table, Table):
        table = pin(table)
        sources = sources_of(table)
    schema = table.schema.select(columns, "prepare")
    dropped: list[dict[str, Any]] = []
    with ExitStack() as stack:
        target = stack.enter_context(durable.directory(directory))
        if isinstance(table, Table):
            limits = Limits(memory=memory, threads=threads, chunk=CHUNK, directory=directory.parent)
            plan, contents = _laid(table, schema, target, limits, emit)
            read = plan.rows
            dropped += [dataclasses.asdict(tally) for tally in plan.tallies]
        else:
            with Shelf(target, schema) as shelf:
                read = from_source(table, schema, shelf, emit)
                contents = shelf.close()
        report(contents, dropped, read, emit)
        record(target, schema, contents, dropped, sources)
    return Prepared.open(directory)


def _laid(
    table: "Table", schema: Schema, target: Path, limits: "Limits", emit: Emit
) -> "tuple[Plan, dict[str, Any]]":
    """Lay the rows of a pinned table down in ``target``: the plan that ran, and what was written.

    Where there are windows, rows are first taken to come in order of time, as most logs do, and
    pass through in one go. Where that turns out wrong, what was written goes, and they are read
    anew to be put in order.
    """
    from drivetrain.events.duckdb import engine
    from drivetrain.events.plan import compile_plan
    from drivetrain.events.shelf import Shelf, from_plan
    from drivetrain.events.windowed.order import NotInOrderError

    for at_once in (True, False):
        with Shelf(target, schema) as shelf, engine(limits) as running:
            plan = compile_plan(table, schema.names, running, limits, at_once=at_once)
            try:
                from_plan(plan, limits, shelf, emit)
            except NotInOrderError:
                assert at_once
            else:
                return plan, shelf.close()
        for split in SPLITS:
            rmtree(target / split)
    raise AssertionError


def sources_of(table: "Table") -> list[Mapping[str, Any]]:
    """What the rows of a pinned table came from, as each of its leaves names it."""
    found: list[Mapping[str, Any]] = []
    for leaf in leaves(table):
        if (named := leaf.lineage()) and named not in found:
            found.append(named)
    return found


def record(
    target: Path,
    schema: Schema,
    contents: Mapping[str, Any],
    dropped: Sequence[Mapping[str, Any]],
    sources: Sequence[Mapping[str, Any]],
) -> None:
    """Write the manifest of rows that lie in ``target``."""
    manifest = {
        "format": FORMAT,
        "schema": schema.to_json(),
        "splits": contents,
        "dropped": dropped,
        "sources": sources,
    }
    (target / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True))


def report(
    contents: Mapping[str, Any], dropped: Iterable[Mapping[str, Any]], read: int, emit: Emit
) -> None:
    """Tell of rows left out at each step, and of rows written.

    Raises:
        ValueError: no row is left.
    """
    written = {split: contents[split]["rows"] for split in SPLITS}
    for step in dropped:
        if lost := step["rows"] - step["kept"]:
            text = f"{step['step']}: {lost:,} of {step['rows']:,} rows left out"
            emit(Note(stage="events", text=text, warning=not step["kept"]))
    if not any(written.values()):
        steps = "; ".join(f"{s['step']} kept {s['kept']:,} of {s['rows']:,}" for s in dropped)
        raise ValueError(
            f"the table: found 0 rows of {read:,} left ({steps or 'no step'}), "
            "allowed: at least one."
        )
    for split, rows in written.items():
        if not rows:
            emit(Note(stage="events", text=f"the split {split} has no rows", warning=True))
        emit(Metric(name=f"events/{split}_rows", value=rows))
    emit(Metric(name="events/rows", value=sum(written.values())))
    emit(Metric(name="events/read_rows", value=read))


def fingerprint(table: Source) -> str:
    """A key that changes when what a table gives may change: SHA-256 (hexadecimal).

    Of the declaration, and for each of its files size and time of change, or what an object
    store says of it; no row is read. A source that is not a table is known by its declaration.

    Raises:
        OSError: a file is absent.
    """
    from drivetrain.events.table import Table

    found = [leaf.stamps() for leaf in leaves(table)] if isinstance(table, Table) else []
    text = canonical({"format": FORMAT, "table": describe(table), "files": found})
    return hashlib.sha256(text.encode()).hexdigest()


def leaves(table: "Table") -> Iterator["Leaf"]:
    """What a table reads, what it is joined with included."""
    from drivetrain.events.join import Lookup

    spine, steps = table.chain()
    yield spine
    for step in steps:
        if isinstance(step, Lookup):
            yield from leaves(step.other)


def pin(table: "Table") -> "Table":
    """The table held to the rows that there are now in all that it reads.

    Raises:
        OSError: what is read is absent or may not be read.
    """
    from drivetrain.events.join import Lookup

    spine, steps = table.chain()
    held: Table = spine.pinned()
    for step in steps:
        changed: dict[str, Table] = {}
        if held is not step.source:
            changed["source"] = held
        if isinstance(step, Lookup) and (other := pin(step.other)) is not step.other:
            changed["other"] = other
        held = dataclasses.replace(step, **changed) if changed else step
    return held


def held(
    table: "Table", columns: Sequence[str], room: Path, *, follow: bool = False
) -> tuple["Table", Path]:
    """A table held to the rows of now, and the directory in ``room`` that these belong in.

    Args:
        table: whose rows.
        columns: that are wanted of it.
        room: where directories of prepared rows lie.
        follow: go where the last call without it led, if its rows are there: the processes of one
            training see the same rows, however late they start.

    Raises:
        OSError: what is read is absent or may not be read.
    """
    note = room / f"{digest_of(describe(table), columns)}.json"
    if follow:
        with suppress(FileNotFoundError):
            directory = room / json.loads(note.read_bytes())["rows"]
            if (directory / MANIFEST).exists():
                return table, directory
    pinned = pin(table)
    directory = room / digest_of(fingerprint(pinned), columns)
    if pinned is not table:  # what does not change needs no note
        durable.write(note, canonical({"rows": directory.name}).encode())
    return pinned, directory


def find(room: Path, digest: str) -> Prepared | None:
    """The rows of this digest among those that were prepared in ``room``, or None."""
    for manifest in sorted(room.glob(f"[!.]*/{MANIFEST}")):  # one with a dot is being written
        prepared = Prepared.open(manifest.parent)
        if prepared.digest == digest:
            return prepared
    return None
