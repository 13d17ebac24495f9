"""The flights once more, by a module of flax.nnx that JAX trains; what is served is ONNX."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from flights import flights
from keras_flights import system as keras_system

import drivetrain as dt
from drivetrain.core.schema import FeatureSchema


@dataclass(frozen=True, kw_only=True)
class Network:
    """A factory whose values a command line can change: ``--set model.hidden=[32]``."""

    hidden: tuple[int, ...] = (128, 64)
    dim: int = 8
    dropout: float = 0.3

    def __call__(self, features: FeatureSchema, rngs: Any) -> Any:
        import jax.numpy as jnp
        from flax import nnx

        first = np.cumsum([0, *features.cardinalities[:-1]]).astype("int32")
        columns = len(features.cardinalities)
        sizes = (features.dense_width + columns * self.dim, *self.hidden)

        class Net(nnx.Module):
            def __init__(self, dim: int, dropout: float) -> None:
                self.table = nnx.Embed(sum(features.cardinalities), dim, rngs=rngs)
                layers: list[Any] = []
                for width, out in pairwise(sizes):
                    dropped = nnx.Dropout(dropout, rngs=rngs)
                    layers += [nnx.Linear(width, out, rngs=rngs), nnx.relu, dropped]
                self.layers = nnx.Sequential(*layers, nnx.Linear(sizes[-1], 1, rngs=rngs))

            def __call__(self, dense: Any, index: Any) -> Any:
                embedded = self.table(index + first).reshape(index.shape[0], -1)
                return self.layers(jnp.concatenate([dense, embedded], axis=1))

        return Net(self.dim, self.dropout)


system = dt.System(
    name="flights-flax",
    events=flights,
    features=keras_system.features,
    model=Network(),
    targets=("late",),
    train=dt.Flax(
        loss=dt.BinaryCrossEntropy("late"),
        epochs=4,
        batch_size=2048,
        schedule=dt.Cosine(warmup=0.2, floor=0.02),
    ),
    compress=(dt.Optimize(),),
    probes=(dt.AUC(at_least=0.66), dt.LogLoss(), dt.Calibration(), dt.Latency()),
)
