"""The flights system beside LightGBM: AUC and log loss on November and December, over seeds.

    python bench/quality.py --quick --json

Both see the same rows and the same columns, learn from January to September and have October to
stop by. LightGBM takes categories as such and comes in two configurations: the best of a random
search of 31 by October's log loss, and the most robust one that was found by trying to beat this
system, with coarse bins and strong regularization. The better of the two on the test months is the
peer: hindsight that ours does not have. Ours is what is served, int8 and all, so what quantization
costs is in the figure.
"""

import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

import drivetrain as dt
from bench.figure import Figure, figure, show, words
from drivetrain.core.batch import Batch
from drivetrain.core.measured import as_numbers
from drivetrain.core.seams import Split
from drivetrain.declaration import load, with_settings
from drivetrain.events.prepared import Prepared, find
from drivetrain.pipeline import run

ROOT = Path(__file__).resolve().parent.parent
CATEGORIES = ("carrier", "origin", "dest", "weekday")
COMMON: Mapping[str, Any] = {
    "objective": "binary",
    "metric": "binary_logloss",
    "num_leaves": 127,
    "cat_l2": 50,
    "bagging_fraction": 0.6,
    "bagging_freq": 1,
    "max_cat_threshold": 64,
    "verbose": -1,
}
CONFIGURATIONS: Mapping[str, Mapping[str, Any]] = {
    "chosen by October": {
        "learning_rate": 0.05,
        "min_data_in_leaf": 200,
        "feature_fraction": 0.3,
        "cat_smooth": 200,
        "lambda_l2": 50,
        "max_bin": 63,
    },
    "the most robust": {
        "learning_rate": 0.03,
        "num_leaves": 31,
        "min_data_in_leaf": 200,
        "feature_fraction": 0.5,
        "bagging_fraction": 0.7,
        "cat_smooth": 50,
        "lambda_l2": 10,
        "max_bin": 31,
    },
}


def figures(quick: bool) -> Iterator[Figure]:
    """``auc_minus_lightgbm`` and ``log_loss_minus_lightgbm`` (below 0 is better)."""
    seeds = range(2 if quick else 5)
    with tempfile.TemporaryDirectory() as folder:
        site = dt.Site(store=f"{folder}/store", work=f"{folder}/work", device="cpu")
        declared = load(ROOT / "examples" / "flights.py")
        ours: list[tuple[float, float]] = []
        digest = ""
        for seed in seeds:
            system, _ = with_settings(declared, site, [f"train.seed={seed}"])
            assert system is not None
            bundle = run(system, site)
            assert bundle is not None
            metrics = bundle.manifest.metrics
            ours.append((metrics["test/auc"], metrics["test/log_loss"]))
            digest = bundle.manifest.parents["events"]
        events = find(Path(site.work, "events"), digest)
        assert events is not None
        peer, name = _peer(events, declared.columns, seeds)
    for number, what in enumerate(("auc", "log_loss")):
        differences = [a[number] - b[number] for a in ours for b in peer]
        middle = np.mean([a[number] for a in ours]) - np.mean([b[number] for b in peer])
        print(f"{what}: ours {ours}, LightGBM {peer}", file=sys.stderr)
        yield figure(
            f"{what}_minus_lightgbm", differences, f"LightGBM, {name}", 0.0, value=float(middle)
        )


def _peer(
    events: Prepared, columns: tuple[str, ...], seeds: range
) -> tuple[list[tuple[float, float]], str]:
    """AUC and log loss of each seed, of the configuration that is better on the test months."""
    import lightgbm
    from sklearn.metrics import log_loss, roc_auc_score

    splits: tuple[Split, ...] = ("train", "validate", "test")
    rows = {split: Batch.concat(list(events.batches(split))) for split in splits}
    x = {split: _matrix(rows[split], rows["train"], columns) for split in splits}
    y = {split: rows[split]["late"] for split in splits}
    categories = [columns.index(name) for name in CATEGORIES]
    found: dict[str, list[tuple[float, float]]] = {}
    for name, parameters in CONFIGURATIONS.items():
        data = lightgbm.Dataset(x["train"], y["train"], categorical_feature=categories)
        held = lightgbm.Dataset(x["validate"], y["validate"], reference=data)
        for seed in seeds:
            booster = lightgbm.train(
                {**COMMON, **parameters, "seed": seed},
                data,
                3000,
                valid_sets=[held],
                callbacks=[lightgbm.early_stopping(100, verbose=False)],
            )
            said = np.asarray(booster.predict(x["test"]))
            scores = (float(roc_auc_score(y["test"], said)), float(log_loss(y["test"], said)))
            found.setdefault(name, []).append(scores)
    best = max(found, key=lambda name: np.mean([auc for auc, _ in found[name]]))
    return found[best], best


def _matrix(rows: Batch, train: Batch, columns: tuple[str, ...]) -> "np.ndarray[Any, Any]":
    """Float64 ``[rows, columns]``; a category as its number among those of the training rows."""
    parts: list[Any] = []
    for name in columns:
        if name in CATEGORIES:
            known = {value: code for code, value in enumerate(np.unique(train[name]).tolist())}
            parts.append(np.array([known.get(v, np.nan) for v in rows[name].tolist()]))
        else:
            parts.append(as_numbers(rows[name]))
    return np.stack(parts, axis=1)


if __name__ == "__main__":
    options = words(__doc__)
    for measured in figures(options.quick):
        show(measured, options.json)
