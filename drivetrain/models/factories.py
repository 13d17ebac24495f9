"""The zoo's declarations: small values that make a module from the fitted features; no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from drivetrain.core.errors import unknown, wrong
from drivetrain.core.schema import FeatureSchema
from drivetrain.models.options import Attention, Periodic, deep, positive, share, stacks, widths
from drivetrain.models.weights import weights_digest

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class LogisticRegression:
    """One weight for each dense column and each value of an index or a bag; logits.

    Attributes:
        outputs: 1 answers ``[rows]``, more answer ``[rows, outputs]``.
    """

    outputs: int = 1

    def __post_init__(self) -> None:
        positive(self, "outputs")

    def __call__(self, features: FeatureSchema) -> "nn.Module":
        """The module for these features."""
        from drivetrain.models.logistic_regression import LogisticRegressionModule

        return LogisticRegressionModule(features, self.outputs)


@dataclass(frozen=True, kw_only=True)
class MLP:
    """Embeddings and numbers side by side through fully connected layers; logits.

    Attributes:
        hidden: the widths of the hidden layers.
        dim: the width of an embedding.
        dims: other widths for the index and bag features named here.
        dropout: the share of hidden activations dropped in training.
        embedding_dropout: the share of input values dropped in training, after embedding.
        field_dropout: the share of whole embeddings dropped in training.
        norm: ``none``, ``batch`` or ``layer``, before each activation.
        activation: ``relu``, ``gelu``, ``silu`` or ``tanh``.
        numeric: how dense columns enter; None takes them as they are.
        members: above 1, that many networks share their weights and differ by adapters of rank
            one, each with its own head (Gorishniy et al., "TabM", 2024; Wen et al.,
            "BatchEnsemble", 2020); the module answers ``[rows, members]``.
        adapters: with members: ``all`` layers have adapters, or the ``first`` only (TabM-mini).
        attention: how a history is pooled, each a bag of its own; () takes means.
        outputs: 1 answers ``[rows]``, more answer ``[rows, outputs]``; members come before.
    """

    hidden: tuple[int, ...] = (256, 128)
    dim: int = 8
    dims: Mapping[str, int] = field(default_factory=dict[str, int])
    dropout: float = 0.0
    embedding_dropout: float = 0.0
    field_dropout: float = 0.0
    norm: Literal["none", "batch", "layer"] = "none"
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    numeric: Periodic | None = None
    members: int = 1
    adapters: Literal["all", "first"] = "all"
    attention: tuple[Attention, ...] = ()
    outputs: int = 1

    def __post_init__(self) -> None:
        positive(self, "dim", "members", "outputs")
        deep(self)
        if self.adapters not in ("all", "first"):
            raise unknown("MLP.adapters", self.adapters, ("all", "first"))

    def __call__(self, features: FeatureSchema) -> "nn.Module":
        """The module for these features."""
        from drivetrain.models.mlp import MLPModule

        return MLPModule(features, self)


@dataclass(frozen=True, kw_only=True)
class WideAndDeep:
    """A linear model that memorises beside a deep one that generalises, their logits added.

    Cheng et al., "Wide & Deep Learning for Recommender Systems", 2016. Crossed features belong
    to the system's features; the wide part sees every feature there is.

    Attributes: as of :class:`MLP`.
    """

    hidden: tuple[int, ...] = (256, 128)
    dim: int = 8
    dims: Mapping[str, int] = field(default_factory=dict[str, int])
    dropout: float = 0.0
    embedding_dropout: float = 0.0
    field_dropout: float = 0.0
    norm: Literal["none", "batch", "layer"] = "none"
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    attention: tuple[Attention, ...] = ()
    outputs: int = 1

    def __post_init__(self) -> None:
        positive(self, "dim", "outputs")
        deep(self)

    def __call__(self, features: FeatureSchema) -> "nn.Module":
        """The module for these features."""
        from drivetrain.models.wide_and_deep import WideAndDeepModule

        return WideAndDeepModule(features, self)


@dataclass(frozen=True, kw_only=True)
class DeepFM:
    """A factorization machine and a deep network over the same embeddings, logits added.

    Guo et al., "DeepFM: A Factorization-Machine based Neural Network for CTR Prediction", 2017.
    A dense column is a field whose vector is scaled by its value.

    Attributes: as of :class:`MLP`; every embedding has the width ``dim``.
    """

    hidden: tuple[int, ...] = (256, 128)
    dim: int = 8
    dropout: float = 0.0
    norm: Literal["none", "batch", "layer"] = "none"
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    attention: tuple[Attention, ...] = ()

    def __post_init__(self) -> None:
        positive(self, "dim")
        deep(self)

    def __call__(self, features: FeatureSchema) -> "nn.Module":
        """The module for these features."""
        from drivetrain.models.deepfm import DeepFMModule

        return DeepFMModule(features, self)


@dataclass(frozen=True, kw_only=True)
class DCNv2:
    """Explicit feature crosses of bounded degree with a deep network.

    Wang et al., "DCN V2: Improved Deep & Cross Network and Practical Lessons for Web-scale
    Learning to Rank Systems", 2020.

    Attributes:
        layers: cross layers; crosses have a degree of at most ``layers + 1``.
        rank: of the crosses' matrices, ``W = U V``; None takes full matrices.
        structure: ``parallel`` (cross beside deep) or ``stacked`` (deep over cross).
        hidden: as the others: of :class:`MLP`.
    """

    layers: int = 3
    rank: int | None = None
    structure: Literal["parallel", "stacked"] = "parallel"
    hidden: tuple[int, ...] = (256, 128)
    dim: int = 8
    dims: Mapping[str, int] = field(default_factory=dict[str, int])
    dropout: float = 0.0
    embedding_dropout: float = 0.0
    field_dropout: float = 0.0
    norm: Literal["none", "batch", "layer"] = "none"
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    attention: tuple[Attention, ...] = ()
    outputs: int = 1

    def __post_init__(self) -> None:
        positive(self, "layers", "dim", "outputs")
        deep(self)
        if self.rank is not None:
            positive(self, "rank")
        if self.structure not in ("parallel", "stacked"):
            raise unknown("DCNv2.structure", self.structure, ("parallel", "stacked"))

    def __call__(self, features: FeatureSchema) -> "nn.Module":
        """The module for these features."""
        from drivetrain.models.dcn_v2 import DCNv2Module

        return DCNv2Module(features, self)


@dataclass(frozen=True, kw_only=True)
class FinalNet:
    """Blocks of factorized interaction layers: what they multiply doubles its degree a layer.

    A layer is ``x' = h + h * f(V x + c)`` with ``h = W x + b``, in the place of a linear one; each
    block has a head, and the logit is the mean of the heads' (Zhu et al., "FINAL: Factorized
    Interaction Layer for CTR Prediction", SIGIR 2023). The module answers every block's logits, as
    an ensemble does: ``dt.SelfDistill`` trains and serves their mean and teaches each block by it,
    as published; a loss by itself averages the blocks' losses and predictions.

    Attributes:
        blocks: the widths of each block's layers; two blocks, as published.
        factors: of a layer, ``x' = h_1 + … + h_n`` with ``h_i = h_{i-1} * f(V_i x + c_i)``.
        gate: scale the embeddings of the first block field by field, by weights that hang on all
            fields, beside the plain ones: the blocks then see different inputs.
        norm: ``none``, ``batch`` or ``layer``, behind each layer.
        activation: ``f``.
        outputs: 1 answers ``[rows, blocks]``, more ``[rows, blocks, outputs]``; one block alone
            answers as other models do, without that dimension.
        dim: as the others: of :class:`MLP`.
    """

    blocks: tuple[tuple[int, ...], ...] = ((128, 128), (128, 128))
    factors: int = 2
    gate: bool = False
    dim: int = 8
    dims: Mapping[str, int] = field(default_factory=dict[str, int])
    dropout: float = 0.0
    embedding_dropout: float = 0.0
    field_dropout: float = 0.0
    norm: Literal["none", "batch", "layer"] = "batch"
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    attention: tuple[Attention, ...] = ()
    outputs: int = 1

    def __post_init__(self) -> None:
        positive(self, "dim", "outputs")
        stacks(self, "blocks")
        deep(self)
        if self.factors < 2:
            raise wrong("FinalNet.factors", self.factors, "an integer of at least 2")

    def __call__(self, features: FeatureSchema) -> "nn.Module":
        """The module for these features."""
        from drivetrain.models.final_net import FinalNetModule

        return FinalNetModule(features, self)


@dataclass(frozen=True, kw_only=True)
class MaskNet:
    """Layers whose inputs are multiplied, number by number, with a mask made from the whole row.

    Wang et al., "MaskNet: Introducing Feature-Wise Multiplication to CTR Ranking Models by
    Instance-Guided Mask", 2021. Every embedding is normalised by itself; numbers and tensors enter
    as they are.

    Attributes:
        blocks: the widths of the mask blocks: one after another (``serial``), or all of them over
            the embeddings, side by side (``parallel``).
        structure: ``parallel`` or ``serial``.
        reduction: the width of a mask's first layer, as a multiple of the mask's own.
        hidden: the widths of the layers behind the blocks (``serial`` as published: none).
        dim: as the others: of :class:`MLP`.
    """

    blocks: tuple[int, ...] = (128, 128, 128)
    structure: Literal["parallel", "serial"] = "parallel"
    reduction: float = 1.0
    hidden: tuple[int, ...] = (128,)
    dim: int = 8
    dims: Mapping[str, int] = field(default_factory=dict[str, int])
    dropout: float = 0.0
    embedding_dropout: float = 0.0
    field_dropout: float = 0.0
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    attention: tuple[Attention, ...] = ()
    outputs: int = 1

    def __post_init__(self) -> None:
        positive(self, "dim", "outputs")
        widths(self, "blocks")
        deep(self)
        if not self.blocks:
            raise wrong("MaskNet.blocks", self.blocks, "one block at least")
        if not self.reduction > 0:
            raise wrong("MaskNet.reduction", self.reduction, "a number above 0")
        if self.structure not in ("parallel", "serial"):
            raise unknown("MaskNet.structure", self.structure, ("parallel", "serial"))

    def __call__(self, features: FeatureSchema) -> "nn.Module":
        """The module for these features."""
        from drivetrain.models.mask_net import MaskNetModule

        return MaskNetModule(features, self)


@dataclass(frozen=True, kw_only=True)
class ConvNet:
    """A small convolutional network over every image, joined with the other features; logits.

    Each stage is a 3x3 convolution, batch normalisation, ReLU and a 2x2 maximum (He et al.,
    2015, for the initial weights); the mean over the plane joins what else there is.

    Attributes:
        channels: of each stage, which halves the plane.
        hidden: widths of the fully connected layers after it.
        dim: the width of an embedding.
        dropout: the share of hidden activations dropped in training.
        attention: as of :class:`MLP`.
        outputs: 1 answers ``[rows]``, more answer ``[rows, outputs]``.
    """

    channels: tuple[int, ...] = (32, 64, 128)
    hidden: tuple[int, ...] = (128,)
    dim: int = 8
    dropout: float = 0.0
    attention: tuple[Attention, ...] = ()
    outputs: int = 1

    def __post_init__(self) -> None:
        positive(self, "dim", "outputs")
        widths(self, "channels")
        deep(self)
        if not self.channels:
            raise wrong("ConvNet.channels", self.channels, "at least one stage")

    def __call__(self, features: FeatureSchema) -> "nn.Module":
        """The module for these features."""
        from drivetrain.models.conv_net import ConvNetModule

        return ConvNetModule(features, self)


@dataclass(frozen=True, kw_only=True)
class HuggingFace:
    """An encoder of Hugging Face Transformers over a text's tokens, with a head for logits.

    BERT, DistilBERT, ELECTRA and MobileBERT, which read WordPiece. Nothing is fetched: weights are
    a directory on this machine, read as safetensors, and code that lies beside them is not run.
    It needs the extra ``huggingface``.

    Attributes:
        weights: a directory with ``config.json`` and ``model.safetensors``; what they hold is
            declared, not where they lie. None draws initial weights for ``config``.
        config: by name what is to be as said: without weights a whole configuration, such as
            ``{"model_type": "bert", "hidden_size": 128}``, with weights what differs from theirs.
        tokens: the :class:`Tokens` feature that the encoder reads; by default the only bag.
        pooling: ``mean`` of the tokens' vectors, or the ``first`` one, that of ``[CLS]``.
        frozen: train the head only.
        attention: ``sdpa``, torch's fused kernels, or ``eager``.
        dim: the width of an embedding of the other features, which join the pooled vector.
        dropout: the share of what the head takes that is dropped in training.
        outputs: 1 answers ``[rows]``, more answer ``[rows, outputs]``.
    """

    weights: str | Path | None = field(default=None, metadata={"as": weights_digest})
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tokens: str = ""
    pooling: Literal["mean", "first"] = "mean"
    frozen: bool = False
    attention: Literal["sdpa", "eager"] = "sdpa"
    dim: int = 8
    dropout: float = 0.1
    outputs: int = 1

    def __post_init__(self) -> None:
        positive(self, "dim", "outputs")
        share(self, "dropout")
        if self.weights is None and "model_type" not in self.config:
            raise wrong("HuggingFace.config", dict(self.config), "a model_type, or weights")
        if self.pooling not in ("mean", "first"):
            raise unknown("HuggingFace.pooling", self.pooling, ("mean", "first"))
        if self.attention not in ("sdpa", "eager"):
            raise unknown("HuggingFace.attention", self.attention, ("sdpa", "eager"))

    def __call__(self, features: FeatureSchema) -> "nn.Module":
        """The module for these features.

        Raises:
            ImportError: transformers is not installed.
            ValueError: no such weights or type of model, or none that fits the tokens.
        """
        from drivetrain.models.hugging_face import HuggingFaceModule

        return HuggingFaceModule(features, self)
