"""Two towers on real films, and their training beside the loop that one writes in torch.

    python bench/two_tower.py --quick --json

``recall20_two_tower`` and ``ndcg20_two_tower``: MovieLens 100k, divided and ranked as
``bench/recall.py`` has it, over seeds; the goals are what implicit's ALS is reported with.

``two_tower_vs_torch``: samples per CPU second, ours over the peer's, in turn, on one thread: made
pairs of 200,000 users and 50,000 items, which are had by Zipf's law, vectors of 64 numbers, batches
of 2048 rows with 2048 uniform negatives. The peer is a torch loop written out here, as the papers
have it: two embeddings whose gradients are sparse, ``SparseAdam``, one product of all rows with all
candidates, corrected and masked, ``cross_entropy``. Ours is the whole of ``Single.fit`` with
``rows=RowWise(…)``. ``two_tower_vs_dense_adam``: the same loop with ``Adam`` over both tables.
``two_tower_loss_gain``: the loss of the full softmax on pairs that neither saw, the peer's less
ours, after one pass over the same rows.
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch import Tensor, nn

from bench.figure import Figure, figure, show, words

USERS, ITEMS, DIM, BATCH, MIXED = 200_000, 50_000, 64, 2048, 2048
TEMPERATURE = 0.2
TASTES = 40
PEER_LR = 0.01


@dataclass(frozen=True)
class Made:
    """Users of made tastes: an item is one of the user's taste, or any, by how popular it is.

    Attributes:
        user: int64 ``[rows]``.
        item: int64 ``[rows]``, from 1.
        held_out: how many of the last rows are not trained on.
    """

    user: Any
    item: Any
    held_out: int

    @classmethod
    def of(cls, rows: int, held_out: int, seed: int) -> "Made":
        random = np.random.default_rng(seed)
        total = rows + held_out
        share = 1 / np.arange(1, ITEMS // TASTES + 1) ** 0.9
        rank = random.choice(len(share), total, p=share / share.sum())
        user = (random.random(total) ** 4 * USERS).astype(np.int64)
        taste = np.where(
            random.random(total) < 0.8, user % TASTES, random.integers(0, TASTES, total)
        )
        return cls(user, rank * TASTES + taste + 1, held_out)

    @property
    def trained(self) -> tuple[Any, Any]:
        """Users and items of the training rows."""
        return self.user[: -self.held_out], self.item[: -self.held_out]

    @property
    def tested(self) -> tuple[Tensor, Tensor]:
        """Users and items of the others."""
        user, item = self.user[-self.held_out :], self.item[-self.held_out :]
        return torch.from_numpy(user), torch.from_numpy(item)


def ours(made: Made, seed: int) -> tuple[Tensor, Tensor]:
    """A pass over the rows: vectors of all users and of all items."""
    from drivetrain.core.schema import FeatureField, FeatureSchema
    from drivetrain.core.seams import Run
    from drivetrain.train import RowWise, Single
    from drivetrain.train.sampled_softmax import SampledSoftmax
    from drivetrain.train.towers.pairs import ITEM, Pairs
    from drivetrain.train.two_tower import TwoTower

    class Source:
        features = FeatureSchema((FeatureField(name="user", kind="index", cardinality=USERS),))
        events = None

    user, item = made.trained
    rows = {"index": user.astype(np.int32)[:, None], ITEM: item.astype(np.int32)[:, None]}
    columns: Any = {"train": rows, "validate": {name: part[:0] for name, part in rows.items()}}
    extra = (FeatureField(name=ITEM, kind="bag", cardinality=ITEMS + 1),)
    source: Any = Source()
    pairs = Pairs(source, extra, False, columns)
    strategy = Single(
        loss=SampledSoftmax(mixed=MIXED, temperature=TEMPERATURE),
        batch_size=BATCH,
        lr=0.01,
        rows=RowWise(lr=0.05),
        seed=seed,
    )
    method = TwoTower(target="item", dim=DIM, train=strategy)
    with tempfile.TemporaryDirectory() as folder:
        towers = method._towers(source, pairs, np.arange(ITEMS))
        fitted: Any = strategy.fit(towers, pairs, Run(directory=Path(folder)))
    with torch.no_grad():
        return fitted.user(torch.arange(USERS)[:, None]), fitted.item.all()


def peer(made: Made, seed: int, *, sparse: bool) -> tuple[Tensor, Tensor]:
    """The same by a loop of torch alone."""
    user, item = (torch.from_numpy(column) for column in made.trained)
    torch.manual_seed(seed)
    users, items = (nn.Embedding(n, DIM, sparse=sparse) for n in (USERS, ITEMS + 1))
    parameters = [*users.parameters(), *items.parameters()]
    for weight in parameters:
        nn.init.normal_(weight, std=0.05)
    kind = torch.optim.SparseAdam if sparse else torch.optim.Adam
    bias = nn.Parameter(torch.zeros(DIM))  # of all users: whoever is new is near them
    optimizers = [kind(parameters, lr=PEER_LR), torch.optim.Adam([bias], lr=0.01)]
    share = torch.bincount(item, minlength=ITEMS + 1) / len(item)
    normalize = nn.functional.normalize
    for rows in torch.randperm(len(user)).split(BATCH):
        own = item[rows]
        candidates = torch.cat([own, torch.randint(1, ITEMS + 1, (MIXED,))])
        one, other = normalize(users(user[rows]) + bias, dim=1), normalize(items(candidates), dim=1)
        logits = one @ other.T / TEMPERATURE
        correction = ((len(rows) - 1) * share[candidates] + MIXED / ITEMS).log()
        correction = correction.repeat(len(rows), 1).fill_diagonal_(0)
        logits = logits - correction
        same = own[:, None] == candidates[None]
        same.fill_diagonal_(False)
        logits = logits.masked_fill(same, float("-inf"))
        loss = nn.functional.cross_entropy(logits, torch.arange(len(rows)))
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
    with torch.no_grad():
        return normalize(users.weight + bias, dim=1), normalize(items.weight[1:], dim=1)


def loss_of(vectors: tuple[Tensor, Tensor], made: Made) -> float:
    """Of the softmax over all items that were trained on, on rows that were held out."""
    users, items = vectors
    never = torch.bincount(torch.from_numpy(made.trained[1]), minlength=ITEMS + 1)[1:] == 0
    user, item = made.tested
    user, item = user[~never[item - 1]], item[~never[item - 1]]
    total = 0.0
    for u, i in zip(user.split(256), item.split(256), strict=True):
        scores = (users[u] @ items.T / TEMPERATURE).masked_fill(never, float("-inf"))
        total += nn.functional.cross_entropy(scores, i - 1, reduction="sum").item()
    return total / len(user)


def beside_torch(quick: bool) -> Iterator[Figure]:
    """The loops, in turn."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found: dict[str, list[float]] = {"torch": [], "dense_adam": []}
        gains: list[float] = []
        for seed in range(3 if quick else 5):
            made = Made.of((60 if quick else 200) * BATCH, 4096, seed)
            short = Made(made.user[: 12 * BATCH], made.item[: 12 * BATCH], BATCH)
            sides: dict[str, Any] = {
                "ours": lambda made=made, seed=seed: ours(made, seed),
                "torch": lambda made=made, seed=seed: peer(made, seed, sparse=True),
                "dense_adam": lambda made=short, seed=seed: peer(made, seed, sparse=False),
            }
            rates, losses = dict[str, float](), dict[str, float]()
            for name in list(sides)[:: 1 if seed % 2 else -1]:
                begin = time.process_time()
                vectors = sides[name]()
                rows = short if name == "dense_adam" else made
                rates[name] = len(rows.trained[0]) / (time.process_time() - begin)
                losses[name] = loss_of(vectors, made)
            _say(f"samples per CPU second {rates}, losses {losses}")
            for name, ratios in found.items():
                ratios.append(rates["ours"] / rates[name])
            gains.append(losses["torch"] - losses["ours"])
        version = f"a torch {torch.__version__} loop"
        yield figure("two_tower_vs_torch", found["torch"], f"{version}, SparseAdam", 1.5)
        yield figure("two_tower_vs_dense_adam", found["dense_adam"], f"{version}, Adam", 3.5)
        yield figure("two_tower_loss_gain", gains, f"{version}, SparseAdam", 0.0)
    finally:
        torch.set_num_threads(threads)


def on_films(quick: bool) -> Iterator[Figure]:
    """Recall and NDCG at 20 through the whole pipeline, over seeds."""
    import drivetrain as dt
    from bench.films import figures_of, films, lay, trained

    user, item, _ = films()
    found: dict[str, list[float]] = {"recall": [], "ndcg": []}
    for seed in range(2 if quick else 5):
        with tempfile.TemporaryDirectory(prefix="drivetrain-bench-") as name:
            folder = Path(name)
            lay(folder, user, item, dt.random_parts(user, seed=seed))
            method: Any = dt.TwoTower(target="item", k=20, seen_in=("train", "validate"))
            for what, value in figures_of(trained(folder, method)).items():
                found[what].append(value)
        _say(f"films, seed {seed}: {found}")
    yield figure("recall20_two_tower", found["recall"], "implicit's ALS, reported", 0.392)
    yield figure("ndcg20_two_tower", found["ndcg"], "implicit's ALS, reported", 0.328)


def figures(quick: bool) -> Iterator[Figure]:
    """Every figure."""
    yield from on_films(quick)
    yield from beside_torch(quick)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    options = words(__doc__)
    for measured in figures(options.quick):
        show(measured, options.json)
