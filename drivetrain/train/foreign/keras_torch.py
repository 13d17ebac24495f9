"""A Keras model that torch trains."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from drivetrain.core.batch import Array
from drivetrain.core.graph import Graph
from drivetrain.core.need import need
from drivetrain.core.schema import FeatureSchema
from drivetrain.train.export import export
from drivetrain.train.foreign.keras_model import BoundKeras, KerasModel
from drivetrain.train.foreign.outputs import inner


class KerasOnTorch(KerasModel):
    """Updates by torch's gradients and Keras' optimizer."""

    def update(self, inputs: Sequence[Array], targets: Mapping[str, Array], rate: float) -> Any:
        """Update the weights by one batch."""
        self.set_rate(rate)
        variables = self.model.trainable_variables
        outputs = self.model(self._tensors(inputs), training=True)
        labels = {name: _tensor(array) for name, array in targets.items()}
        loss = self.loss(self.bound.structured(outputs), labels) + sum(self.model.losses)
        loss.backward()
        gradients = [variable.value.grad for variable in variables]
        with torch.no_grad():
            self.keras_optimizer.apply(gradients, variables)
        for variable in variables:
            variable.value.grad = None
        return loss.detach()

    def _tensors(self, inputs: Sequence[Array]) -> list[Any]:
        return [_tensor(array) for array in self.bound.given(inputs)]

    def outputs(self, inputs: Sequence[Array]) -> Any:
        """What the model answers without dropout."""
        with torch.no_grad():
            found = self.model(self._tensors(inputs), training=False)
        return self.bound.structured([tensor.cpu().numpy() for tensor in self.bound.listed(found)])

    def graph(self, features: FeatureSchema) -> Graph:
        """By torch's own exporter, the weights inside."""
        return export(_Named(self.bound, inner(self.bound.like)), features)


class _Named(nn.Module):
    """The model with its outputs by the names that they have in a graph."""

    def __init__(self, bound: BoundKeras, names: Sequence[str]) -> None:
        super().__init__()
        self.bound = bound
        self.model = bound.model  # a module of torch, whose weights are then ours
        self.names = list(names)

    def forward(self, *tensors: Tensor) -> dict[str, Tensor]:
        outputs = self.bound.listed(self.model(list(tensors), training=False))
        return dict(zip(self.names, outputs, strict=True))


def _tensor(array: Array) -> Any:
    """The array where Keras keeps its weights."""
    return need("keras.ops", "keras").convert_to_tensor(array)
