"""Recall methods on real films beside what others report, and least squares beside implicit.

``als_vs_implicit`` is told in ``bench/factorization.py``. ``exact_search_vs_faiss_flat`` is queries
for each CPU second over those of faiss: 100,000 items of 64 numbers, the best 20. The films are
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

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from bench import factorization
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


def beside_faiss(quick: bool) -> Iterator[Figure]:
    """``exact_search_vs_faiss_flat``: made normal vectors, queries for each CPU second.

    Ours looks in 8 bits first, where the processor multiplies bytes; recall must be .999.
    """
    from drivetrain.core.retrieval import Exact

    items, queries, width, k = 100_000, 2_000 if quick else 10_000, 64, 20
    random = np.random.default_rng(0)
    held, asked = (random.standard_normal((n, width), np.float32) for n in (items, queries))
    index, ratios = Exact(held), list[float]()
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
    for part in (on_films, factorization.beside_implicit, beside_faiss):
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
