"""Is a breast tumour malignant? A scikit-learn pipeline as the model, and a source of one's own.

Real data: the 569 cases of the Wisconsin Diagnostic Breast Cancer set, which ships in scikit-learn.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import drivetrain as dt
from drivetrain.core.schema import Field, Schema
from drivetrain.core.seams import SPLITS, Shard, Split
from drivetrain.train.estimator import sklearn

if TYPE_CHECKING:
    from drivetrain.core.batch import Batch

MEASURED = ("radius", "texture", "smoothness", "compactness", "concavity", "symmetry")
COLUMNS = tuple(f"{kind} {name}" for name in MEASURED for kind in ("mean", "worst"))


@dataclass(frozen=True, kw_only=True)
class Cases:
    """The cases in scikit-learn's memory; of each ten, eight train, one validates, one tests."""

    @property
    def schema(self) -> Schema:
        numbers = (Field(name, "float64") for name in COLUMNS)
        return Schema((*numbers, Field("malignant", "int64")))

    def batches(self, split: Split, shard: Shard = Shard()) -> Iterator["Batch"]:
        import numpy as np
        from sklearn.datasets import load_breast_cancer

        from drivetrain.core.batch import Batch

        data: Any = load_breast_cancer()
        place = np.arange(len(data.data)) % 10
        mine = np.flatnonzero(np.maximum(place - 7, 0) == SPLITS.index(split))
        rows = mine[shard.index :: shard.count]
        number = {name: column for column, name in enumerate(data.feature_names)}
        yield Batch(
            {
                **{name: data.data[rows, number[name]] for name in COLUMNS},
                "malignant": (data.target[rows] == 0).astype(np.int64),
            }
        )


def pipeline() -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=1.0))


system = dt.System(
    name="tumours",
    events=Cases(),
    features=tuple(dt.Raw(name, name=name.replace(" ", "_")) for name in COLUMNS),
    model=pipeline,
    targets=("malignant",),
    train=dt.Estimator(convert=sklearn),
    probes=(dt.AUC(at_least=0.95), dt.Accuracy(at_least=0.85), dt.LogLoss(), dt.Latency()),
)
