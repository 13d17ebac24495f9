"""Approximate search in a graph of neighbours, for more items than an exact search goes through."""

import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from drivetrain.core import durable
from drivetrain.core.batch import Array
from drivetrain.core.errors import wrong
from drivetrain.core.hnsw_file import GRAPH, INDEX, check_graph, sha256
from drivetrain.core.metric import Emit, Note, silent
from drivetrain.core.need import need
from drivetrain.core.retrieval import Exact, Retrieval

EXACT_UP_TO = 200_000
"""So many items are gone through, beyond them :func:`index_for` builds a graph."""
_SIZE = 2.0**10
"""The norm that stored vectors and queries are brought near to. hnswlib keeps one less the product:
of small vectors nothing would be left in float32."""
_TURN = 4
"""Vectors that are put in while searches wait; then they have their turn."""
_SPARE = 0.25
"""Of the items: room that a graph grows by."""


class HNSW:
    """A hierarchical navigable small world of items; implements ``Retrieval``, nearly.

    A query walks from neighbour to neighbour and keeps the best ``ef`` that it met. What it finds
    is measured, not promised: see ``retrieval.recall_of``. Items are added and replaced while it
    answers; each is found whole, as it was or as it is. The graph is hnswlib's, which needs the
    extra ``retrieval``. One thread builds the same graph of the same items each time.

    Source: Malkov and Yashunin, "Efficient and robust approximate nearest neighbor search using
    Hierarchical Navigable Small World graphs", 2018.

    Args:
        items: float32 ``[items, width]``, finite.
        m: neighbours of an item; 4 bytes each, twice as many in the lowest layer.
        build: candidates that an item's neighbours are chosen from.
        ef: candidates that a query keeps; more find more and take longer. At least ``k`` are kept.
        threads: that build, and that share queries out.

    Raises:
        ImportError: hnswlib is not installed.
        ValueError: no items, numbers that are not finite, or an option out of its range.
    """

    def __init__(
        self, items: Array, *, m: int = 16, build: int = 200, ef: int = 100, threads: int = 1
    ) -> None:
        if items.ndim != 2 or not items.size:
            raise wrong("items of HNSW", items.shape, "[items, width], at least one of each")
        for name, value, least in (("m", m, 2), ("build", build, 1), ("threads", threads, 1)):
            if value < least:
                raise wrong(f"HNSW {name}", value, f"{least} or more")
        self.width = int(items.shape[1])
        self.m, self.build, self.threads = m, build, threads
        whole = _finite("items of HNSW", items)
        most = float(np.sqrt(np.einsum("id,id->i", whole, whole, dtype=np.float64).max()))
        self._scale = _power(np.array([most]))[0]
        self._turns = _Turns()
        self._graph: Any = need("hnswlib", "retrieval").Index("ip", self.width)
        self._graph.init_index(len(whole), m, build, 100)
        self._graph.add_items(whole * self._scale, np.arange(len(whole)), threads)
        self.items = len(whole)
        self.ef = ef

    @property
    def ef(self) -> int:
        """Candidates that a query keeps."""
        return self._ef

    @ef.setter
    def ef(self, value: int) -> None:
        if value < 1:
            raise wrong("HNSW ef", value, "1 or more")
        self._ef = value
        self._graph.set_ef(value)

    def search(self, queries: Array, k: int) -> tuple[Array, Array]:
        """The ``k`` items that a walk finds for each query, as ``Retrieval`` says but for recall.

        Scores are in float32 of products whose order of summation is hnswlib's. A query that is
        not finite finds nothing: its places are -1 and its scores NaN.

        Raises:
            ValueError: the queries have another width, or there are fewer items than ``k``.
        """
        if queries.ndim != 2 or queries.shape[1] != self.width:
            raise wrong("queries", queries.shape, f"[queries, {self.width}]")
        asked = np.ascontiguousarray(queries, np.float32)
        places = np.full((len(asked), max(k, 0)), -1, np.int64)
        scores = np.full(places.shape, np.nan, np.float32)
        rows = np.flatnonzero(np.isfinite(asked).all(axis=1))
        scales = _power(np.sqrt(np.square(asked[rows], dtype=np.float64).sum(axis=1)))
        with self._turns.shared():
            if not 1 <= k <= self.items:
                raise wrong("k", k, f"1 to {self.items}, the number of items")
            found, far = self._walk(asked[rows] * scales[:, None], k)
        places[rows] = found
        scores[rows] = (1 - far) / (scales[:, None] * self._scale)
        tied = scores[:, 1:] == scores[:, :-1]
        for row in np.flatnonzero(tied.any(axis=1)):  # equals come as they like
            order = np.lexsort((places[row], -scores[row]))
            places[row], scores[row] = places[row][order], scores[row][order]
        return places, scores

    def _walk(self, queries: Array, k: int) -> tuple[Array, Array]:
        """Labels int64 and one less the product, the best first, equals in no order."""
        if not len(queries):
            return np.empty((0, k), np.int64), np.empty((0, k), np.float32)
        try:
            labels, far = self._graph.knn_query(queries, k, self.threads)
        except RuntimeError:  # a walk met fewer than k: what is far from all else may be cut off
            if len(queries) == 1:
                return self._through_all(queries, k)
            parts = [self._walk(queries[i : i + 1], k) for i in range(len(queries))]
            return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
        return labels.astype(np.int64), far

    def _through_all(self, queries: Array, k: int) -> tuple[Array, Array]:
        vectors = np.asarray(self._graph.get_items(np.arange(self.items)), np.float32)
        places, scores = Exact(vectors).search(queries, k)
        return places, 1 - scores

    def add(self, places: Array, vectors: Array) -> None:
        """Put items in, or others in their place, while queries are answered.

        Args:
            places: int64 ``[n]``, each once: of items that are there, or the next ones without a
                hole.
            vectors: float32 ``[n, width]``, finite.

        Raises:
            ValueError: names the first place or vector that cannot be; nothing was changed.
        """
        places = np.asarray(places, np.int64)
        if vectors.shape != (len(places), self.width):
            raise wrong("vectors", vectors.shape, f"[{len(places)}, {self.width}]")
        order = np.argsort(places, kind="stable")
        places, vectors = places[order], _finite("vectors", vectors)[order]
        twice = np.flatnonzero(places[1:] == places[:-1])
        if len(twice):
            raise wrong("places", int(places[twice[0]]), "each place once")
        with self._turns.writing():
            new = places[places >= self.items]
            due = np.arange(self.items, self.items + len(new))
            if (places < 0).any() or (new != due).any():
                bad = places[places < 0][:1] if (places < 0).any() else new[new != due][:1]
                allowed = f"0 to {self.items - 1}, or the next from {self.items} on"
                raise wrong("places", int(bad[0]), allowed)
            for first in range(0, len(places), _TURN):
                part = slice(first, first + _TURN)
                with self._turns.alone():
                    self._put(places[part], vectors[part])

    def _put(self, places: Array, vectors: Array) -> None:
        count = max(self.items, int(places[-1]) + 1)
        if count > self._graph.get_max_elements():
            self._graph.resize_index(int(count * (1 + _SPARE)) + _TURN)
        self._graph.add_items(vectors * self._scale, places, 1)
        self.items = count

    def save(self, path: str | Path) -> None:
        """Write a directory that :meth:`load` reads: plain JSON and the graph, no code.

        Raises:
            FileExistsError: there is something already.
            OSError: it can't be written; nothing is left.
        """
        path = Path(path)
        if path.exists():
            raise FileExistsError(
                f"{path} is there already: an index is saved to a place of its own"
            )
        with durable.directory(path) as folder, self._turns.writing():
            self._graph.save_index(str(folder / GRAPH))
            about = {
                "format": 1,
                "items": self.items,
                "width": self.width,
                "m": self.m,
                "build": self.build,
                "ef": self.ef,
                "scale": float(self._scale),
                "sha256": sha256(folder / GRAPH),
            }
            (folder / INDEX).write_text(json.dumps(about, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path, *, threads: int = 1) -> "HNSW":
        """What :meth:`save` wrote, every byte and every neighbour of it checked.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it was changed, or is of another format.
        """
        path = Path(path)
        about = check_graph(path)
        index = cls.__new__(cls)
        index.width, index.items = about["width"], about["items"]
        index.m, index.build, index.threads = about["m"], about["build"], threads
        index._scale = np.float32(about["scale"])
        index._turns = _Turns()
        index._graph = need("hnswlib", "retrieval").Index("ip", index.width)
        index._graph.load_index(str(path / GRAPH), index.items)
        index.ef = about["ef"]
        return index


def index_for(items: Array, *, threads: int = 1, emit: Emit = silent) -> Retrieval:
    """An exact search of up to 200,000 items, a graph of more; which one it is, is emitted.

    Args:
        items: float32 ``[items, width]``.
        threads: of the index.
        emit: hears a ``Note``.

    Raises:
        ImportError: there are more items, and hnswlib is not installed.
        ValueError: there are no items, or they have no numbers.
    """
    exact = len(items) <= EXACT_UP_TO
    made = Exact(items, threads) if exact else HNSW(items, threads=threads)
    kind = "exact search" if exact else "approximate search in a graph (HNSW)"
    text = f"{kind} of {len(items):,} items; exact up to {EXACT_UP_TO:,}"
    emit(Note(stage="retrieval", text=text))
    return made


def _finite(what: str, rows: Array) -> Array:
    whole = np.ascontiguousarray(rows, np.float32)
    bad = np.flatnonzero(~np.isfinite(whole).all(axis=1))
    if len(bad):
        raise wrong(f"{what}, row {bad[0]}", whole[bad[0]].tolist(), "finite numbers")
    return whole


def _power(norms: Array) -> Array:
    """The powers of two, float32, that bring norms near to ``_SIZE``; 1 for 0."""
    with np.errstate(divide="ignore"):
        exponents = np.floor(np.log2(_SIZE / norms))
    return np.exp2(np.where(norms > 0, exponents, 0).clip(-120, 120)).astype(np.float32)


class _Turns:
    """Any number of searches, or one change; neither can keep the other waiting for ever.

    A change that waits goes before the searches that come after it, and those before the next one.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._searching = 0
        self._queued = 0
        self._changing = False
        self._writer = threading.RLock()

    @contextmanager
    def writing(self) -> Generator[None]:
        """Keep other changes away; searches go on."""
        with self._writer:
            yield

    @contextmanager
    def shared(self) -> Generator[None]:
        """Search beside others, while nothing is changed."""
        with self._changed:
            self._queued += 1
            self._changed.wait_for(lambda: not self._changing)
            self._queued -= 1
            self._searching += 1
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._searching -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Generator[None]:
        """Change, within :meth:`writing`, when the searches that began are done."""
        with self._changed:
            self._changed.wait_for(lambda: not self._queued)
            self._changing = True
            self._changed.wait_for(lambda: not self._searching)
        try:
            yield
        finally:
            with self._changed:
                self._changing = False
                self._changed.notify_all()
