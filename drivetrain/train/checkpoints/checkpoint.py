"""Checkpoints on disk: one file each, whole or absent, its digest in its name, no pickle."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from safetensors.torch import load, save

from drivetrain.core.claim import Claim
from drivetrain.core.durable import write
from drivetrain.core.metric import Emit, Note, silent

KEPT = 2
"""How many checkpoints stay: if the newest is damaged, the one before it is used."""

_NAME = re.compile(r"(?:step-(\d{12})|final)-([0-9a-f]{64})\.safetensors")
_STATE = "state"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a training must remember to go on as if it had never stopped.

    Attributes:
        state: JSON-like data.
        tensors: by name; read on the CPU, or on disk until they are asked for.
    """

    state: Mapping[str, Any]
    tensors: Mapping[str, Any]


class Storage(Protocol):
    """The checkpoints of one training, whole or absent."""

    @property
    def directory(self) -> Path:
        """Where they are."""
        ...

    def part(self, checkpoint: Checkpoint) -> Checkpoint | None:
        """What this process writes of a checkpoint, not copied yet; None if nothing."""
        ...

    def save(self, checkpoint: Checkpoint, step: int, *, final: bool = False) -> Path:
        """Write a part, and let go of what is older than need be.

        Raises:
            OSError: it can't be written; the checkpoints are then as they were.
        """
        ...

    def latest(self) -> tuple[Checkpoint, bool] | None:
        """The newest whole checkpoint and whether it is the final one; None if there is none."""
        ...


class Checkpoints:
    """The checkpoints of one training in one directory, a file each.

    Args:
        directory: this training's own.
        fingerprint: names the training; checkpoints of another one are not used.
        emit: where it is said that one was not used.
        writes: whether this process does; of several with the same weights one is enough.
        claim: whose turn it is to write; None where nobody else may come.
    """

    def __init__(
        self,
        directory: Path,
        fingerprint: str,
        emit: Emit = silent,
        *,
        writes: bool = True,
        claim: Claim | None = None,
    ) -> None:
        self.directory = directory
        self.fingerprint = fingerprint
        self.emit = emit
        self.writes = writes
        self.claim = claim

    def part(self, checkpoint: Checkpoint) -> Checkpoint | None:
        """All of it, or nothing."""
        return checkpoint if self.writes else None

    def save(self, checkpoint: Checkpoint, step: int, *, final: bool = False) -> Path:
        """Write a checkpoint; older ones beyond :data:`KEPT`, or all before a final one, go.

        Raises:
            ConnectionError: a later generation of this job writes here now.
            OSError: no space, no permission; the checkpoints are then as they were.
        """
        if self.claim is not None:
            self.claim.check()
        state = {**checkpoint.state, "fingerprint": self.fingerprint}
        tensors = {name: t.detach().cpu().contiguous() for name, t in checkpoint.tensors.items()}
        data = save(tensors, {_STATE: json.dumps(state, sort_keys=True)})
        head = "final" if final else f"step-{step:012d}"
        path = self.directory / f"{head}-{hashlib.sha256(data).hexdigest()}.safetensors"
        write(path, data)
        for other in self.directory.glob(f"{head}-*.safetensors"):
            if other != path:  # the same step, from before its validation
                other.unlink(missing_ok=True)
        for old in self._older(path, final):
            old.unlink(missing_ok=True)
        return path

    def _older(self, path: Path, final: bool) -> list[Path]:
        """What need not stay beside ``path``, which was just written."""
        if final:
            return [file for file in self._files() if file != path]
        # What another training left at later steps is newer by name, and pushes nothing out.
        return [f for f in self._files() if "step-" <= f.name <= path.name][KEPT:]

    def latest(self) -> tuple[Checkpoint, bool] | None:
        """The newest whole checkpoint and whether it is the final one; None if there is none."""
        self._sweep()
        for path in self._files():
            found = self._read(path)
            if found is not None:
                return found, path.name.startswith("final")
        return None

    def _files(self) -> Iterator[Path]:
        """The final checkpoint, then the others, newest first."""
        if not self.directory.is_dir():
            return
        named = [path for path in self.directory.iterdir() if _NAME.fullmatch(path.name)]
        final = [path for path in named if path.name.startswith("final")]
        yield from final
        yield from sorted(set(named).difference(final), reverse=True)

    def _read(self, path: Path) -> Checkpoint | None:
        match = _NAME.fullmatch(path.name)
        assert match is not None
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != match.group(2):
            self._note(f"checkpoint {path.name} is damaged and was not used", warning=True)
            return None
        length = int.from_bytes(data[:8], "little")
        state = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_STATE])
        if state.pop("fingerprint") != self.fingerprint:
            self._note(f"checkpoint {path.name} is another training's and was not used")
            return None
        return Checkpoint(state, load(data))

    def _sweep(self) -> None:
        """Remove what a killed write left behind."""
        if self.directory.is_dir():
            for path in self.directory.glob(".*.safetensors.*"):
                path.unlink(missing_ok=True)

    def _note(self, text: str, *, warning: bool = False) -> None:
        self.emit(Note(stage="train", text=text, warning=warning))
