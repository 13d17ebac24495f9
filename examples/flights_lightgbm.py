"""The flights again, learnt by gradient-boosted trees: LightGBM behind the same features.

Trees split numbers by themselves, so the features are the raw ones. What comes out is a bundle like
any other: one ONNX graph from raw columns to predictions, served without LightGBM.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flights import PLANE, WEATHER, flights

import drivetrain as dt
from drivetrain.train.estimator import lightgbm

CATEGORIES = ("carrier", "origin", "dest", "weekday", "hour")
NUMBERS = ("dep_minute", "arr_minute", "block", *PLANE, *WEATHER)


@dataclass(frozen=True, kw_only=True)
class Trees:
    """A factory whose values a command line can change: ``--set model.trees=50``."""

    trees: int = 2000
    learning_rate: float = 0.05

    def __call__(self) -> Any:
        from lightgbm import LGBMClassifier

        return LGBMClassifier(
            n_estimators=self.trees,
            learning_rate=self.learning_rate,
            colsample_bytree=0.8,
            min_child_samples=200,
            random_state=0,
            deterministic=True,
            force_row_wise=True,
            verbose=-1,
        )


def stop_early(x: Any, y: Any) -> Mapping[str, Any]:
    """End when the validation month has not improved for fifty trees."""
    from lightgbm import early_stopping

    return {"eval_X": x, "eval_y": y, "callbacks": [early_stopping(50, verbose=False)]}


system = dt.System(
    name="flights-lightgbm",
    events=flights,
    features=(
        *(dt.Index(column) for column in CATEGORIES),
        *(dt.Raw(column) for column in NUMBERS),
        *(dt.Missing(column) for column in ("plane_age", "wind_gust", "pressure")),
    ),
    model=Trees(),
    targets=("late",),
    train=dt.Estimator(convert=lightgbm, fit_arguments=stop_early),
    probes=(dt.AUC(at_least=0.68), dt.LogLoss(), dt.Calibration(), dt.Latency()),
)
