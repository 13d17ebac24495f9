"""Drivetrain: one declared system, from events to served, explained and monitored predictions.

Every public name is listed here and imported when it is first used, so that
``import drivetrain as dt`` costs nothing and a declaration never waits for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from drivetrain.compress.best import Best
    from drivetrain.compress.optimize import Optimize
    from drivetrain.compress.quantize import Quantize
    from drivetrain.core.batch import Batch
    from drivetrain.core.bundle import Bundle
    from drivetrain.core.graph import Graph
    from drivetrain.core.online import Online
    from drivetrain.core.site import Site
    from drivetrain.core.system import System
    from drivetrain.core.window import Window
    from drivetrain.events.delta import Delta
    from drivetrain.events.divided import last_parts, random_parts
    from drivetrain.events.expression import (
        coalesce,
        col,
        concat,
        days,
        hours,
        lit,
        make_timestamp,
        minutes,
        seconds,
        when,
    )
    from drivetrain.events.files import CSV, Arrow, JSONLines, Parquet
    from drivetrain.events.kafka import Avro, Kafka
    from drivetrain.events.lake.lake import Lake
    from drivetrain.events.split import ColumnSplit, HashSplit, TimeSplit
    from drivetrain.events.stream import Stream
    from drivetrain.features.categorical import Bucket, Id, Index
    from drivetrain.features.hashing import Cross, Hash
    from drivetrain.features.history import History
    from drivetrain.features.image import Image
    from drivetrain.features.numeric import Clip, Log, Missing, Raw, Scale
    from drivetrain.features.temporal import Cyclic
    from drivetrain.features.text import Text
    from drivetrain.features.tokens import Tokens
    from drivetrain.pipeline import run
    from drivetrain.registry.registry import Registry
    from drivetrain.train.all_reduce import AllReduce
    from drivetrain.train.als import ALS
    from drivetrain.train.compression import FP16, Int8, PowerSGD, TopK
    from drivetrain.train.content import Content
    from drivetrain.train.diloco import DiLoCo
    from drivetrain.train.distill import Distill
    from drivetrain.train.ease import EASE
    from drivetrain.train.estimator import Estimator
    from drivetrain.train.flax import Flax
    from drivetrain.train.fused import Fused
    from drivetrain.train.item_neighbours import ItemNeighbours
    from drivetrain.train.keras import Keras
    from drivetrain.train.loss import BinaryCrossEntropy, CrossEntropy, Listwise, MeanSquaredError
    from drivetrain.train.parameter_server import ParameterServer
    from drivetrain.train.pipelined import Pipelined
    from drivetrain.train.popularity import Popularity
    from drivetrain.train.private import Private
    from drivetrain.train.prune import Prune
    from drivetrain.train.quantization_aware import QuantizationAware
    from drivetrain.train.row_wise import RowWise
    from drivetrain.train.sampled_softmax import SampledSoftmax
    from drivetrain.train.schedule import Constant, Cosine, StepDecay
    from drivetrain.train.self_distill import SelfDistill
    from drivetrain.train.sharded import Sharded
    from drivetrain.train.single import Single
    from drivetrain.train.stopping import EarlyStopping
    from drivetrain.train.tensor_parallel import TensorParallel
    from drivetrain.train.two_tower import TwoTower
    from drivetrain.watch.off_policy import OffPolicy
    from drivetrain.watch.probes import AUC, RMSE, Accuracy, Calibration, Drift, Latency, LogLoss
    from drivetrain.watch.ranking import Ranking

_HOME = {
    "compress.best": ("Best",),
    "compress.optimize": ("Optimize",),
    "compress.quantize": ("Quantize",),
    "core.batch": ("Batch",),
    "core.bundle": ("Bundle",),
    "core.graph": ("Graph",),
    "core.online": ("Online",),
    "core.site": ("Site",),
    "core.system": ("System",),
    "core.window": ("Window",),
    "events.divided": ("last_parts", "random_parts"),
    "events.delta": ("Delta",),
    "events.expression": (
        "coalesce",
        "col",
        "concat",
        "days",
        "hours",
        "lit",
        "make_timestamp",
        "minutes",
        "seconds",
        "when",
    ),
    "events.files": (
        "CSV",
        "Arrow",
        "JSONLines",
        "Parquet",
    ),
    "events.kafka": ("Avro", "Kafka"),
    "events.split": (
        "ColumnSplit",
        "HashSplit",
        "TimeSplit",
    ),
    "events.lake.lake": ("Lake",),
    "events.stream": ("Stream",),
    "features.categorical": (
        "Bucket",
        "Id",
        "Index",
    ),
    "features.hashing": (
        "Cross",
        "Hash",
    ),
    "features.history": ("History",),
    "features.image": ("Image",),
    "features.numeric": (
        "Clip",
        "Log",
        "Missing",
        "Raw",
        "Scale",
    ),
    "features.temporal": ("Cyclic",),
    "features.text": ("Text",),
    "features.tokens": ("Tokens",),
    "pipeline": ("run",),
    "registry.registry": ("Registry",),
    "train.all_reduce": ("AllReduce",),
    "train.als": ("ALS",),
    "train.compression": ("FP16", "Int8", "PowerSGD", "TopK"),
    "train.content": ("Content",),
    "train.diloco": ("DiLoCo",),
    "train.distill": ("Distill",),
    "train.ease": ("EASE",),
    "train.estimator": ("Estimator",),
    "train.flax": ("Flax",),
    "train.fused": ("Fused",),
    "train.item_neighbours": ("ItemNeighbours",),
    "train.keras": ("Keras",),
    "train.loss": (
        "BinaryCrossEntropy",
        "CrossEntropy",
        "Listwise",
        "MeanSquaredError",
    ),
    "train.parameter_server": ("ParameterServer",),
    "train.pipelined": ("Pipelined",),
    "train.popularity": ("Popularity",),
    "train.private": ("Private",),
    "train.prune": ("Prune",),
    "train.quantization_aware": ("QuantizationAware",),
    "train.row_wise": ("RowWise",),
    "train.schedule": (
        "Constant",
        "Cosine",
        "StepDecay",
    ),
    "train.sampled_softmax": ("SampledSoftmax",),
    "train.self_distill": ("SelfDistill",),
    "train.sharded": ("Sharded",),
    "train.single": ("Single",),
    "train.stopping": ("EarlyStopping",),
    "train.tensor_parallel": ("TensorParallel",),
    "train.two_tower": ("TwoTower",),
    "watch.probes": (
        "AUC",
        "RMSE",
        "Accuracy",
        "Calibration",
        "Drift",
        "Latency",
        "LogLoss",
    ),
    "watch.off_policy": ("OffPolicy",),
    "watch.ranking": ("Ranking",),
}
_NAMES = {name: home for home, names in _HOME.items() for name in names}

__all__ = [
    "ALS",
    "AUC",
    "CSV",
    "EASE",
    "FP16",
    "RMSE",
    "Accuracy",
    "AllReduce",
    "Arrow",
    "Avro",
    "Batch",
    "Best",
    "BinaryCrossEntropy",
    "Bucket",
    "Bundle",
    "Calibration",
    "Clip",
    "ColumnSplit",
    "Constant",
    "Content",
    "Cosine",
    "Cross",
    "CrossEntropy",
    "Cyclic",
    "Delta",
    "DiLoCo",
    "Distill",
    "Drift",
    "EarlyStopping",
    "Estimator",
    "Flax",
    "Fused",
    "Graph",
    "Hash",
    "HashSplit",
    "History",
    "Id",
    "Image",
    "Index",
    "Int8",
    "ItemNeighbours",
    "JSONLines",
    "Kafka",
    "Keras",
    "Lake",
    "Latency",
    "Listwise",
    "Log",
    "LogLoss",
    "MeanSquaredError",
    "Missing",
    "OffPolicy",
    "Online",
    "Optimize",
    "ParameterServer",
    "Parquet",
    "Pipelined",
    "Popularity",
    "PowerSGD",
    "Private",
    "Prune",
    "QuantizationAware",
    "Quantize",
    "Ranking",
    "Raw",
    "Registry",
    "RowWise",
    "SampledSoftmax",
    "Scale",
    "SelfDistill",
    "Sharded",
    "Single",
    "Site",
    "StepDecay",
    "Stream",
    "System",
    "TensorParallel",
    "Text",
    "TimeSplit",
    "Tokens",
    "TopK",
    "TwoTower",
    "Window",
    "coalesce",
    "col",
    "concat",
    "days",
    "hours",
    "last_parts",
    "lit",
    "make_timestamp",
    "minutes",
    "random_parts",
    "run",
    "seconds",
    "when",
]


def __getattr__(name: str) -> Any:
    home = _NAMES.get(name)
    if home is None:
        raise AttributeError(f"module 'drivetrain' has no attribute {name!r}")
    return getattr(import_module(f"drivetrain.{home}"), name)


def __dir__() -> list[str]:
    return sorted(_NAMES)
