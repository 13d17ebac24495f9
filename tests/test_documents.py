"""What the documents show works: their Python runs, their commands exist, their links lead on."""

import ast
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from drivetrain.cli import _parser

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def write_made_flights(path: Path) -> None:
    """What the README's `flights.parquet` stands for: made rows, seeded."""
    random = np.random.default_rng(0)
    rows = 6000
    delay = random.normal(5, 30, rows)
    columns = {
        "at": np.datetime64("2013-01-01T06:00:00", "us")
        + np.arange(rows) * np.timedelta64(87, "m"),
        "carrier": random.choice(["UA", "AA", "DL", "B6"], rows),
        "dest": random.choice(["IAH", "MIA", "ORD"], rows),
        "distance": random.integers(100, 2500, rows),
        "arr_delay": pa.array(delay, mask=random.random(rows) < 0.03),
    }
    pq.write_table(pa.table(columns), path)


def blocks(document: Path, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(document.read_text()) if kind == language]


@pytest.mark.slow
@pytest.mark.parametrize(
    "document", [d for d in DOCUMENTS if blocks(d, "python")], ids=lambda d: d.name
)
def test_the_python_of_a_document_runs_from_top_to_bottom(
    document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_made_flights(tmp_path / "flights.parquet")
    text = "\n".join(blocks(document, "python"))
    path = tmp_path / f"{document.stem}.py"
    path.write_text(text)  # a file, so that the source of what it defines can be digested
    names: dict[str, object] = {"__name__": document.stem}
    exec(compile(text, str(path), "exec"), names)
    made = {t.id for n in ast.parse(text).body if isinstance(n, ast.Assign) for t in n.targets
            if isinstance(t, ast.Name)}  # fmt: skip
    assert made <= names.keys(), "it ran to its end"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_every_command_that_a_document_shows_is_one(document: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in "\n".join(blocks(document, "sh")).splitlines():
        words = line.split("#")[0].split()
        if words[:1] == ["make"]:
            assert words[1] in targets, line
        if words and words[0].endswith("drivetrain"):
            _parser().parse_args(words[1:])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_every_link_to_a_file_leads_to_one(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), target


def test_the_two_readmes_show_the_same_commands_and_code() -> None:
    english, chinese = ROOT / "README.md", ROOT / "README.zh-CN.md"
    for language in ("sh", "python", "toml"):
        strip = [re.sub(r"#.*", "", text) for text in blocks(english, language)]
        assert strip == [re.sub(r"#.*", "", text) for text in blocks(chinese, language)], language
