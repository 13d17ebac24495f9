"""Toy implementers from outside the package enter the pipeline with no line of it changed."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from drivetrain.core.batch import Batch
from drivetrain.core.bundle import Bundle
from drivetrain.core.measured import Fitted, measure, merge
from drivetrain.core.schema import Field, Schema
from drivetrain.core.seams import SPLITS, Engine, Examples, Order, Run, Shard, Source, Split
from drivetrain.core.site import Site
from drivetrain.core.statistic import Statistic
from drivetrain.core.system import System
from drivetrain.features.categorical import Id, Index
from drivetrain.features.numeric import Raw, Scale
from drivetrain.models import MLP
from drivetrain.pipeline import run
from drivetrain.train.loss import BinaryCrossEntropy
from drivetrain.train.single import Single
from drivetrain.watch.probes import AUC


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(store=str(tmp_path / "store"), work=str(tmp_path / "work"), device="cpu")


def ran(system: System, site: Site, engine: Engine | None = None) -> Bundle:
    bundle = run(system, site, engine=engine)
    assert bundle is not None
    return bundle


@dataclass(frozen=True)
class Made:
    """Seeded rows: a made column pair of which a label follows with noise."""

    rows: int = 6000

    @property
    def schema(self) -> Schema:
        return Schema((Field("size", "float64"), Field("kind", "string"), Field("bad", "int64")))

    def batches(self, split: Split, shard: Shard = Shard()) -> Iterator[Batch]:
        random = np.random.default_rng(SPLITS.index(split))
        size = random.normal(3, 2, self.rows)
        kind = np.array(["a", "b", "c"], dtype=object)[random.integers(0, 3, self.rows)]
        logit = (size - 3) + 1.5 * (kind == "a")
        bad = (random.random(self.rows) < 1 / (1 + np.exp(-logit))).astype(np.int64)
        whole = Batch({"size": size, "kind": kind, "bad": bad})
        for start in range(0, self.rows, 1000):
            part = whole.slice(start, start + 1000)
            yield part.take(np.arange(shard.index, len(part), shard.count))


FEATURES = (Scale("size"), Index("kind"))


# -- a strategy: federated averaging over shards ---------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FederatedAveraging:
    """Clients train on their own shard; only weights travel (McMahan et al. 2017)."""

    loss: BinaryCrossEntropy
    clients: int = 3
    rounds: int = 4

    def fit(self, model: nn.Module, source: Examples, run: Run) -> nn.Module:
        for number in range(self.rounds):
            states = [self._local(model, source, Shard(i, self.clients), number) for i in range(3)]
            mean = {key: sum(state[key] for state in states) / len(states) for key in states[0]}
            model.load_state_dict(mean)
        return model

    def _local(self, model: nn.Module, source: Examples, shard: Shard, number: int) -> Any:
        client = copy.deepcopy(model)
        optimizer = torch.optim.Adam(client.parameters(), lr=0.01)
        for batch in source.batches("train", shard, size=100, order=Order(0, number)):
            inputs = [torch.from_numpy(batch[n]) for n in source.features.tensors.names]
            targets = {n: torch.from_numpy(batch[n]) for n in source.targets.names}
            optimizer.zero_grad()
            self.loss(client(*inputs), targets).backward()
            optimizer.step()
        return client.state_dict()

    def predictions(self, outputs: Any) -> Mapping[str, Any]:
        return self.loss.predictions(outputs)


def test_a_federated_strategy_trains_over_shards(site: Site) -> None:
    system = System(
        name="federated",
        events=Made(),
        features=FEATURES,
        model=MLP(hidden=(16,), dim=4),
        targets=("bad",),
        train=FederatedAveraging(loss=BinaryCrossEntropy("bad")),
        probes=(AUC(at_least=0.8),),
    )
    bundle = ran(system, site)
    assert bundle.manifest.metrics["test/auc"] > 0.8


# -- an engine: the statistics of several shards, merged -------------------------------------------


@dataclass(frozen=True)
class Federation:
    """Each shard measures its own rows and shows only statistics."""

    shards: int = 4

    def aggregate(
        self, source: Source, statistics: Any, emit: Any = None
    ) -> Mapping[Statistic, Any]:
        found = [self._shard(source, Shard(i, self.shards), statistics) for i in range(self.shards)]
        return reduce(merge, found)

    def _shard(self, source: Source, shard: Shard, statistics: Any) -> Fitted:
        rows = Batch.concat(list(source.batches("train", shard)))
        return {statistic: measure(statistic, rows) for statistic in statistics}


def test_an_engine_that_merges_shards_fits_the_same_features(site: Site, tmp_path: Path) -> None:
    system = System(
        name="merged",
        events=Made(2000),
        features=FEATURES,
        model=MLP(hidden=(4,), dim=2),
        targets=("bad",),
        train=Single(loss=BinaryCrossEntropy("bad"), epochs=1, batch_size=500),
    )
    alone = Site(store=str(tmp_path / "store2"), work=str(tmp_path / "work2"), device="cpu")
    merged, whole = ran(system, site, Federation()), ran(system, alone)
    rows = next(iter(Made(2000).batches("test"))).select(("size", "kind"))
    np.testing.assert_allclose(merged.predict(rows)["bad"], whole.predict(rows)["bad"], atol=1e-6)
    assert merged.manifest.features == whole.manifest.features


# -- a source that plays, and a policy gradient ----------------------------------------------------


class Corridor:
    """A walk on a line of eleven cells: the reward is at the right end, the start in the middle."""

    def __init__(self) -> None:
        self.policy: Any = None

    @property
    def schema(self) -> Schema:
        floats = [Field(name, "float32") for name in ("position", "returns")]
        return Schema((*floats, Field("action", "int64")))

    def batches(self, split: Split, shard: Shard = Shard()) -> Iterator[Batch]:
        random = np.random.default_rng(shard.index)
        for _ in range(30):
            positions, actions, ends = [], [], []
            for _ in range(16):
                position, steps = 5, 0
                while 0 < position < 10 and steps < 40:
                    chance = self.policy(position / 10) if self.policy else 0.5
                    action = int(random.random() < chance)
                    positions.append(position / 10)
                    actions.append(action)
                    position, steps = position + (1 if action else -1), steps + 1
                ends += [float(position == 10) - 0.5] * steps
            yield Batch(
                {
                    "position": np.array(positions, dtype=np.float32),
                    "returns": np.array(ends, dtype=np.float32),
                    "action": np.array(actions, dtype=np.int64),
                }
            )


class Policy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, position: torch.Tensor) -> torch.Tensor:
        return self.layer(position)


@dataclass(frozen=True)
class Reinforce:
    """Policy gradient (Williams 1992) on episodes that the source plays with the policy."""

    def fit(self, model: nn.Module, source: Examples, run: Run) -> nn.Module:
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        source.events.policy = lambda x: float(torch.sigmoid(model(torch.tensor([[x]]))).item())
        for batch in source.batches("train", size=64):
            logit = model(torch.from_numpy(batch["dense"])).reshape(-1)
            action = torch.from_numpy(batch["action"]).float()
            weight = torch.from_numpy(batch["returns"])
            loss = functional.binary_cross_entropy_with_logits(logit, action, weight=weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return model

    def predictions(self, outputs: torch.Tensor) -> Mapping[str, torch.Tensor]:
        return {"right": torch.sigmoid(outputs.reshape(-1))}


def test_a_source_that_plays_feeds_a_policy_gradient(site: Site) -> None:
    system = System(
        name="corridor",
        events=Corridor(),
        features=(Raw("position", name="position"),),
        model=Policy,
        targets=("action", "returns"),
        train=Reinforce(),
    )
    bundle = ran(system, site)
    answer = bundle.predict([{"position": x} for x in (0.2, 0.5, 0.8)])
    assert (answer["right"] > 0.8).all(), "it learned to walk towards the reward"


# -- a two-tower model -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Likes:
    """Made pairs: a user likes the items of its own group."""

    @property
    def schema(self) -> Schema:
        return Schema((Field("user", "int64"), Field("item", "int64"), Field("liked", "int64")))

    def batches(self, split: Split, shard: Shard = Shard()) -> Iterator[Batch]:
        random = np.random.default_rng(10 + SPLITS.index(split))
        user = random.integers(0, 60, 4000)
        liked = np.ones(4000, dtype=np.int64)
        item = random.integers(0, 20, 4000) * 3 + user % 3
        if split == "test":
            liked = random.integers(0, 2, 4000)
            item = np.where(liked == 1, item, random.integers(0, 60, 4000))
        yield Batch({"user": user, "item": item, "liked": liked})


class TwoTower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(64, 8), nn.Embedding(64, 8)

    def forward(self, user_id: torch.Tensor, item_id: torch.Tensor) -> torch.Tensor:
        return self.users(user_id) @ self.items(item_id).T


@dataclass(frozen=True)
class InBatchSoftmax:
    """Each user's own item against the other items of the batch."""

    def __call__(self, outputs: torch.Tensor, targets: Any) -> torch.Tensor:
        return functional.cross_entropy(outputs, torch.arange(len(outputs)))

    def predictions(self, outputs: torch.Tensor) -> Mapping[str, torch.Tensor]:
        return {"liked": torch.sigmoid(torch.diagonal(outputs))}


def test_a_two_tower_model_learns_from_pairs(site: Site) -> None:
    system = System(
        name="two-tower",
        events=Likes(),
        features=(Id("user", size=62, name="user_id"), Id("item", size=62, name="item_id")),
        model=TwoTower,
        targets=("liked",),
        train=Single(loss=InBatchSoftmax(), epochs=6, batch_size=128, lr=0.02),
        probes=(AUC(at_least=0.75),),
    )

    bundle = ran(system, site)
    assert bundle.manifest.metrics["test/auc"] > 0.75


# -- a neighbour sampler ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Neighbours:
    """A made graph of two communities; a node comes with a sample of its neighbours."""

    sample: int = 5

    @property
    def schema(self) -> Schema:
        return Schema(
            (
                Field("own", "float32", (4,)),
                Field("around", "float32", (self.sample, 4)),
                Field("community", "int64"),
            )
        )

    def batches(self, split: Split, shard: Shard = Shard()) -> Iterator[Batch]:
        random = np.random.default_rng(SPLITS.index(split))
        label = np.random.default_rng(7).integers(0, 2, 400)
        signal = label[:, None] * 2.0 - 1.0 + np.random.default_rng(8).normal(0, 4, (400, 4))
        same = [np.flatnonzero(label == side) for side in (0, 1)]
        for _ in range(20):
            node = random.integers(0, 400, 64)
            around = np.stack([random.choice(same[label[n]], self.sample) for n in node])
            yield Batch(
                {
                    "own": signal[node].astype(np.float32),
                    "around": signal[around].astype(np.float32),
                    "community": label[node].astype(np.int64),
                }
            )


class MeanAggregator(nn.Module):
    """One layer of GraphSAGE (Hamilton et al. 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 1)

    def forward(self, own_raw: torch.Tensor, around_raw: torch.Tensor) -> torch.Tensor:
        return self.layer(torch.cat([own_raw, around_raw.mean(1)], 1))


def test_a_neighbour_sampler_feeds_a_graph_model(site: Site) -> None:
    system = System(
        name="neighbours",
        events=Neighbours(),
        features=(Raw("own", name="own_raw"), Raw("around", name="around_raw")),
        model=MeanAggregator,
        targets=("community",),
        train=Single(loss=BinaryCrossEntropy("community"), epochs=5, batch_size=64, lr=0.02),
        probes=(AUC(at_least=0.8),),
    )
    bundle = ran(system, site)
    assert bundle.manifest.metrics["test/auc"] > 0.8
