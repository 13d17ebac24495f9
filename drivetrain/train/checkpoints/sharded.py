"""Checkpoints in parts: each process writes what it holds, and any number of them read it again."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from drivetrain.core.claim import Claim
from drivetrain.core.durable import write
from drivetrain.core.metric import Emit, Note, silent
from drivetrain.train.checkpoints.checkpoint import KEPT, Checkpoint
from drivetrain.train.checkpoints.pieces import piece, writes
from drivetrain.train.checkpoints.stored import WHERE, stored
from drivetrain.train.together.group import Alone, Group

_INDEX = re.compile(r"(?:step-(\d{12})|final)-([0-9a-f]{64})\.json")
_DIGEST_BYTES = 32


class ShardedCheckpoints:
    """The checkpoints of one training of several processes, in one directory that all can reach.

    Each process writes a safetensors file with its pieces, whose digest is in its name. When all
    of these are on disk the leader writes an index that names them, and only then is there a
    checkpoint; older ones are deleted after that. So one that was cut short at any moment leaves
    the one before. Reading goes the same way: each file is checked by one process, all choose the
    same checkpoint, and each reads only what it holds now.

    All processes call each method at the same point of the training, on one thread at a time.

    Args:
        directory: this training's own.
        fingerprint: names the training; checkpoints of another one are not used.
        emit: where it is said that one was not used.
        group: the processes, over a channel of its own: saving happens behind the training's back.
        claim: this generation's right to write; None for one that nobody takes over.
    """

    def __init__(
        self,
        directory: Path,
        fingerprint: str,
        emit: Emit = silent,
        group: Group | None = None,
        *,
        claim: Claim | None = None,
    ) -> None:
        self.claim = claim
        self.directory = directory
        self.fingerprint = fingerprint
        self.emit = emit
        self.group = group or Alone()

    def part(self, checkpoint: Checkpoint) -> Checkpoint:
        """The pieces that this process is the one to write, and where in the whole they lie."""
        pieces = {
            name: piece(tensor)
            for name, tensor in checkpoint.tensors.items()
            if self._mine(name, tensor)
        }
        pieces = {name: p for name, p in pieces.items() if p.tensor.numel() or 0 in p.shape}
        where = {name: {"shape": p.shape, "offsets": p.offsets} for name, p in pieces.items()}
        tensors = {name: p.tensor for name, p in pieces.items()}
        return Checkpoint({**checkpoint.state, WHERE: where}, tensors)

    def _mine(self, name: str, tensor: torch.Tensor) -> bool:
        """Whether this is the process that writes its piece of a tensor."""
        return writes(tensor, self.group.rank)

    def save(self, checkpoint: Checkpoint, step: int, *, final: bool = False) -> Path:
        """Write what :meth:`part` gave; the index's path, when all have written theirs.

        Raises:
            ConnectionError: another process has gone, or did not write within the time-out.
            OSError: no space, no permission, here or in another process; the checkpoints are
                then as they were.
        """
        head = "final" if final else f"step-{step:012d}"
        state = dict(checkpoint.state)
        where = json.dumps(state.pop(WHERE), sort_keys=True)
        tensors = {name: t.contiguous() for name, t in checkpoint.tensors.items()}
        data = save(tensors, {WHERE: where})
        digest = hashlib.sha256(data).digest()
        path = self.directory / self._part_name(head, self.group.rank, digest)
        digests = self._agreed(lambda: self._write(path, data), digest, path)
        names = [self._part_name(head, rank, each) for rank, each in enumerate(digests)]
        index = {"fingerprint": self.fingerprint, "parts": names, "state": state}
        text = json.dumps(index, sort_keys=True).encode()
        made = self.directory / f"{head}-{hashlib.sha256(text).hexdigest()}.json"
        leads = self.group.rank == 0
        self._agreed((lambda: self._write(made, text)) if leads else lambda: None, b"", path)
        if leads:
            self._let_go(made, head, final)
        return made

    def _write(self, path: Path, data: bytes) -> None:
        if self.claim is not None:
            self.claim.check()  # its ConnectionError is an OSError, of which all are told
        write(path, data)

    def _part_name(self, head: str, rank: int, digest: bytes) -> str:
        return f"part-{head}-{rank:05d}-of-{self.group.size:05d}-{digest.hex()}.safetensors"

    def _agreed(self, written: Callable[[], None], digest: bytes, path: Path) -> list[bytes]:
        """Write, and hear from all whether they could; the digests of what they wrote."""
        error: OSError | None = None
        try:
            written()
        except OSError as found:
            error = found
        told = torch.zeros(1 + _DIGEST_BYTES, dtype=torch.uint8)
        told[0] = error is None
        told[1 : 1 + len(digest)] = torch.frombuffer(bytearray(digest or b"\0"), dtype=torch.uint8)
        heard = self.group.gather(told)
        failed = [rank for rank, of_rank in enumerate(heard) if not of_rank[0]]
        if failed:
            if all(path.name not in _parts(index) for index in self._indices()):
                path.unlink(missing_ok=True)
            raise error or OSError(f"rank {failed[0]} could not write its part of a checkpoint")
        return [bytes(of_rank[1:].tolist()) for of_rank in heard]

    def _let_go(self, made: Path, head: str, final: bool) -> None:
        """Delete what need not stay beside ``made``, which was just written."""
        if final:
            old = [path for path in self._indices() if path != made]
        else:
            # What another training left at later steps is newer by name, and pushes nothing out.
            same = self.directory.glob(f"{head}-*.json")  # from before its validation
            old = [path for path in same if path != made]
            older = [p for p in self._indices() if "step-" <= p.name <= made.name and p not in old]
            old += older[KEPT:]
        kept = {name for path in self._indices() if path not in old for name in _parts(path)}
        for path in old:
            parts = _parts(path)
            path.unlink(missing_ok=True)
            for name in set(parts) - kept:
                (self.directory / name).unlink(missing_ok=True)

    # -- reading -------------------------------------------------------------------------------

    def latest(self) -> tuple[Checkpoint, bool] | None:
        """The newest whole checkpoint and whether it is the final one; None if there is none.

        Its tensors are read when they are asked for.

        Raises:
            ConnectionError: another process has gone.
        """
        if self.group.rank == 0:
            self._sweep()
        candidates = self._indices()
        while True:
            path = self._chosen(next(candidates, None))
            if path is None:
                return None
            found = self._read(path)
            if found is not None:
                return found, path.name.startswith("final")

    def _chosen(self, path: Path | None) -> Path | None:
        """The index that the leader reads next: a disk may show others something else."""
        told = torch.zeros(_DIGEST_BYTES, dtype=torch.uint8)
        if path is not None:
            digest = bytes.fromhex(path.stem.rpartition("-")[2])
            told = torch.frombuffer(bytearray(digest), dtype=torch.uint8)
        chosen = bytes(self.group.gather(told)[0].tolist())
        if not any(chosen):
            return None
        found = next(self.directory.glob(f"*-{chosen.hex()}.json"), None)
        return found or self.directory / f"absent-{chosen.hex()}.json"

    def _read(self, path: Path) -> Checkpoint | None:
        index = _index(path)
        names = [] if index is None else index["parts"]
        mine = names[self.group.rank :: self.group.size]
        broken = index is None or not all(_whole(self.directory / name) for name in mine)
        if int(self.group.sum(torch.tensor(int(broken)))):
            self._note(f"checkpoint {path.name} is damaged and was not used", warning=True)
            return None
        assert index is not None
        if index["fingerprint"] != self.fingerprint:
            self._note(f"checkpoint {path.name} is another training's and was not used")
            return None
        return Checkpoint(index["state"], stored([self.directory / name for name in names]))

    def _indices(self) -> Iterator[Path]:
        """The final index, then the others, newest first."""
        if not self.directory.is_dir():
            return
        named = [path for path in self.directory.iterdir() if _INDEX.fullmatch(path.name)]
        final = [path for path in named if path.name.startswith("final")]
        yield from final
        yield from sorted(set(named).difference(final), reverse=True)

    def _sweep(self) -> None:
        """Remove what a killed write left behind: temporary files, and parts of no index."""
        if not self.directory.is_dir():
            return
        named = {name for path in self._indices() for name in _parts(path)}
        for path in self.directory.glob("part-*.safetensors"):
            if path.name not in named:
                path.unlink(missing_ok=True)
        for pattern in (".part-*.safetensors.*", ".*.json.*"):
            for path in self.directory.glob(pattern):
                path.unlink(missing_ok=True)

    def _note(self, text: str, *, warning: bool = False) -> None:
        self.emit(Note(stage="train", text=text, warning=warning))


def _index(path: Path) -> Mapping[str, Any] | None:
    """What an index says; None if it is not what was written."""
    with suppress(FileNotFoundError):
        data = path.read_bytes()
        if path.stem.endswith(hashlib.sha256(data).hexdigest()):
            return json.loads(data)
    return None


def _parts(path: Path) -> list[str]:
    index = _index(path)
    return [] if index is None else index["parts"]


def _whole(path: Path) -> bool:
    """Whether a part is what was written."""
    try:
        with path.open("rb") as file:
            return path.stem.endswith(hashlib.file_digest(file, "sha256").hexdigest())
    except FileNotFoundError:
        return False
