"""A small convolutional network over images, joined with whatever else is known."""

import torch
from torch import Tensor, nn

from drivetrain.core.errors import wrong
from drivetrain.core.schema import FeatureSchema
from drivetrain.models.embedding import Inputs
from drivetrain.models.factories import ConvNet
from drivetrain.models.layers import stack


class ConvNetModule(nn.Module):
    """Stages of convolution for each image, the mean over the plane, fully connected layers.

    Args:
        features: the fitted features; each tensor of shape ``[channels, height, width]`` is an
            image, and at least one must be.
        config: the declaration.

    Raises:
        ValueError: no feature is an image, or one is too small for the stages.
    """

    def __init__(self, features: FeatureSchema, config: ConvNet) -> None:
        super().__init__()
        images = [f for f in features.of("tensor") if len(f.shape) == 3]
        if not images:
            found = {f.name: f.shape or f.width for f in features.features}
            raise wrong("ConvNet: features", found, "at least one image [channels, height, width]")
        for image in images:
            if min(image.shape[1:]) < 2 ** len(config.channels):
                least = 2 ** len(config.channels)
                raise wrong(
                    f"ConvNet: image {image.name!r}",
                    image.shape,
                    f"height and width of at least {least} for {len(config.channels)} stages",
                )
        self.images = [image.name for image in images]
        self.towers = nn.ModuleList(_tower(f.shape[0], config.channels) for f in images)
        others = Inputs(features, config.dim, skip=self.images, attention=config.attention)
        self.others = others if others.width else None
        width = config.channels[-1] * len(images) + others.width
        self.hidden = stack(
            width, config.hidden, norm="none", activation="relu", dropout=config.dropout
        )
        self.head = nn.Linear(config.hidden[-1] if config.hidden else width, config.outputs)
        self.outputs = config.outputs

    def forward(self, **inputs: Tensor) -> Tensor:
        """Logits ``[rows]``, or ``[rows, outputs]``."""
        parts = [
            tower(inputs[name]).mean((2, 3))
            for name, tower in zip(self.images, self.towers, strict=True)
        ]
        if self.others is not None:
            parts.append(self.others(inputs))
        logits = self.head(self.hidden(torch.cat(parts, 1)))
        return logits.squeeze(1) if self.outputs == 1 else logits


def _tower(channels: int, stages: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for size in stages:
        convolution = nn.Conv2d(channels, size, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        layers += [convolution, nn.BatchNorm2d(size), nn.ReLU(), nn.MaxPool2d(2)]
        channels = size
    return nn.Sequential(*layers)
