"""The one loop, strategies on it, checkpoints and export."""

from drivetrain.train.all_reduce import AllReduce
from drivetrain.train.compression import FP16, Int8, PowerSGD, TopK
from drivetrain.train.diloco import DiLoCo
from drivetrain.train.distill import Distill
from drivetrain.train.loss import BinaryCrossEntropy, CrossEntropy, Listwise, MeanSquaredError
from drivetrain.train.parameter_server import ParameterServer
from drivetrain.train.pipelined import Pipelined
from drivetrain.train.private import Private
from drivetrain.train.prune import Prune
from drivetrain.train.quantization_aware import QuantizationAware
from drivetrain.train.row_wise import RowWise
from drivetrain.train.schedule import Constant, Cosine, StepDecay
from drivetrain.train.self_distill import SelfDistill
from drivetrain.train.sharded import Sharded
from drivetrain.train.single import Single
from drivetrain.train.stopping import EarlyStopping
from drivetrain.train.tensor_parallel import TensorParallel

__all__ = [
    "FP16",
    "AllReduce",
    "BinaryCrossEntropy",
    "Constant",
    "Cosine",
    "CrossEntropy",
    "DiLoCo",
    "Distill",
    "EarlyStopping",
    "Int8",
    "Listwise",
    "MeanSquaredError",
    "ParameterServer",
    "Pipelined",
    "PowerSGD",
    "Private",
    "Prune",
    "QuantizationAware",
    "RowWise",
    "SelfDistill",
    "Sharded",
    "Single",
    "StepDecay",
    "TensorParallel",
    "TopK",
]
