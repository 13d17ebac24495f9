"""Recall methods on real films beside what others report, and least squares beside implicit.

``als_vs_implicit`` is CPU seconds over CPU seconds on one thread, to a loss that is no greater than
the one that implicit has after its 15 iterations. ``exact_search_vs_faiss_flat`` is queries for
each CPU second over those of faiss: 100,000 items of 64 numbers, the best 20. The films are
MovieLens 100k out of RecBole's wheel, divided 8:1:1 for each user as RecBole does; what a user had
in training or validation rows is left out, and all other items are ranked.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from bench.figure import Figure, figure, show, words
from bench.films import GENRES, figures_of, films, lay, trained
from bench.peer import ENVIRONMENTS, PEERS

EVEN = {"l2": 300.0, "even": 0.5}
EASE = {"l2": 150.0, "even": 0.5, "near": "5m", "time": "at"}
ALS = {"factors": 128, "alpha": 4.0, "l2": 40.0, "even": 0.5}
CONTENT = {"categories": ("genre",), "separator": " ", "width": 32, "contrast": True}
FUSED = (("EASE", EASE), ("ALS", ALS), ("Content", CONTENT))
"""What is fused, by NDCG at 20 of validation rows (seeds 5, 6 and 7)."""
METHODS: dict[str, tuple[str, dict[str, Any], tuple[float, float], str]] = {
    "popularity": ("Popularity", {}, (0.175, 0.149), "popularity"),
    "item_neighbours": ("ItemNeighbours", {"neighbours": 50}, (0.175, 0.149), "popularity"),
    "ease": ("EASE", {"l2": 400.0}, (0.397, 0.348), "EASE"),
    "ease_even": ("EASE", EVEN, (0.397, 0.348), "EASE"),
    "ease_near": ("EASE", EASE, (0.397, 0.348), "EASE"),
    "als": ("ALS", {"alpha": 4.0, "l2": 40.0}, (0.392, 0.328), "implicit's ALS"),
    "als_even": ("ALS", ALS, (0.392, 0.328), "implicit's ALS"),
    "fused": ("Fused", {"methods": FUSED}, (0.397, 0.365), "EASE"),
}
"""Class, options, the goals of recall and NDCG at 20, and whose they are."""


def told(task: str, folder: Path) -> dict[str, Any]:
    """What a peer's process printed.

    Raises:
        RuntimeError: it is not installed, or failed.
    """
    python = ENVIRONMENTS / "recall" / "bin" / "python"
    if not python.exists():
        raise RuntimeError("implicit and faiss are not installed; `make bench-setup` does that")
    command = [str(python), str(PEERS / "recall_peers.py"), task, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    if done.returncode:
        raise RuntimeError(f"{task}: {done.stderr[-2000:]}")
    return json.loads(done.stdout)


def beside_implicit(quick: bool) -> Iterator[Figure]:
    """``als_vs_implicit``: made interactions, seeded; items by a power law."""
    from drivetrain.train.als import ALS
    from drivetrain.train.recall import least_squares, sharing
    from drivetrain.train.recall.interactions import Sparse

    users, items, rows = (50_000, 10_000, 1_000_000) if quick else (200_000, 20_000, 5_000_000)
    iterations, alpha, l2, factors = 15, 10.0, 10.0, 64
    starts, columns = _made(users, items, rows)
    had = Sparse(starts, columns, np.full(len(columns), alpha, np.float32), items)
    assert had.turned.rows == items
    ratios: list[float] = []
    with tempfile.TemporaryDirectory(prefix="drivetrain-bench-") as folder:
        at = Path(folder)
        options = {"items": items, "alpha": alpha, "l2": l2, "factors": factors}
        arrays = {"starts": starts, "columns": columns, "iterations": iterations}
        np.savez(at / "als.npz", **arrays, **options)
        for number in range(3):
            theirs = told("als", at)
            random = np.random.default_rng(number)
            mine = [least_squares.Factors.drawn(n, factors, random) for n in (users, items)]
            seconds, loss, done = 0.0, np.inf, 0
            with mock.patch.object(sharing, "cores", return_value=1):
                while loss > theirs["loss"] and done < 4 * iterations:
                    begin = time.process_time()
                    least_squares.improve(mine[0], mine[1], had, l2=l2, steps=ALS.steps)
                    least_squares.improve(mine[1], mine[0], had.turned, l2=l2, steps=ALS.steps)
                    seconds += time.process_time() - begin
                    loss, done = least_squares.loss(mine[0], mine[1], had, l2=l2), done + 1
            _say(f"implicit {theirs['seconds']:.2f} s, loss {theirs['loss']:.6f}; "
                 f"ours {seconds:.2f} s, {done} iterations, loss {loss:.6f}")  # fmt: skip
            ratios.append(theirs["seconds"] / seconds)
    yield figure("als_vs_implicit", ratios, "implicit 0.7.2, one thread, equal loss", 3.0)


def _made(users: int, items: int, rows: int) -> tuple[Any, Any]:
    random = np.random.default_rng(0)
    share = 1 / np.arange(1, items + 1) ** 0.8
    drawn = random.choice(items, rows, p=share / share.sum())
    pairs = np.unique(random.integers(0, users, rows) * items + drawn)
    lengths = np.bincount(pairs // items, minlength=users)
    return np.concatenate([[0], np.cumsum(lengths)]), (pairs % items).astype(np.int32)


def beside_faiss(quick: bool) -> Iterator[Figure]:
    """``exact_search_vs_faiss_flat``: made normal vectors, queries for each CPU second.

    Ours looks in 8 bits first, where the processor multiplies bytes; recall must be .999.
    """
    from drivetrain.core.retrieval import Exact

    items, queries, width, k = 100_000, 2_000 if quick else 10_000, 64, 20
    random = np.random.default_rng(0)
    held, asked = (random.standard_normal((n, width), np.float32) for n in (items, queries))
    index, ratios = Exact(held, candidates=1.5), list[float]()
    with tempfile.TemporaryDirectory(prefix="drivetrain-bench-") as folder:
        at = Path(folder)
        np.savez(at / "search.npz", items=held, queries=asked, k=k)
        index.search(asked[:64], k)
        for _ in range(5):
            theirs = told("search", at)["seconds"]
            begin = time.process_time()
            places, _ = index.search(asked, k)
            seconds = time.process_time() - begin
            due = np.load(at / "found.npy")
            hits = [len({*a} & {*b}) for a, b in zip(places.tolist(), due.tolist(), strict=True)]
            recall = sum(hits) / due.size
            _say(f"faiss {queries / theirs:.0f}, ours {queries / seconds:.0f} queries for each "
                 f"CPU second, recall {recall:.5f}")  # fmt: skip
            if recall < 0.999:
                raise RuntimeError(f"found recall {recall:.5f}, allowed: .999 or more")
            ratios.append(theirs / seconds)
    yield figure("exact_search_vs_faiss_flat", ratios, "faiss 1.15.1 flat, one thread", 4.0)


def on_films(quick: bool) -> Iterator[Figure]:
    """Recall and NDCG at 20 of each method, through the whole pipeline, over seeds."""
    user, item, at = films()
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="drivetrain-bench-") as folder:
        for seed in range(2 if quick else 5):
            for name, value in _measured(Path(folder) / str(seed), user, item, at, seed).items():
                found.setdefault(name, []).append(value)
    for name, (_, _, goals, peer) in METHODS.items():
        for what, goal in zip(("recall", "ndcg"), goals, strict=True):
            called = f"{what}20_fused" if name == "fused" else f"{name}_{what}20"
            yield figure(called, found[f"{name}_{what}"], f"{peer}, reported", goal)


def _measured(folder: Path, user: Any, item: Any, at: Any, seed: int) -> dict[str, float]:
    import drivetrain as dt

    lay(folder, user, item, dt.random_parts(user, seed=seed), at)
    found: dict[str, float] = {}
    for name, (kind, options, _, _) in METHODS.items():
        method = replace(method_of(kind, options, folder), k=20, seen_in=("train", "validate"))
        for what, value in figures_of(trained(folder, method)).items():
            found[f"{name}_{what}"] = value
    _say(f"seed {seed}: " + ", ".join(f"{name} {value:.3f}" for name, value in found.items()))
    return found


def method_of(kind: str, options: dict[str, Any], folder: Path) -> Any:
    """A method of the films that lie in a folder, by its class and options."""
    import drivetrain as dt

    given = {**options, "target": "item"}
    if "methods" in given:
        inner = given["methods"]
        given["methods"] = tuple(method_of(name, told, folder) for name, told in inner)
    if kind == "Content":
        given["items"] = dt.Parquet(str(folder / GENRES))
    return getattr(dt, kind)(**given)


def figures(quick: bool) -> Iterator[Figure]:
    """Every figure; what needs a peer that is absent is told and left out."""
    for part in (on_films, beside_implicit, beside_faiss):
        try:
            yield from part(quick)
        except (RuntimeError, subprocess.CalledProcessError) as error:
            _say(f"{part.__name__}: {error}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    asked = words(__doc__)
    for measured in figures(asked.quick):
        show(measured, asked.json)
