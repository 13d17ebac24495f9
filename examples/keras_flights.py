"""The flights once more, by a Keras model: the features, the bundle and the server stay the same.

`--set train.backend=jax` trains it on JAX, `=torch` on torch; `--set train.distribute=mirrored`
on every GPU that TensorFlow finds. What is served is ONNX, without Keras.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from flights import PLANE, WEATHER, flights

import drivetrain as dt
from drivetrain.core.schema import FeatureSchema
from drivetrain.train.keras import inputs

NUMBERS = ("dep_minute", "arr_minute", "block", *PLANE, *WEATHER)


@dataclass(frozen=True, kw_only=True)
class Network:
    """A factory whose values a command line can change: ``--set model.hidden=[32]``."""

    hidden: tuple[int, ...] = (128, 64)
    dim: int = 8
    dropout: float = 0.3

    def __call__(self, features: FeatureSchema) -> Any:
        import keras

        tensors = inputs(features)
        # All categories share one table: those of each column begin where the last one's end.
        first = np.cumsum([0, *features.cardinalities[:-1]]).astype("int32")
        table = keras.layers.Embedding(sum(features.cardinalities), self.dim)
        embedded = keras.layers.Flatten()(table(keras.ops.add(tensors["index"], first)))
        x = keras.layers.Concatenate()([tensors["dense"], embedded])
        for width in self.hidden:
            x = keras.layers.Dense(width, activation="relu")(x)
            x = keras.layers.Dropout(self.dropout)(x)
        return keras.Model(tensors, keras.layers.Dense(1)(x))


system = dt.System(
    name="flights-keras",
    events=flights,
    features=(
        *(dt.Index(c, min_count=20) for c in ("carrier", "origin", "dest", "weekday", "hour")),
        *(dt.Bucket(c, bins=8) for c in NUMBERS),
        *(dt.Scale(c) for c in NUMBERS if c not in ("precip", "wind_dir")),
        dt.Cyclic("dep_minute", period=1440.0),
        *(dt.Missing(c) for c in ("wind_gust", "plane_age", "pressure")),
    ),
    model=Network(),
    targets=("late",),
    train=dt.Keras(
        loss=dt.BinaryCrossEntropy("late"),
        epochs=4,
        batch_size=2048,
        schedule=dt.Cosine(warmup=0.2, floor=0.02),
    ),
    compress=(dt.Optimize(),),
    probes=(dt.AUC(at_least=0.66), dt.LogLoss(), dt.Calibration(), dt.Latency()),
)
