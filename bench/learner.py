"""What learning of each event is worth on real films, and what one event costs.

``online_vs_frozen_auc``: MovieLens 100k in the order of time; the first half of the rows trains,
and each row of the other half is first foreseen and then learnt. AUC is that of the row's film
among all films that its user has not had, no sample of them; both models see the same rows. The
frozen one has its trained vectors, and what was had most often for users whom training did not see.
A film that training did not see comes last there; its very first row is foreseen by neither and
left out. Intervals are those of the mean over rows when users are drawn anew.

``learner_shuffled_…``: after the first 4,000 events of that half, once in another order, how far
scores lie apart (root mean square), and how many of each first 20 stay.
``online_vs_frozen_auc_noisy``: nine random events follow each one.

``learner_us_64``: microseconds of CPU that one event takes, 64 factors, 100,000 made items.
``learner_bytes_per_user``: what each user takes who comes new.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from bench.figure import Figure, figure, show, words
from bench.films import films, lay, trained
from drivetrain.core.initializers import initializers
from drivetrain.core.learner import CATALOGUE, ITEMS, USER_FACTORS, USERS, Learner

OPTIONS = {"factors": 64, "alpha": 4.0, "l2": 40.0}
K = 20


@dataclass(frozen=True)
class Foreseen:
    """What one row showed of both models: AUC, and whether its film was in the first 20."""

    user: int
    known: bool
    online: tuple[float, float]
    frozen: tuple[float, float]


def on_films(quick: bool) -> Iterator[Figure]:
    """Progressive AUC and recall on the second half of the films' rows, over seeds."""
    ratios: dict[str, list[float]] = {"auc": [], "recall20": []}
    for seed in range(2 if quick else 5):
        found = list(_progressive(seed, every=3 if quick else 1))
        for at, name in enumerate(ratios):
            both = np.array([(row.online[at], row.frozen[at]) for row in found])
            online, frozen = both.mean(axis=0)
            ratios[name].append(online / frozen)
            users = np.array([row.user for row in found])
            low, high = _interval(users, both[:, 0] - both[:, 1])
            known = np.array([row.known for row in found])
            parts = [f"{who} {both[m, 0].mean():.4f} against {both[m, 1].mean():.4f}"
                     for who, m in (("trained users", known), ("new users", ~known))]  # fmt: skip
            _say(f"seed {seed}, {len(found)} rows, {name}: online {online:.4f}, frozen "
                 f"{frozen:.4f}, difference {online - frozen:.4f} ({low:.4f} to {high:.4f}); "
                 + ", ".join(parts))  # fmt: skip
    for name, values in ratios.items():
        yield figure(f"online_vs_frozen_{name}", values, "the same bundle, frozen", 1.0)


def disturbed(quick: bool) -> Iterator[Figure]:
    """Events in another order, and among events that mean nothing."""
    user, item = _in_time()
    half, events = len(user) // 2, 4_000
    model = _trained(user[:half], item[:half], 0)
    pairs = np.stack([user, item], 1)[half : half + events]
    told: list[Any] = []
    for order in (np.arange(events), np.random.default_rng(0).permutation(events)):
        learner = Learner.of(model)
        assert learner is not None
        for who, film in pairs[order].tolist():
            learner.tell((who, film))
        trained = len(initializers(model, (CATALOGUE,)).arrays[CATALOGUE])
        who = np.unique(pairs[:, 0])
        told.append(learner.read(who) @ learner.tensors()[ITEMS][:trained].T)
    first, other = told
    rms = float(np.sqrt(((first - other) ** 2).mean() / (first**2).mean()))
    best = [np.argsort(-scores, axis=1, kind="stable")[:, :K] for scores in told]
    same = [len({*a} & {*b}) / K for a, b in zip(*(b.tolist() for b in best), strict=True)]
    peer = f"the order of time, {events:,} events, {len(first)} users"
    yield figure("learner_shuffled_rms", [rms], peer, 0.0)
    yield figure("learner_shuffled_first20", [float(np.mean(same))], peer, 1.0)
    rows = list(islice(_progressive(0, 3, noise=9), 1_000 if quick else 10_000))
    online, frozen = np.array([(row.online[0], row.frozen[0]) for row in rows]).mean(axis=0)
    _say(f"nine random events to each: online {online:.4f}, frozen {frozen:.4f}")
    ratio = float(online / frozen)
    yield figure("online_vs_frozen_auc_noisy", [ratio], "the same bundle, frozen", 1.0)


def _progressive(seed: int, every: int, noise: int = 0) -> Iterator[Foreseen]:
    """Foresee rows of the second half, each before it is learnt, and random events after it."""
    user, item = _in_time()
    half = len(user) // 2
    model = _trained(user[:half], item[:half], seed)
    learner = Learner.of(model)
    assert learner is not None
    held = initializers(model, (CATALOGUE, ITEMS, USER_FACTORS, USERS)).arrays
    rows = {who: row for row, who in enumerate(held[USERS].tolist()) if row > 1}
    places = {film: at for at, film in enumerate(held[CATALOGUE].tolist())}
    trained, had = len(places), dict[int, list[int]]()
    random, known, films_of = np.random.default_rng(seed), [*rows], [*places]
    for who, film in zip(user[:half].tolist(), item[:half].tolist(), strict=True):
        had.setdefault(who, []).append(places[film])
    later = zip(user[half:].tolist(), item[half:].tolist(), strict=True)
    for number, (who, film) in enumerate(later):
        if film in places and number % every == 0:
            left = np.ones(len(places), bool)
            left[had.get(who, [])] = False
            before = held[USER_FACTORS][rows.get(who, 0)]
            now = learner.ask(who)
            online = learner.tensors()[ITEMS][: len(places)] @ (before if now is None else now)
            frozen = held[ITEMS][: len(places)] @ before
            frozen[trained:] = -np.inf
            both = (_foreseen(scores, places[film], left) for scores in (online, frozen))
            yield Foreseen(who, who in rows, *both)
        learner.tell((who, film))
        had.setdefault(who, []).append(places.setdefault(film, len(places)))
        for at, other in random.integers(0, (len(known), trained), (noise, 2)):
            learner.tell((known[at], films_of[other]))
    _say(f"seed {seed}: {learner.figures()}")


def _foreseen(scores: Any, place: int, left: Any) -> tuple[float, float]:
    """AUC of one place among those that are left, and whether it is among the first."""
    mine = scores[place]
    if mine == -np.inf:
        return 0.0, 0.0
    above, same = (scores[left] > mine).sum(), (scores[left] == mine).sum() - 1
    return 1 - (above + same / 2) / (left.sum() - 1), float(above < K)


def _interval(users: Any, values: Any) -> tuple[float, float]:
    """The 95 % interval of the mean over rows when users are drawn anew."""
    _, who = np.unique(users, return_inverse=True)
    sums, counts = np.bincount(who, values), np.bincount(who)
    drawn = np.random.default_rng(0).integers(0, len(sums), (2000, len(sums)))
    low, high = np.percentile(sums[drawn].sum(1) / counts[drawn].sum(1), [2.5, 97.5])
    return float(low), float(high)


def _trained(user: Any, item: Any, seed: int) -> bytes:
    """The graph of a bundle that such rows train, through the whole pipeline."""
    import drivetrain as dt
    from drivetrain.core.bundle import GRAPH

    method = dt.ALS(target="item", k=K, seed=seed, online=dt.Online(guard=1.0), **OPTIONS)
    with tempfile.TemporaryDirectory(prefix="drivetrain-bench-") as folder:
        at = Path(folder)
        lay(at, user, item, ["train", *["train"] * (len(user) - 2), "test"])
        return trained(at, method).read(GRAPH)


def _in_time() -> tuple[Any, Any]:
    """Users and films of MovieLens 100k in the order of time."""
    user, item, at = films()
    order = np.lexsort((item, user, at))
    return user[order], item[order]


def alone(quick: bool) -> Iterator[Figure]:
    """CPU of one event, by factors and items: users by chance, items by a power law."""
    found: list[float] = []
    for factors in (32, 64, 128):
        for items in (2_000, 100_000):
            values = _seconds(factors, items, 1_000 if quick else 5_000)
            _say(
                f"{factors} factors, {items} items: {[round(v * 1e6) for v in values]} µs an event"
            )
            if (factors, items) == (64, 100_000):
                found = [value * 1e6 for value in values]
    yield figure("learner_us_64", found, "an event, 100,000 items; fewer is better", 300.0)


def _seconds(factors: int, items: int, events: int) -> list[float]:
    """CPU seconds of one event, thrice, when most lists are full."""
    random, learner = np.random.default_rng(1), _drawn(factors, items)
    share = 1 / np.arange(1, items + 1) ** 0.8
    drawn = random.choice(items, 4 * events, p=share / share.sum())
    pairs = list(zip(random.integers(0, 100, 4 * events).tolist(), drawn.tolist(), strict=True))
    for pair in pairs[:events]:
        learner.tell(pair)
    seconds: list[float] = []
    for part in range(1, 4):
        before, begin = learner.learnt, time.process_time()
        for pair in pairs[part * events : (part + 1) * events]:
            learner.tell(pair)
        seconds.append((time.process_time() - begin) / (learner.learnt - before))
    return seconds


def in_memory(quick: bool) -> Iterator[Figure]:
    """What users that come new take, with the slots that are in use and without names."""
    learner, users = _drawn(64, 500, "string"), 20_000 if quick else 60_000
    for number in range(2_000):
        learner.tell((f"warm {number}", number % 500))
    before, held = learner.bytes, _resident()
    for number in range(users):
        learner.tell((f"user-{number:08d}", number % 500))
    values = [(learner.bytes - before) / users, (_resident() - held) / users]
    _say(f"a new user: {values[0]:.0f} bytes of arrays, {values[1]:.0f} of the process")
    peer = "none: stated; 64 factors and partners, names of 13 letters; the greater is resident"
    yield figure("learner_bytes_per_user", values, peer, 0.0, value=max(values))


def _resident() -> int:
    """Bytes of memory that this process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _drawn(factors: int, items: int, kind: Any = "int64") -> Any:
    """A learner of made factors and users."""
    from drivetrain.core import learner as tensors
    from drivetrain.core.initializers import Initializers
    from drivetrain.core.online import Online, Spec

    random, users = np.random.default_rng(0), 20_000
    online = Online(guard=1.0)
    x, y = (random.normal(0, 0.3, (n, factors + 1)).astype(np.float32) for n in (users, items))
    held = np.zeros((items + online.capacity + 1, factors + 1), np.float32)
    held[:items] = y
    x[:, -1] = 0
    spec = Spec(user="user", item="item", user_type=kind, item_type="int64",
                alpha=4.0, l2=40.0, online=online)  # fmt: skip
    names = np.arange(users)
    arrays = {
        tensors.SPEC: np.array(spec.to_json(), object),
        tensors.USER: np.full((1, factors + 1), np.nan, np.float32),
        tensors.HAD: np.full((1, online.recent), items + online.capacity),
        tensors.ITEMS: held,
        tensors.NEW: np.full(online.capacity + 1, -(2**63)),
        tensors.CATALOGUE: np.arange(items),
        tensors.USERS: names.astype(str).astype(object) if kind == "string" else names,
        tensors.USER_FACTORS: x,
        tensors.USER_COUNTS: np.full(users, 50),
        tensors.ITEM_COUNTS: np.full(items, 50 * users // items),
        tensors.STARTS: np.zeros(users + 1, np.int64),
        tensors.KNOWN: np.full(1, items, np.int32),
    }
    called = {name: name for name in arrays}
    return tensors.Learner(Initializers(arrays, called, frozenset(tensors.LIVE)))


def figures(quick: bool) -> Iterator[Figure]:
    """Every figure; what cannot be had is told and left out."""
    for part in (on_films, disturbed, alone, in_memory):
        try:
            yield from part(quick)
        except subprocess.CalledProcessError as error:
            _say(f"{part.__name__}: {error}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    asked = words(__doc__)
    for measured in figures(asked.quick):
        show(measured, asked.json)
