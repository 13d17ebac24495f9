"""The state of windows taken apart key by key, and put together again; both without its windows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from drivetrain.core.batch import Array
from drivetrain.core.errors import wrong
from drivetrain.core.native import kernel
from drivetrain.core.tracks import FORMAT

DIGEST = 16
"""Bytes of a declaration's digest, and of a state's own."""


@dataclass(frozen=True)
class KeyStates:
    """The keys of one track.

    Attributes:
        watermark: the latest time at which something became known to the track, in microseconds;
            missing: nothing did.
        hashes: uint64 ``[keys, 2]``.
        blobs: the state of each, as ``Tracks.dump_keys`` gives it.
    """

    watermark: int
    hashes: Array
    blobs: Sequence[bytes]


def digest_of(data: bytes) -> str:
    """What tells the declaration of a state from others.

    Raises:
        ValueError: it is not what ``Tracks.dump`` gave.
    """
    start = len(FORMAT)
    if data[:start] != FORMAT or len(data) < start + 2 * DIGEST:
        raise wrong("the state of windows", data[:start], "what dump() gave")
    return data[start : start + DIGEST].hex()


def apart(data: bytes) -> list[KeyStates]:
    """The keys of each track of what ``Tracks.dump`` gave.

    Raises:
        ValueError: it is damaged.
    """
    digest_of(data)
    start = len(FORMAT) + DIGEST
    body = data[start + DIGEST :]
    if kernel().siphash(body) != data[start : start + DIGEST]:
        raise wrong("the state of windows", "damaged or cut bytes", "all that dump() gave")
    found: list[KeyStates] = []
    at = 0
    while at < len(body):
        size = _number(body, at)
        found.append(_apart(body[at + 8 : at + 8 + size]))
        at += 8 + size
    return found


def _apart(data: bytes) -> KeyStates:
    hashes: list[bytes] = []
    blobs: list[bytes] = []
    at = 16
    while at < len(data):
        size = _number(data, at + 16)
        hashes.append(data[at : at + 16])
        blobs.append(data[at + 24 : at + 24 + size])
        at += 24 + size
    keys = np.frombuffer(b"".join(hashes), "<u8").astype(np.uint64).reshape(-1, 2)
    watermark = int.from_bytes(data[8:16], "little", signed=True)
    return KeyStates(watermark, keys, blobs)


def together(digest: str, tracks: Sequence[KeyStates]) -> bytes:
    """What ``Tracks.dump`` gives of tracks with these keys, each there once."""
    body = b"".join(part for track in tracks for part in _together(track))
    return FORMAT + bytes.fromhex(digest) + kernel().siphash(body) + body


def _together(track: KeyStates) -> Iterator[bytes]:
    order: list[int] = np.lexsort((track.hashes[:, 1], track.hashes[:, 0])).tolist()
    hashes = np.ascontiguousarray(track.hashes, "<u8")
    parts = [len(order).to_bytes(8, "little"), track.watermark.to_bytes(8, "little", signed=True)]
    blobs: Sequence[bytes] = [track.blobs[at] for at in order]
    for at, blob in zip(order, blobs, strict=True):
        parts += (hashes[at].tobytes(), len(blob).to_bytes(8, "little"), blob)
    whole = b"".join(parts)
    yield len(whole).to_bytes(8, "little")
    yield whole


def _number(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 8], "little")
