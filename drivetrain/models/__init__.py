"""The zoo: plain torch modules whose inputs and tables follow from the fitted features."""

from drivetrain.models.factories import (
    MLP,
    ConvNet,
    DCNv2,
    DeepFM,
    HuggingFace,
    LogisticRegression,
    Periodic,
    WideAndDeep,
)

__all__ = [
    "MLP",
    "ConvNet",
    "DCNv2",
    "DeepFM",
    "HuggingFace",
    "LogisticRegression",
    "Periodic",
    "WideAndDeep",
]
