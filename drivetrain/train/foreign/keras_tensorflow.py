"""A Keras model that TensorFlow trains, on one device or mirrored on several."""

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from drivetrain.core.batch import Array
from drivetrain.core.errors import wrong
from drivetrain.core.graph import Graph
from drivetrain.core.need import need
from drivetrain.core.schema import FeatureSchema
from drivetrain.train.foreign.graph import between, taken
from drivetrain.train.foreign.keras_model import BoundKeras, KerasModel
from drivetrain.train.foreign.native import Native
from drivetrain.train.foreign.outputs import inner

OPSET = 18
"""The newest that tf2onnx 1.17 writes; the graph is then brought to ours."""


class KerasOnTensorFlow(KerasModel):
    """Updates in one ``tf.function``, on each replica with its share of the batch.

    Args:
        bound: the model.
        optimizer: of Keras.
        loss: the mean over a batch.
    """

    def __init__(self, bound: BoundKeras, optimizer: Any, loss: Native) -> None:
        super().__init__(bound, optimizer, loss)
        self.tf = need("tensorflow", "tensorflow")
        self.strategy = bound.mirrored or self.tf.distribute.get_strategy()
        self.replicas: int = self.strategy.num_replicas_in_sync
        self._update = self.tf.function(self._of_all, autograph=False, reduce_retracing=True)
        self._outputs = self.tf.function(
            lambda inputs: bound.listed(self.model(inputs, training=False)),
            autograph=False,
            reduce_retracing=True,
        )

    def update(self, inputs: Sequence[Array], targets: Mapping[str, Array], rate: float) -> Any:
        """Update the weights by one batch."""
        with self.strategy.scope():
            self.set_rate(rate)
            arrays = [*self.bound.given(inputs), *targets.values()]
            rows = len(arrays[0])
            parts = [self._shared(array) for array in arrays]
            share = self._shares(rows)
            given, labels = parts[: len(inputs)], parts[len(inputs) :]
            return self._update(given, dict(zip(targets, labels, strict=True)), share)

    def _of_all(self, inputs: Any, targets: Any, share: Any) -> Any:
        parts = self.strategy.run(self._of_one, args=(inputs, targets, share))
        return self.strategy.reduce("SUM", parts, axis=None)

    def _of_one(self, inputs: Any, targets: Any, share: Any) -> Any:
        """One replica's part of the loss; the optimizer sums the gradients of all."""
        variables = self.model.trainable_variables
        with self.tf.GradientTape() as tape:
            outputs = self.bound.structured(self.model(inputs, training=True))
            loss = self.loss(outputs, targets)
            loss = (loss + sum(self.model.losses)) * self.tf.cast(share, loss.dtype)
        gradients = tape.gradient(loss, variables)
        if self.replicas > 1:
            # Rows of tables would be gathered, whose number changes with the batch: TensorFlow
            # takes tensors of another shape than before for those of another replica.
            gradients = [g if g is None else self.tf.convert_to_tensor(g) for g in gradients]
        self.keras_optimizer.apply(gradients, variables)
        return loss

    def _parts(self, rows: int) -> list[slice]:
        """The rows of each replica; all of them for each where there are fewer than replicas."""
        if rows < self.replicas:
            return [slice(0, rows)] * self.replicas
        ends = [rows * n // self.replicas for n in range(self.replicas + 1)]
        return [slice(low, high) for low, high in pairwise(ends)]

    def _shared(self, array: Array) -> Any:
        if self.replicas == 1:
            return self.tf.convert_to_tensor(array)
        parts = self._parts(len(array))
        return self.strategy.experimental_distribute_values_from_function(
            lambda context: self.tf.convert_to_tensor(
                array[parts[context.replica_id_in_sync_group]]
            )
        )

    def _shares(self, rows: int) -> Any:
        """What each replica's mean counts for in the mean over the batch; together 1."""
        sizes = [part.stop - part.start for part in self._parts(rows)]
        shares = np.asarray(sizes, np.float32) / np.float32(sum(sizes))
        if self.replicas == 1:
            return self.tf.convert_to_tensor(shares[0])
        return self.strategy.experimental_distribute_values_from_function(
            lambda context: self.tf.convert_to_tensor(shares[context.replica_id_in_sync_group])
        )

    def outputs(self, inputs: Sequence[Array]) -> Any:
        """What the model answers without dropout."""
        found = self._outputs([self.tf.convert_to_tensor(a) for a in self.bound.given(inputs)])
        return self.bound.structured([tensor.numpy() for tensor in found])

    def load(
        self, weights: Mapping[str, Array], optimizer: Mapping[str, Array] | None = None
    ) -> None:
        """Go back to earlier weights, on every replica."""
        with self.strategy.scope():
            super().load(weights, optimizer)

    def graph(self, features: FeatureSchema) -> Graph:
        """By Keras' own export, which tf2onnx does, the weights inside.

        Raises:
            ValueError: there is an operation that tf2onnx can't convert.
        """
        keras, onnx = need("keras", "keras"), need("onnx", "train")
        need("tf2onnx", "tensorflow")
        signature = [
            keras.InputSpec(shape=(None, *field.shape), dtype=kind, name=taken(number))
            for number, (field, kind) in enumerate(
                zip(features.tensors, self.bound.types, strict=True)
            )
        ]
        with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tf2onnx was written for an older numpy
            path = Path(directory) / "model.onnx"
            options = {"verbose": False, "input_signature": [signature], "opset_version": OPSET}
            try:
                self.model.export(str(path), format="onnx", **options)
            except Exception as error:
                raise ValueError(
                    f"the Keras model can't be converted to ONNX: {type(error).__name__}: {error}"
                ) from error
            model = onnx.load(str(path))
        return between(model, features.tensors, inner(self.bound.like))


@cache
def mirrored_on(devices: tuple[str, ...] | None) -> Any:
    """``tf.distribute.MirroredStrategy`` over these devices.

    There is one for all trainings of a process: each counts its messages from the same number on,
    and TensorFlow takes those of a second one for those of the first.

    Raises:
        ValueError: more CPU devices are named than there are, and TensorFlow has begun already.
    """
    tf = need("tensorflow", "tensorflow")
    named = [name for name in devices or () if name.upper().startswith("CPU:")]
    physical = tf.config.list_physical_devices("CPU")
    if len(named) > 1:
        try:
            logical = [tf.config.LogicalDeviceConfiguration()] * len(named)
            tf.config.set_logical_device_configuration(physical[0], logical)
        except RuntimeError as error:
            if len(tf.config.list_logical_devices("CPU")) < len(named):
                raise wrong("Keras.devices", list(named), f"fewer: {error}") from None
    return tf.distribute.MirroredStrategy(None if devices is None else list(devices))
