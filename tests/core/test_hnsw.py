"""Approximate search beside an exact one: what it finds, while it changes, and from a file."""

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drivetrain.core import hnsw
from drivetrain.core.hnsw import HNSW, index_for
from drivetrain.core.metric import Note
from drivetrain.core.retrieval import Exact, recall_of

pytest.importorskip("hnswlib", reason="NOT TESTED: hnswlib is not installed")


def drawn(items: int, width: int = 16, seed: int = 0) -> np.ndarray:
    """Vectors of which some are ten times as long as others."""
    random = np.random.default_rng(seed)
    lengths = random.uniform(0.2, 2, (items, 1))
    return (random.standard_normal((items, width)) * lengths).astype(np.float32)


ITEMS, ASKED = drawn(2000), drawn(100, seed=1)


@pytest.fixture(scope="module")
def index() -> HNSW:
    """Not to be changed."""
    return HNSW(ITEMS, ef=150)


def test_nearly_all_is_found_in_order_with_its_product(index: HNSW) -> None:
    assert recall_of(index, Exact(ITEMS), ASKED, 10) > 0.98
    places, scores = index.search(ASKED, 10)
    assert places.dtype == np.int64
    assert scores.dtype == np.float32
    own = np.take_along_axis(ASKED @ ITEMS.T, places, axis=1)
    np.testing.assert_allclose(scores, own, rtol=1e-4, atol=1e-4)
    assert (np.diff(scores, axis=1) <= 0).all()
    assert all(len(set(row)) == 10 for row in places.tolist())


def test_of_equals_the_lesser_place_comes_first() -> None:
    places, scores = HNSW(np.ones((30, 3), np.float32)).search(np.ones((2, 3), np.float32), 30)
    np.testing.assert_array_equal(places, [range(30)] * 2)
    assert (scores == 3).all()


@pytest.mark.parametrize("size", [1e-15, 1e15])
def test_the_size_of_vectors_changes_nothing(size: float) -> None:
    """hnswlib keeps one less the product, in which a small product would be lost."""
    items, asked = ITEMS[:300], ASKED[:20]
    due, best = HNSW(items).search(asked, 5)
    places, scores = HNSW(items * np.float32(size)).search(asked * np.float32(size), 5)
    np.testing.assert_array_equal(places, due)
    np.testing.assert_allclose(scores.astype(np.float64), best * float(size) ** 2, rtol=1e-3)


def test_more_candidates_find_more(index: HNSW) -> None:
    few = HNSW(ITEMS, m=4, build=20, ef=1)
    one = recall_of(few, Exact(ITEMS), ASKED, 10)
    few.ef = 500
    assert one < recall_of(few, Exact(ITEMS), ASKED, 10)


def test_one_thread_builds_and_finds_the_same_each_time(index: HNSW) -> None:
    again = HNSW(ITEMS, ef=150)
    for one, other in zip(index.search(ASKED, 20), again.search(ASKED, 20), strict=True):
        np.testing.assert_array_equal(one, other)


def test_queries_that_are_not_finite_find_nothing_and_zeros_find_any(index: HNSW) -> None:
    asked = np.zeros((4, 16), np.float32)
    asked[0, 3], asked[1, 0] = np.nan, np.inf
    asked[3] = ASKED[0]
    places, scores = index.search(asked, 3)
    assert (places[:2] == -1).all()
    assert np.isnan(scores[:2]).all()
    assert (scores[2] == 0).all()
    np.testing.assert_array_equal(places[3], index.search(ASKED[:1], 3)[0][0])
    assert index.search(asked[:0], 3)[0].shape == (0, 3)


def test_what_a_walk_does_not_reach_is_found_by_going_through_all() -> None:
    """Two neighbours each leave islands: every item is wanted, and every one is found."""
    random = np.random.default_rng(0)
    items = np.eye(40, dtype=np.float32)[random.integers(0, 40, 600)]
    asked = random.random((3, 40)).astype(np.float32)
    sparse = HNSW(items, m=2, build=1, ef=1)
    with pytest.raises(RuntimeError):
        sparse._graph.knn_query(asked, 600)
    places, scores = sparse.search(asked, 600)
    due, best = Exact(items).search(asked, 600)
    np.testing.assert_array_equal(np.sort(places, axis=1), np.sort(due, axis=1))
    np.testing.assert_allclose(scores, best, rtol=1e-5, atol=1e-6)


def test_items_are_replaced_and_added() -> None:
    index = HNSW(ITEMS[:1000])
    now = np.concatenate([ITEMS[:1000], drawn(700, seed=2)])
    replaced = np.random.default_rng(0).permutation(1000)[:300]
    now[replaced] = drawn(300, seed=3) * 2
    places = np.concatenate([np.arange(1699, 999, -1), replaced])
    index.add(places, now[places])
    assert index.items == 1700
    assert recall_of(index, Exact(now), ASKED, 10) > 0.97
    found, scores = index.search(ASKED, 10)
    own = np.take_along_axis(ASKED @ now.T, found, axis=1)
    np.testing.assert_allclose(scores, own, rtol=1e-4, atol=1e-4)


def test_it_answers_while_it_is_changed_and_every_item_is_whole() -> None:
    """All of an item's numbers are its version: an answer of two versions at once would show."""
    index, asked = HNSW(np.ones((200, 8), np.float32), m=8, build=40), np.ones((1, 8), np.float32)
    stop, seen, failed = threading.Event(), [0], list[BaseException]()

    def search() -> None:
        try:
            while not stop.is_set():
                places, scores = index.search(asked, 20)
                assert (places >= 0).all()
                assert (scores % 8 == 0).all(), "eight times a version"
                seen[0] += 1
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=search) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        version = 1
        while version < 4 or (seen[0] < 20 and not failed and version < 10_000):
            version += 1
            places = np.arange(200 + 10 * version, dtype=np.int64)
            places = places[: index.items + 10]
            index.add(places, np.full((len(places), 8), version, np.float32))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failed, failed
    assert seen[0] >= 20
    assert (index.search(asked, 20)[1] == 8 * version).all()


def test_a_saved_index_answers_the_same_and_can_be_changed(index: HNSW, tmp_path: Path) -> None:
    index.save(tmp_path / "index")
    loaded = HNSW.load(tmp_path / "index")
    assert (loaded.items, loaded.width, loaded.m, loaded.ef) == (2000, 16, 16, 150)
    for one, other in zip(index.search(ASKED, 10), loaded.search(ASKED, 10), strict=True):
        np.testing.assert_array_equal(one, other)
    loaded.add(np.array([2000]), ASKED[:1] * 100)
    assert loaded.search(ASKED[:1], 1)[0].tolist() == [[2000]]
    assert index.items == 2000
    with pytest.raises(FileExistsError):
        index.save(tmp_path / "index")


def rewrite(folder: Path, change: Any) -> None:
    """Change the graph as somebody would who also writes down its digest anew."""
    data = bytearray((folder / "graph.bin").read_bytes())
    change(data)
    (folder / "graph.bin").write_bytes(data)
    about = json.loads((folder / "index.json").read_text())
    about["sha256"] = hnsw.sha256(folder / "graph.bin")
    (folder / "index.json").write_text(json.dumps(about))


HEAD = 96
EACH = 4 + 8 * 16 + 4 * 16 + 8


def flip(data: bytearray) -> None:
    data[HEAD + 7 * EACH + 6] = 0xFF  # the third byte of the first neighbour: far outside


def many(data: bytearray) -> None:
    data[HEAD : HEAD + 2] = b"\xff\xff"


def label(data: bytearray) -> None:
    data[HEAD + EACH - 8 : HEAD + EACH] = (1).to_bytes(8, "little")


def entry(data: bytearray) -> None:
    data[52:56] = (5000).to_bytes(4, "little")


def highest(data: bytearray) -> None:
    data[48:52] = (90).to_bytes(4, "little")


def upper(data: bytearray) -> None:
    """A neighbour in a layer that it is not in."""
    each, at = 4 + 4 * 16, HEAD + 2000 * EACH
    alone = next(item for item, height in enumerate(heights(bytes(data[at:]), each)) if height == 0)
    while not int.from_bytes(data[at : at + 4], "little"):
        at += 4
    data[at + 4 : at + 6] = b"\x01\x00"
    data[at + 8 : at + 12] = alone.to_bytes(4, "little")


def heights(data: bytes, each: int) -> list[int]:
    found, at = [], 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "little")
        found.append(length // each)
        at += 4 + length
    return found


def cut(data: bytearray) -> None:
    del data[-3:]


@pytest.mark.parametrize("change", [flip, many, label, entry, highest, upper, cut])
def test_a_graph_that_leads_outside_is_refused_before_it_is_walked(
    change: Any, index: HNSW, tmp_path: Path
) -> None:
    index.save(tmp_path / "index")
    rewrite(tmp_path / "index", lambda data: None)
    HNSW.load(tmp_path / "index")
    rewrite(tmp_path / "index", change)
    with pytest.raises(ValueError, match=r"graph\.bin: .* allowed"):
        HNSW.load(tmp_path / "index")


def test_what_was_damaged_or_is_of_another_format_is_refused(index: HNSW, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    index.save(folder)
    about = (folder / "index.json").read_text()
    for text, says in (
        ("{", "found no JSON"),
        ("[1]", "allowed: an object"),
        (about.replace('"format": 1', '"format": 2'), "format: found 2"),
        (about.replace('"items": 2000', '"items": -1'), "items: found -1"),
        (about.replace('"items": 2000', '"items": 4000'), "graph.bin: bytes"),
        (about.replace('"items": 2000', '"items": 2001'), "graph.bin: its head"),
        (about.replace('"width": 16', '"width": 15'), "graph.bin: its head"),
    ):
        (folder / "index.json").write_text(text)
        with pytest.raises(ValueError, match=says):
            HNSW.load(folder)
    (folder / "index.json").write_text(about)
    data = bytearray((folder / "graph.bin").read_bytes())
    data[1000] ^= 1
    (folder / "graph.bin").write_bytes(data)
    with pytest.raises(ValueError, match="sha256: found"):
        HNSW.load(folder)
    with pytest.raises(FileNotFoundError):
        HNSW.load(tmp_path / "nowhere")


def test_few_items_are_gone_through_and_more_are_walked(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Any] = []
    assert isinstance(index_for(ITEMS, emit=heard.append), Exact)
    monkeypatch.setattr(hnsw, "EXACT_UP_TO", 1999)
    assert isinstance(index_for(ITEMS, emit=heard.append), HNSW)
    assert [type(one) for one in heard] == [Note, Note]
    assert heard[0].text == "exact search of 2,000 items; exact up to 200,000"
    assert heard[1].text.startswith("approximate search in a graph (HNSW) of 2,000 items")


def test_recall_counts_what_an_exact_search_finds() -> None:
    class Some:
        def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
            places, scores = Exact(ITEMS).search(queries, k)
            places[:, 1] = -1
            return places[:, ::-1], scores

    assert recall_of(Some(), Exact(ITEMS), ASKED, 4) == 0.75
    with pytest.raises(ValueError, match="queries"):
        recall_of(Some(), Exact(ITEMS), np.full((2, 16), np.nan, np.float32), 4)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda index: HNSW(np.ones(3, np.float32)), "items of HNSW"),
        (lambda index: HNSW(np.ones((0, 3), np.float32)), "items of HNSW"),
        (lambda index: HNSW(np.array([[1], [np.nan]], np.float32)), "items of HNSW, row 1"),
        (lambda index: HNSW(ITEMS, m=1), "HNSW m: found 1"),
        (lambda index: HNSW(ITEMS, build=0), "HNSW build: found 0"),
        (lambda index: HNSW(ITEMS, threads=0), "HNSW threads: found 0"),
        (lambda index: HNSW(ITEMS[:9], ef=0), "HNSW ef: found 0"),
        (lambda index: index.search(ASKED[:, :3], 1), "queries"),
        (lambda index: index.search(ASKED, 0), "k: found 0"),
        (lambda index: index.search(ASKED, 2001), "k: found 2001"),
        (lambda index: index.add(np.array([1]), ASKED[:2]), "vectors: found"),
        (lambda index: index.add(np.array([1, 1]), ASKED[:2]), "places: found 1, allowed: each"),
        (lambda index: index.add(np.array([-1]), ASKED[:1]), "places: found -1"),
        (lambda index: index.add(np.array([2001]), ASKED[:1]), "found 2001, allowed: 0 to 1999"),
        (lambda index: index.add(np.array([2000]), ASKED[:1] * np.inf), "vectors, row 0"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(make: Any, says: str, index: HNSW) -> None:
    with pytest.raises(ValueError, match=says):
        make(index)
    assert index.items == 2000
