"""Where the states of windows stand: positions, and the files that the keys lie in behind them.

What is written down before a commit of the table names the positions that the commit brings. So
one that names the positions at which the table stands is the right one, wherever a run was killed.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree
from typing import Any, Self

import numpy as np

from drivetrain.core import durable
from drivetrain.core.batch import Array
from drivetrain.core.errors import wrong
from drivetrain.core.key_states import KeyStates, apart, digest_of, together
from drivetrain.events.topic.places import Places
from drivetrain.events.windowed.carry import pack, unpack
from drivetrain.events.windowed.keyed import ENDING, Keyed, divided

FOLDER = "windows"
"""Below the directory of a stream's runner."""

FORMAT = 1


@dataclass(frozen=True)
class States:
    """What the windows of one step know.

    Attributes:
        label: the step, as it was written.
        digest: of the declaration.
        watermarks: of each track.
        parts: the keys, divided.
    """

    label: str
    digest: str
    watermarks: Sequence[int]
    parts: Sequence[Keyed]

    @classmethod
    def of(cls, label: str, data: bytes, folder: Path, parts: int) -> Self:
        """Out of what ``Tracks.dump`` gave.

        Raises:
            ValueError: it is damaged.
            OSError: the disk is full.
        """
        tracks = apart(data)
        by_part = zip(*(divided(track, parts) for track in tracks), strict=True)
        made = tuple(Keyed(folder).add(keys) for keys in by_part)
        return cls(label, digest_of(data), [track.watermark for track in tracks], made)

    def data(self) -> bytes:
        """What ``Tracks.dump`` would give.

        Raises:
            OSError: a file is gone.
        """
        count = len(self.watermarks)
        held = [part.states(count) for part in self.parts]
        tracks: list[KeyStates] = []
        for number, watermark in enumerate(self.watermarks):
            hashes, blobs = _joined([part[number] for part in held])
            tracks.append(KeyStates(watermark, hashes, blobs))
        return together(self.digest, tracks)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        parts = [part.files for part in self.parts]
        watermarks = list(self.watermarks)
        head = {"label": self.label, "digest": self.digest}
        return {**head, "watermarks": watermarks, "parts": parts}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], folder: Path) -> Self:
        """What :meth:`to_json` gave."""
        parts = tuple(Keyed(folder, tuple(files)) for files in data["parts"])
        return cls(data["label"], data["digest"], tuple(data["watermarks"]), parts)


def _joined(parts: Sequence[tuple[Array, Sequence[bytes]]]) -> tuple[Array, list[bytes]]:
    hashes = np.concatenate([hashes for hashes, _ in parts])
    return hashes, [blob for _, blobs in parts for blob in blobs]


@dataclass
class _Bytes:
    """What one step with windows remembers, as bytes."""

    label: str
    data: bytes = b""

    def dump(self) -> bytes:
        return self.data

    def load(self, data: bytes) -> None:
        self.data = data


def states_of(data: bytes, labels: Sequence[str], folder: Path, parts: int) -> list[States]:
    """What a plan's windows know, out of ``Plan.state``.

    Raises:
        ValueError: it is damaged, or of another plan.
        OSError: the disk is full.
    """
    held = [_Bytes(label) for label in labels]
    unpack(data, held)
    return [States.of(each.label, each.data, folder, parts) for each in held]


@dataclass(frozen=True)
class Standing:
    """What is written down of windows.

    Attributes:
        path: the file.
        topic: the name of the topic's identity, of which there may be several in time.
        positions: behind all that the windows know.
        steps: what the windows of each step know.
    """

    path: Path
    topic: str
    positions: Mapping[int, int]
    steps: Sequence[States] = field(repr=False)

    def write(self) -> None:
        """Write it down, whole or not at all.

        Raises:
            OSError: the disk is full.
        """
        positions = {str(number): at for number, at in self.positions.items()}
        head = {"format": FORMAT, "topic": self.topic, "positions": positions}
        told = {**head, "steps": [step.to_json() for step in self.steps]}
        durable.write(self.path, json.dumps(told).encode())

    @classmethod
    def read(cls, path: Path) -> Self:
        """What was written.

        Raises:
            OSError: it cannot be read.
            ValueError: it is damaged.
        """
        try:
            told = json.loads(path.read_bytes())
            if told["format"] != FORMAT:
                raise wrong(f"{path}, format", told["format"], str(FORMAT))
            positions = {int(number): int(at) for number, at in told["positions"].items()}
            steps = [States.from_json(step, path.parent) for step in told["steps"]]
            return cls(path, str(told["topic"]), positions, steps)
        except (KeyError, TypeError, AttributeError) as error:
            raise wrong(str(path), repr(error), "what was written") from None

    def state(self) -> bytes:
        """What ``Plan.state`` would give.

        Raises:
            OSError: a file is gone.
        """
        return pack([_Bytes(step.label, step.data()) for step in self.steps], 0)

    @property
    def whole(self) -> bool:
        """Whether all of its files are there."""
        return all(
            (part.folder / name).exists()
            for step in self.steps
            for part in step.parts
            for name in part.files
        )


def path_of(folder: Path, places: Places, at: Mapping[int, int]) -> Path:
    """Where what is known at these positions is written down."""
    return folder / f"stands-{places.generation:04}-{sum(at.values()):020}.json"


def found_in(folder: Path) -> list[Standing]:
    """All that is written down and can be read."""
    found: list[Standing] = []
    for path in folder.glob("stands-*.json"):
        with suppress(OSError, ValueError):
            found.append(Standing.read(path))
    return found


def keep_only(folder: Path, kept: Iterable[Standing]) -> None:
    """Remove what belongs to nothing that is kept."""
    kept = list(kept)
    names = {one.path.name for one in kept}
    names |= {
        name for one in kept for step in one.steps for part in step.parts for name in part.files
    }
    for path in folder.iterdir():
        if path.suffix in (".json", ENDING) and path.name not in names:
            path.unlink(missing_ok=True)


def forget(room: Path) -> None:
    """Remove all that was written down in the directory of a stream's runner."""
    rmtree(room / FOLDER, ignore_errors=True)
