"""Trains models of other frameworks where they are installed, and prints what came of it."""

import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import Made  # beside this file

import drivetrain as dt
from drivetrain.core.batch import Batch
from drivetrain.core.metric import Metric, Note
from drivetrain.core.schema import FeatureField, FeatureSchema, Field, Schema
from drivetrain.core.seams import Run
from drivetrain.core.site import EngineSite, Site
from drivetrain.features.engines.duckdb import DuckDB
from drivetrain.pipeline import make_events, make_features, run
from drivetrain.train.flax import Flax
from drivetrain.train.foreign.native import in_jax, in_keras
from drivetrain.train.keras import Keras, inputs

LOSSES = (
    (dt.BinaryCrossEntropy("y", smoothing=0.1), (6,)),
    (dt.BinaryCrossEntropy("y"), (6, 4)),
    (dt.CrossEntropy("y", smoothing=0.1), (6, 2)),
    (dt.CrossEntropy("y"), (6, 4, 2)),
    (dt.MeanSquaredError("y"), (6,)),
    (dt.MeanSquaredError("y"), (6, 4)),
)


# -- models ----------------------------------------------------------------------------------------


@dataclass
class KerasNet:
    """A functional model of every kind of tensor; keeps the last one that it made."""

    dropout: float = 0.2
    made: Any = field(default=None, metadata={"declared": False})

    def __call__(self, features: FeatureSchema) -> Any:
        import keras

        ops, layers, tensors = keras.ops, keras.layers, inputs(features)
        found = [tensors["dense"]]
        if "index" in tensors:
            first = np.cumsum([0, *features.cardinalities[:-1]]).astype("int32")
            table = layers.Embedding(sum(features.cardinalities), 4)
            found.append(layers.Flatten()(table(ops.add(tensors["index"], first))))
        for bag in features.of("bag"):
            there = ops.cast(
                ops.expand_dims(ops.cast(tensors[bag.name], "float32"), -1) > 0.5, "float32"
            )
            words = layers.Embedding(bag.cardinality, 4)(tensors[bag.name]) * there
            found.append(ops.sum(words, 1) / ops.maximum(ops.sum(there, 1), 1.0))
        x = layers.Dense(16, activation="relu")(layers.Concatenate()(found))
        x = layers.Dropout(self.dropout)(layers.BatchNormalization()(x) if self.dropout else x)
        self.made = keras.Model(tensors, layers.Dense(1)(x))
        return self.made


def flax_net(features: FeatureSchema, rngs: Any) -> Any:
    import jax.numpy as jnp
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self) -> None:
            self.first = np.cumsum([0, *features.cardinalities[:-1]]).astype("int32")
            bags = features.of("bag")
            self.table = nnx.Embed(sum(features.cardinalities), 4, rngs=rngs)
            self.words = nnx.Embed(bags[0].cardinality, 4, rngs=rngs) if bags else None
            width = features.dense_width + 4 * len(features.cardinalities) + 4 * len(bags)
            self.hidden = nnx.Linear(width, 16, rngs=rngs)
            self.norm = nnx.BatchNorm(16, rngs=rngs)
            self.dropout = nnx.Dropout(0.2, rngs=rngs)
            self.head = nnx.Linear(16, 1, rngs=rngs)

        def __call__(self, dense: Any, index: Any, **bags: Any) -> Any:
            found = [dense, self.table(index + self.first).reshape(index.shape[0], -1)]
            for bag in bags.values():
                assert self.words is not None
                there = (bag > 0)[..., None]
                words = (self.words(bag) * there).sum(1)
                found.append(words / jnp.maximum(there.sum(1), 1))
            x = nnx.relu(self.norm(self.hidden(jnp.concatenate(found, 1))))
            return self.head(self.dropout(x))

    return Net()


# -- what is asked of every framework --------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class KerasKept(Keras):
    """Remembers what it trained."""

    kept: list[Any] = field(default_factory=list, metadata={"declared": False}, compare=False)

    def foreign(self, model: Any) -> Any:
        self.kept.append(super().foreign(model))
        return self.kept[-1]


@dataclass(frozen=True, kw_only=True)
class FlaxKept(Flax):
    """Remembers what it trained."""

    kept: list[Any] = field(default_factory=list, metadata={"declared": False}, compare=False)

    def foreign(self, model: Any) -> Any:
        self.kept.append(super().foreign(model))
        return self.kept[-1]


def parity(strategy: Any, net: Any, answer: Callable[..., Any], events: Path) -> dict[str, Any]:
    """A system from raw rows to a bundle; how far its answers are from the framework's own."""
    system = dt.System(
        name="made",
        events=dt.Parquet(str(events), time="at").split(
            dt.TimeSplit(validate="2024-07-01", test="2024-09-01")
        ),
        features=(
            *(dt.Scale("amount"), dt.Missing("age"), dt.Index("shop"), dt.Bucket("age", bins=4)),
            dt.Text("note", bins=50, length=3),
        ),
        model=net,
        targets=("bad",),
        train=replace(strategy, loss=dt.BinaryCrossEntropy("bad"), batch_size=100),
        compress=(dt.Optimize(),),
        probes=(dt.AUC(at_least=0.6), dt.LogLoss()),
    )
    engine = EngineSite(memory="200MB", threads=1)
    with tempfile.TemporaryDirectory() as folder:
        site = Site(store=f"{folder}/store", work=f"{folder}/work", device="cpu", engine=engine)
        heard: list[Any] = []
        bundle = run(system, site, emit=heard.append)
        assert bundle is not None
        rows = next(iter(system.events.batches("test")))
        data, duckdb = make_events(system, site), DuckDB(memory="200MB", threads=1)
        graph = make_features(system, data, Path(site.work), duckdb).graph
        found = bundle.predict(rows)["bad"]
        logits = answer(strategy.kept[-1], graph.run(rows))
        due = 1 / (1 + np.exp(-np.asarray(logits, np.float64).reshape(-1)))
        kept = {m.name: m.value for m in heard if isinstance(m, Metric) and "kept" in m.name}
        return {
            "difference": float(np.abs(found - due).max()),
            "spread": float(np.ptp(due)),
            "rows": len(rows),
            "kept": kept,
            "auc": bundle.manifest.metrics["test/auc"],
            "outputs": list(bundle.manifest.outputs.names),
            "steps": len([m for m in heard if isinstance(m, Metric) and m.name == "validate/loss"]),
        }


def losses(native: Callable[[Any], Any], array: Callable[[Any], Any]) -> list[float]:
    """How far each loss in the framework is from the one in torch."""
    random = np.random.default_rng(0)
    found: list[float] = []
    for loss, shape in LOSSES:
        outputs = random.normal(size=shape).astype(np.float32)
        labels = random.integers(0, 2, 6)
        due = loss(torch.from_numpy(outputs), {"y": torch.from_numpy(labels)})
        value = native(loss)(array(outputs), {"y": array(labels.astype(np.int32))})
        found.append(abs(float(value) - float(due)))
    return found


def trained(strategy: Any, net: Any, folder: Path, emit: Any = lambda item: None) -> Any:
    """A training over made rows; its final weights by name, and the graph."""
    source = Made(rows=1001, validate=300)
    graph = strategy.fit(
        strategy.build(net, source.features, strategy.seed),
        source,
        Run(directory=folder, emit=emit),
    )
    return strategy.kept[-1].weights(), graph


def killed(strategy: Any, net: Any, folder: Path) -> None:
    """Train, and die by SIGKILL in the second epoch, when there is a checkpoint of the first."""

    def die(item: Any) -> None:
        if isinstance(item, Metric) and item.name == "validate/loss" and item.step == 32:
            assert list(folder.glob("step-*.safetensors")), "there is a checkpoint"
            os.kill(os.getpid(), signal.SIGKILL)

    trained(strategy, net, folder, die)
    raise AssertionError("it was to be killed")


def resumed(strategy: Any, net: Any, folder: Path) -> dict[str, Any]:
    """Go on with what was killed, and train without a kill: are the weights the same bits?"""
    notes: list[str] = []
    left, _ = trained(
        strategy, net, folder, lambda m: notes.append(m.text) if isinstance(m, Note) else None
    )
    with tempfile.TemporaryDirectory() as other:
        whole, graph = trained(strategy, net, Path(other))
    again, same = trained(strategy, net, folder)  # the final checkpoint is read
    table = Made(rows=1001, validate=300).tables["validate"]
    rows = Batch({name: table[name] for name in ("dense", "index", "words")})
    return {
        "notes": notes,
        "equal": all(np.array_equal(left[name], whole[name]) for name in whole),
        "difference": max(
            float(np.abs(left[n] - whole[n]).max()) for n in whole if whole[n].dtype.kind == "f"
        ),
        "read": all(np.array_equal(again[name], whole[name]) for name in whole),
        "graph": same.digest == graph.digest,
        "answers": bool(np.array_equal(same.run(rows)["y"], graph.run(rows)["y"])),
        "files": [path.name.partition("-")[0] for path in folder.glob("*.safetensors")],
    }


def stopped(strategy: Any, net: Any) -> dict[str, Any]:
    """Early stopping: the best of the weights is what is served."""
    heard: list[Any] = []
    rule = dt.EarlyStopping(patience=1)
    eager = replace(strategy, epochs=40, lr=0.1, early_stopping=rule, checkpoint_steps=None)
    with tempfile.TemporaryDirectory() as folder:
        _, graph = trained(eager, net, Path(folder), heard.append)
    figures = [m.value for m in heard if isinstance(m, Metric) and m.name == "validate/loss"]
    rows = Made(rows=1001, validate=300).tables["validate"]
    chance = graph.run(Batch({name: rows[name] for name in ("dense", "index", "words")}))["y"]
    chance = chance.astype(np.float64)
    loss = -np.where(rows["y"] == 1, np.log(chance), np.log1p(-chance)).mean()
    return {"epochs": len(figures), "best": min(figures), "served": float(loss)}


def refused(call: Callable[[], Any]) -> str:
    """What a mistake is told."""
    try:
        call()
    except ValueError as error:
        return str(error)
    return ""


# -- by framework ----------------------------------------------------------------------------------


def answered_by_keras(net: KerasNet) -> Callable[..., Any]:
    """What the user's own model predicts, by Keras' own ``predict``."""

    def answer(kept: Any, tensors: Batch) -> Any:
        columns = {name: np.asarray(column) for name, column in tensors.columns.items()}
        types = dict(zip(columns, kept.bound.types, strict=True))
        given = {name: column.astype(types[name]) for name, column in columns.items()}
        return net.made.predict(given, verbose=0)

    return answer


def answered_by_flax(kept: Any, tensors: Batch) -> Any:
    """What the module answers to arrays."""
    columns = {name: np.asarray(column) for name, column in tensors.columns.items()}
    narrow = {n: c.astype(np.int32) if c.dtype.kind == "i" else c for n, c in columns.items()}
    return kept.module(**narrow)


def strategy_of(framework: str) -> tuple[Any, Any]:
    """The strategy and the model that a framework's cases begin with."""
    options = {"epochs": 3, "batch_size": 64, "lr": 0.02, "checkpoint_seconds": None}
    loss = dt.BinaryCrossEntropy("y")
    options |= {"loss": loss, "checkpoint_steps": 7, "schedule": dt.Cosine(warmup=0.1)}
    if framework == "flax":
        return FlaxKept(**options), flax_net
    return KerasKept(backend=framework.removeprefix("keras-"), **options), KerasNet()


def mirrored() -> dict[str, Any]:
    """Two replicas against one device, with batches that divide unevenly, and one of a row."""
    two = KerasKept(
        loss=dt.BinaryCrossEntropy("y"),
        batch_size=76,
        lr=0.02,
        optimizer="sgd",
        epochs=2,
        distribute="mirrored",
        devices=("CPU:0", "CPU:1"),
    )
    one = replace(two, distribute=None, devices=None)
    with tempfile.TemporaryDirectory() as left, tempfile.TemporaryDirectory() as right:
        ours, graph = trained(two, KerasNet(dropout=0.0), Path(left))
        theirs, _ = trained(one, KerasNet(dropout=0.0), Path(right))
    pairs = list(zip(ours.values(), theirs.values(), strict=True))
    return {
        "replicas": two.kept[0].replicas,
        "last_batch": 1001 % 76,
        "difference": max(float(np.abs(a - b).max()) for a, b in pairs if a.dtype.kind == "f"),
        "single_row": _one_row(two),
        "outputs": list(graph.outputs.names),
    }


def _one_row(strategy: KerasKept) -> float:
    """The difference of an update by a single row, which both replicas then take."""
    rows = Made(rows=1).tables["train"]
    given = [rows[name] for name in ("dense", "index", "words")]
    found: list[Mapping[str, Any]] = []
    for each in (strategy, replace(strategy, distribute=None, devices=None)):
        foreign = each.foreign(each.build(KerasNet(dropout=0.0), Made().features, 0))
        foreign.update(given, {"y": rows["y"]}, 0.1)
        found.append(foreign.weights())
    return max(
        float(np.abs(a - b).max()) for a, b in zip(*(f.values() for f in found), strict=True)
    )


class Images(Made):
    """Made images beside a target."""

    def __init__(self) -> None:
        super().__init__(rows=64, validate=16)
        self.features = FeatureSchema((FeatureField(name="image", kind="tensor", shape=(3, 8, 8)),))
        self.targets = Schema((Field("y", "int64"),))
        random = np.random.default_rng(0)
        for split, table in self.tables.items():
            image = random.normal(size=(len(table["y"]), 3, 8, 8)).astype(np.float32)
            self.tables[split] = {"image": image, "y": table["y"]}


def keras_images(features: FeatureSchema) -> Any:
    import keras

    layers = keras.layers
    first = keras.Input((3, 8, 8), name="image")
    x = layers.Conv2D(4, 3, padding="same", activation="relu")(layers.Permute((2, 3, 1))(first))
    x = layers.GlobalAveragePooling2D()(layers.MaxPooling2D()(x))
    return keras.Model(first, layers.Dense(1)(x))


def on_images(backend: str) -> str:
    """Train a convolutional model with pooling; what is said of it, or nothing if it is served."""
    strategy = Keras(backend=backend, loss=dt.BinaryCrossEntropy("y"), batch_size=32)  # pyright: ignore[reportArgumentType]
    source = Images()
    with tempfile.TemporaryDirectory() as folder:
        model = strategy.build(keras_images, source.features)
        return refused(lambda: strategy.fit(model, source, Run(directory=Path(folder))))


def keras_mistakes(backend: str) -> dict[str, str]:
    """What a user is told."""
    import keras

    def sequential(features: FeatureSchema) -> Any:
        return keras.Sequential([keras.layers.Dense(1)])

    def misnamed(features: FeatureSchema) -> Any:
        pair = keras.Input((3,), name="dence"), keras.Input((2,), name="index")
        return keras.Model(pair, keras.layers.Dense(1)(pair[0]))

    def incomplete(features: FeatureSchema) -> Any:
        first = keras.Input((3,), name="dense")
        return keras.Model(first, keras.layers.Dense(1, name="last")(first))

    this = Keras(backend=backend, loss=dt.BinaryCrossEntropy("y"))  # pyright: ignore[reportArgumentType]
    other = "jax" if backend == "tensorflow" else "tensorflow"
    features = Made().features
    return {
        "backend": refused(lambda: replace(this, backend=other).build(sequential, features)),
        "sequential": refused(lambda: this.build(sequential, features)),
        "misnamed": refused(lambda: this.build(misnamed, features)),
        "incomplete": refused(lambda: this.build(incomplete, features)),
        "no model": refused(lambda: this.build(lambda features: 3, features)),
    }


def flax_mistakes() -> dict[str, str]:
    """What a user is told."""
    from flax import nnx

    class Misnamed(nnx.Module):
        def __call__(self, dence: Any, index: Any, words: Any) -> Any:
            return dence

    this, features = Flax(loss=dt.BinaryCrossEntropy("y")), Made().features
    return {
        "misnamed": refused(lambda: this.build(lambda features, rngs: Misnamed(), features)),
        "no model": refused(lambda: this.build(lambda features, rngs: 3, features)),
    }


def all_of(framework: str, folder: Path, events: Path) -> dict[str, Any]:
    """Every case of a framework."""
    strategy, net = strategy_of(framework)
    if framework == "flax":
        import jax.numpy as jnp

        found = {"losses": losses(in_jax, jnp.asarray), "mistakes": flax_mistakes()}
        answer: Callable[..., Any] = answered_by_flax
    else:
        found = {} if framework != "keras-tensorflow" else {"mirrored": mirrored()}
        strategy.build(net, Made().features)  # imports Keras on its back end
        import keras

        backend = framework.removeprefix("keras-")
        found |= {"losses": losses(in_keras, keras.ops.convert_to_tensor)}
        found |= {"mistakes": keras_mistakes(backend), "images": on_images(backend)}
        answer = answered_by_keras(net)
    found["parity"] = parity(strategy, net, answer, events)
    if framework in ("flax", "keras-tensorflow"):
        found["resumed"] = resumed(strategy, net, folder)
        found["stopped"] = stopped(strategy, net)
    return found


def main() -> None:
    framework, kind, folder, events = sys.argv[1:]
    torch.set_num_threads(1)
    Path(folder).mkdir(parents=True, exist_ok=True)
    if kind == "killed":
        killed(*strategy_of(framework), Path(folder))
    print(json.dumps(all_of(framework, Path(folder), Path(events))))


if __name__ == "__main__":
    main()
