"""A text's way through every stage: tokens in the graph, an encoder, eight bits, an answer."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import drivetrain as dt
from drivetrain.core.bundle import Bundle
from drivetrain.core.metric import Metric
from drivetrain.core.site import Site
from drivetrain.models import HuggingFace

WORDS = (
    "red",
    "blue",
    "green",
    "loud",
    "quiet",
    "ring",
    "sing",
    "##ing",
    "##s",
    "##ed",
    "co",
    "##ld",
)
VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS)
ENCODER = {
    "model_type": "bert",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


@pytest.fixture
def system(tmp_path: Path) -> dt.System:
    """Made sentences of made words, of which two classes are made."""
    random = np.random.default_rng(0)
    words = np.array(["Red", "blues", "GREEN", "lóud", "quiet", "ringed", "singing", "cold"])
    picked = random.integers(0, len(words), (900, 4))
    table = pa.table(
        {
            "text": [" ".join(words[row]) + "." for row in picked],
            "kind": ((picked == 3).any(1) & (picked != 6).all(1)).astype(np.int64),
        }
    )
    pq.write_table(table, tmp_path / "texts.parquet")
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY))

    return dt.System(
        name="texts",
        events=dt.Parquet(tmp_path / "texts.parquet").split(dt.HashSplit()),
        features=(dt.Tokens("text", tmp_path, length=12),),
        model=HuggingFace(config=ENCODER, outputs=2, dropout=0.0),
        targets=("kind",),
        train=dt.Single(loss=dt.CrossEntropy("kind"), epochs=5, batch_size=32, lr=5e-3),
        compress=(dt.Quantize("int8", calibration_rows=64),),
        probes=(dt.Accuracy(at_least=0.9),),
    )


def test_an_encoder_learns_is_made_smaller_and_answers_raw_text(
    system: dt.System, site: Site
) -> None:
    heard: dict[str, float] = {}

    def hear(item: Any) -> None:
        if isinstance(item, Metric):
            heard[item.name] = item.value

    bundle = dt.run(system, site, emit=hear)
    assert bundle is not None
    assert bundle.manifest.metrics["test/accuracy"] > 0.9
    assert heard["compress/int8/kept"] == 1
    assert heard["compress/int8/after_bytes"] < heard["compress/int8/before_bytes"]
    texts = ["red  LOUD blue", "loud singing", "", "neverseen words, and loud"]
    said = Bundle.open(bundle.path).predict([{"text": text} for text in texts])["kind"]
    assert said.argmax(1)[:2].tolist() == [1, 0]
    np.testing.assert_allclose(said.sum(1), 1, atol=1e-5)
