"""An encoder of Hugging Face Transformers, with a head and whatever else is known beside it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from drivetrain.core.errors import unknown, wrong
from drivetrain.core.need import need
from drivetrain.core.schema import FeatureField, FeatureSchema
from drivetrain.models.embedding import Inputs
from drivetrain.models.factories import HuggingFace
from drivetrain.models.weights import weights_files

EXTRA = "huggingface"
FAMILIES = ("bert", "distilbert", "electra", "mobilebert")
"""Encoders that read WordPiece tokens and take a mask as it is; others answered NaN for padding."""
UNSEEN = -1e30
"""What is added to the score of a place of padding; finite in bfloat16 too."""


class HuggingFaceModule(nn.Module):
    """An encoder over tokens, pooled; other features beside it; a linear head.

    Args:
        features: the fitted features, a bag of tokens among them.
        config: the declaration.

    Raises:
        ImportError: transformers is not installed.
        ValueError: no bag, or which of several is meant is not said; no such weights, or of
            another family; more tokens or positions than the encoder has.
    """

    def __init__(self, features: FeatureSchema, config: HuggingFace) -> None:
        super().__init__()
        text = _text(features, config.tokens)
        self.text = text.name
        with _quiet():
            self.encoder = _encoder(config, text)
        _check_room(self.encoder.config, text)
        self.frozen = config.frozen
        if config.frozen:
            self.encoder.requires_grad_(False)
        others = Inputs(features, config.dim, skip=(text.name,))
        self.others = others if others.width else None
        self.first = config.pooling == "first"
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(self.encoder.config.hidden_size + others.width, config.outputs)
        self.outputs = config.outputs

    def train(self, mode: bool = True) -> "HuggingFaceModule":
        """As torch's; an encoder that is frozen stays as it answers."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def forward(self, **inputs: Tensor) -> Tensor:
        """Logits ``[rows]``, or ``[rows, outputs]``."""
        tokens = inputs[self.text]
        there = tokens != 0
        # Given whole, the mask is taken as it is; else its values decide on a way, row by row.
        hidden = torch.zeros_like(tokens, dtype=self.head.weight.dtype)
        hidden = hidden.masked_fill(~there, UNSEEN)[:, None, None, :]
        vectors = self.encoder(input_ids=tokens, attention_mask=hidden).last_hidden_state
        if self.first:
            pooled = vectors[:, 0]
        else:
            weight = there.unsqueeze(2).to(vectors.dtype)
            pooled = (vectors * weight).sum(1) / weight.sum(1).clamp(min=1)
        if self.others is not None:
            pooled = torch.cat([pooled, self.others(inputs)], 1)
        logits = self.head(self.dropout(pooled))
        return logits.squeeze(1) if self.outputs == 1 else logits


def _text(features: FeatureSchema, name: str) -> FeatureField:
    """The bag of tokens that is meant."""
    bags = features.of("bag")
    if name:
        if name not in {bag.name for bag in bags}:
            raise unknown("bag", name, [bag.name for bag in bags], "HuggingFace.tokens")
        return features.field(name)
    if len(bags) != 1:
        found = [bag.name for bag in bags]
        raise wrong("HuggingFace: bags", found, "one feature Tokens; tokens= says which of several")
    return bags[0]


def _encoder(config: HuggingFace, text: FeatureField) -> Any:
    lent = {"attn_implementation": config.attention, "dtype": torch.float32}
    said = dict(config.config)
    if config.weights is None:
        kind = _family(said.pop("model_type"), "HuggingFace.config")
        transformers = need("transformers", EXTRA)
        known = transformers.CONFIG_MAPPING[kind]()
        for name in said:
            if not hasattr(known, name):  # it would be kept, and read by nobody
                raise unknown("option", name, known.to_dict(), f"HuggingFace.config of {kind}")
        said.setdefault("vocab_size", text.cardinality)
        made = transformers.CONFIG_MAPPING[kind](pad_token_id=0, **said)
        encoder = transformers.AutoModel.from_config(made, **lent)
    else:
        encoder = _read(config.weights, {**said, **lent})
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None  # weights that no loss would reach
    return encoder


def _family(kind: Any, where: str) -> str:
    if kind not in FAMILIES:
        raise unknown("model_type", str(kind), FAMILIES, where)
    return kind


def _read(weights: str | Path, options: dict[str, Any]) -> Any:
    """The encoder that lies in a directory, whole."""
    file = weights_files(weights)[0]
    _family(json.loads(file.read_bytes()).get("model_type"), str(file))
    encoder, report = need("transformers", EXTRA).AutoModel.from_pretrained(
        str(file.parent),
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
        **options,
    )
    absent = [name for name in report["missing_keys"] if not name.startswith("pooler.")]
    if absent:
        raise wrong(f"HuggingFace.weights {weights}", f"no {absent[0]}", "all of the encoder's")
    return encoder


def _check_room(config: Any, text: FeatureField) -> None:
    rooms = (("vocab_size", text.cardinality), ("max_position_embeddings", text.width))
    for name, needed in rooms:
        least = getattr(config, name, None)
        if least is not None and least < needed:
            where = f"HuggingFace: {name} of {config.model_type}"
            raise wrong(where, least, f"{needed} or more, for feature {text.name!r}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep progress bars and advice from the user: what matters is checked or raised."""
    logging = need("transformers", EXTRA).utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
