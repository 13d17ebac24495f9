"""A saved graph of neighbours, held against what it says of itself before hnswlib reads it.

hnswlib follows the neighbours that a file names wherever they lead, out of its memory too.
"""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any, cast

import numpy as np

from drivetrain.core.batch import Array
from drivetrain.core.errors import wrong

GRAPH, INDEX = "graph.bin", "index.json"
_HEAD = struct.Struct("<6QiI3QdQ")
"""Of hnswlib 0.8: offsets and counts, the highest layer, where a walk begins, and neighbours."""
_KINDS: dict[str, type] = {
    "format": int,
    "items": int,
    "width": int,
    "m": int,
    "build": int,
    "ef": int,
    "scale": float,
    "sha256": str,
}


def sha256(path: Path) -> str:
    """The digest of a file, hexadecimal."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def check_graph(folder: Path) -> dict[str, Any]:
    """What a saved index says of itself, when its graph has those bytes and no neighbour outside.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it was changed, or is of another format.
    """
    about = _about(folder / INDEX)
    path = folder / GRAPH
    found = sha256(path)
    if found != about["sha256"]:
        raise wrong(f"{path}: sha256", found, f"{about['sha256']}, as it was saved")
    data = np.memmap(path, np.uint8, mode="r")
    items, width, m = about["items"], about["width"], about["m"]
    links = 4 + 8 * m
    size = links + 4 * width + 8
    if len(data) < _HEAD.size + items * size + 4 * items:
        raise wrong(f"{path}: bytes", len(data), f"more, for {items} items of {width} numbers")
    head = _HEAD.unpack(data[: _HEAD.size].tobytes())
    offset, _, count, each, label, vector, layers, begin, upper, lowest, neighbours, *_ = head
    due = (0, items, size, size - 8, links, m, 2 * m, m)
    if (offset, count, each, label, vector, upper, lowest, neighbours) != due or begin >= items:
        raise wrong(f"{path}: its head", head, f"that of a graph of {items} items")
    rows = data[_HEAD.size : _HEAD.size + items * size].reshape(items, size)
    _check_links(path, rows[:, :links], items)
    labels = np.sort(np.ascontiguousarray(rows[:, -8:]).view(np.uint64)[:, 0])
    if (labels != np.arange(items, dtype=np.uint64)).any():
        raise wrong(f"{path}: labels", "others", f"each from 0 to {items - 1} once")
    _check_layers(path, data[_HEAD.size + items * size :], items, m, layers, begin)
    return about


def _about(path: Path) -> dict[str, Any]:
    try:
        about: Any = json.loads(path.read_text())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path}: found no JSON ({error}), allowed: what HNSW.save wrote."
        ) from None
    if not isinstance(about, dict):
        raise wrong(str(path), type(about).__name__, "an object, as HNSW.save wrote")
    about = cast("dict[str, Any]", about)
    if about.get("format") != 1:
        raise wrong(f"{path}: format", about.get("format"), "1, of HNSW.save")
    for name, kind in _KINDS.items():
        value: Any = about.get(name)
        if type(value) is not kind or (kind is not str and not value > 0):
            raise wrong(f"{path}: {name}", value, f"{kind.__name__} above 0")
    return about


def _check_links(path: Path, links: Array, items: int) -> None:
    """Refuse more neighbours than there is room for, and those that are no item."""
    counts, named, used = _lists(links)
    if counts.max(initial=0) > named.shape[1] or (named[used] >= items).any():
        raise wrong(f"{path}: neighbours", "others", f"up to {named.shape[1]} of {items} items")


def _lists(rows: Array) -> tuple[Array, Array, Array]:
    """Of each row how many neighbours, the room for them, and which of it is used.

    A row is a count (uint16), two bytes, and uint32 for each neighbour that there is room for.
    """
    counts = rows[:, :2].copy().view(np.uint16)[:, 0]
    named = rows[:, 4:].copy().view(np.uint32)
    room: Array = np.arange(int(named.shape[1]))
    used: Array = np.less(room, counts[:, None])
    return counts, named, used


def _check_layers(path: Path, data: Array, items: int, m: int, layers: int, begin: int) -> None:
    """Behind the lowest layer: for each item the bytes of its lists above, and those lists."""
    each, at = 4 + 4 * m, 0
    heights = np.zeros(items, np.int64)
    raw = data.tobytes()
    parts: list[int] = []
    for item in range(items):
        if at + 4 > len(raw):
            break
        length = int.from_bytes(raw[at : at + 4], "little")
        at += 4
        if length:
            if length % each or at + length > len(raw):
                raise wrong(f"{path}: bytes of a list", length, f"a multiple of {each}")
            heights[item] = length // each
            parts += range(at, at + length, each)
            at += length
    highest = int(heights.max(initial=0))
    if at != len(raw) or highest != layers or heights[begin] != layers:
        raise wrong(f"{path}: layers", highest, f"{layers}, and nothing behind them")
    if parts:
        rows = np.frombuffer(raw, np.uint8)[np.add.outer(parts, np.arange(each))]
        _check_links(path, rows, items)
        _check_heights(path, rows, heights)


def _check_heights(path: Path, rows: Array, heights: Array) -> None:
    """A neighbour in a layer must itself be in that layer: its lists are read there."""
    owners = np.repeat(np.arange(len(heights)), heights)
    first = np.repeat(np.cumsum(heights) - heights, heights)
    layer = np.arange(len(owners)) - first + 1
    _, named, used = _lists(rows)
    low: Array = used & (heights[np.where(used, named, 0)] < layer[:, None])
    if low.any():
        raise wrong(f"{path}: neighbours", "one of a lower layer", "those of the same layer")
