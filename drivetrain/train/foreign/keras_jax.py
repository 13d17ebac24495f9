"""A Keras model that JAX trains."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from drivetrain.core.batch import Array
from drivetrain.core.graph import Graph
from drivetrain.core.need import need
from drivetrain.core.schema import FeatureSchema
from drivetrain.train.foreign.graph import between
from drivetrain.train.foreign.jax_graph import converted, narrow
from drivetrain.train.foreign.keras_model import BoundKeras, KerasModel
from drivetrain.train.foreign.native import Native
from drivetrain.train.foreign.outputs import inner


class KerasOnJax(KerasModel):
    """Updates in one compiled function of all variables, which Keras keeps between the updates.

    Args:
        bound: the model.
        optimizer: of Keras.
        loss: the mean over a batch.
    """

    def __init__(self, bound: BoundKeras, optimizer: Any, loss: Native) -> None:
        super().__init__(bound, optimizer, loss)
        jax, model = need("jax", "jax"), self.model

        def update(trained: Any, others: Any, state: Any, inputs: Any, targets: Any) -> Any:
            def loss_of(trained: Any) -> Any:
                outputs, after, losses = model.stateless_call(
                    trained, others, inputs, training=True, return_losses=True
                )
                return loss(bound.structured(outputs), targets) + sum(losses), after

            (value, after), gradients = jax.value_and_grad(loss_of, has_aux=True)(trained)
            trained, state = optimizer.stateless_apply(state, gradients, trained)
            return value, trained, after, state

        def outputs(trained: Any, others: Any, inputs: Any) -> Any:
            return model.stateless_call(trained, others, inputs, training=False)[0]

        self._update = jax.jit(update)
        self._outputs = jax.jit(outputs)

    def update(self, inputs: Sequence[Array], targets: Mapping[str, Array], rate: float) -> Any:
        """Update the weights by one batch."""
        self.set_rate(rate)
        groups = self._variables()
        values = [[variable.value for variable in group] for group in groups]
        labels = {name: narrow(array) for name, array in targets.items()}
        loss, *after = self._update(*values, self.bound.given(inputs), labels)
        for group, updated in zip(groups, after, strict=True):
            for variable, value in zip(group, updated, strict=True):
                variable.assign(value)
        return loss

    def _variables(self) -> tuple[list[Any], list[Any], list[Any]]:
        model = self.model
        return (
            model.trainable_variables,
            model.non_trainable_variables,
            self.keras_optimizer.variables,
        )

    def outputs(self, inputs: Sequence[Array]) -> Any:
        """What the model answers without dropout."""
        trained, others, _ = ([v.value for v in group] for group in self._variables())
        found = self._outputs(trained, others, self.bound.given(inputs))
        return self.bound.structured([np.asarray(array) for array in self.bound.listed(found)])

    def measure(self, outputs: Any, targets: Mapping[str, Array]) -> float:
        """The loss of outputs."""
        return super().measure(outputs, {n: narrow(array) for n, array in targets.items()})

    def graph(self, features: FeatureSchema) -> Graph:
        """By jax2onnx, the weights inside."""

        def answer(*inputs: Any) -> tuple[Any, ...]:
            return tuple(self.bound.listed(self.model(list(inputs), training=False)))

        model = converted(answer, features, "Keras on jax")
        return between(model, features.tensors, inner(self.bound.like))
