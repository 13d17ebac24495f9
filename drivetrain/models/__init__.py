"""The zoo: plain torch modules whose inputs and tables follow from the fitted features."""

from drivetrain.models.factories import (
    MLP,
    ConvNet,
    DCNv2,
    DeepFM,
    FinalNet,
    HuggingFace,
    LogisticRegression,
    MaskNet,
    WideAndDeep,
)
from drivetrain.models.options import Attention, Periodic

__all__ = [
    "MLP",
    "Attention",
    "ConvNet",
    "DCNv2",
    "DeepFM",
    "FinalNet",
    "HuggingFace",
    "LogisticRegression",
    "MaskNet",
    "Periodic",
    "WideAndDeep",
]
