"""`drivetrain check`: what it says of a declaration, a site and a mistake in either."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from drivetrain.cli import main

Drive = Callable[..., tuple[int, str, str]]
Child = Callable[..., "subprocess.CompletedProcess[str]"]
Served = Callable[..., AbstractContextManager[str]]


def test_check_says_that_the_declaration_fits(drive: Drive, ran: Any) -> None:
    status, out, err = drive("check", ran.file)
    assert (status, err) == (0, "")
    assert out == "made: 5 features of 4 columns, target bad: the declaration fits its events.\n"


def test_check_as_json(drive: Drive, ran: Any) -> None:
    status, out, _ = drive("check", ran.file, "--json")
    assert status == 0
    assert json.loads(out) == {"system": "made", "columns": 6, "features": 5, "targets": ["bad"]}


def test_check_and_help_import_nothing_heavy(ran: Any) -> None:
    heavy = ("torch", "onnx", "onnxruntime", "duckdb", "rich", "mlflow", "sklearn", "pandas")
    for arguments in (["check", str(ran.file)], ["--help"], ["run", "--help"]):
        code = (
            "import sys\nfrom drivetrain.cli import main\n"
            f"try:\n    main({arguments!r})\nexcept SystemExit:\n    pass\n"
            f"print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        assert done.stderr.decode().strip() == "[]", arguments


@pytest.mark.parametrize(
    ("wrote", "due", "says"),
    [
        ('dt.Scale("amount")', 'dt.Scale("amuont")', "'amuont'.*Did you mean 'amount'"),
        ('dt.Scale("amount")', 'dt.Scale("amount", bins=3)', "line 10: TypeError.*'bins'"),
        ('dt.Scale("amount")', 'dt.Scael("amount")', "line 10: AttributeError.*'Scael'"),
        ("system = ", "system == ", "line 4: NameError"),
        ("system = ", "system = (", r"line \d+: SyntaxError"),
        ("targets=", "target=", "TypeError.*'target'"),
        ('targets=("bad",)', 'targets="bad"', "a tuple"),
        ("events.parquet", "no.parquet", r"no\.parquet"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(
    wrote: str, due: str, says: str, drive: Drive, ran: Any, tmp_path: Path
) -> None:
    file = tmp_path / "mistaken.py"
    file.write_text(ran.file.read_text().replace(wrote, due))
    status, out, err = drive("check", file)
    assert (status, out) == (2, "")
    assert err.startswith("drivetrain: ")
    assert err.count("\n") == 1
    assert re.search(says, err), err


def test_a_mistake_as_json(drive: Drive, tmp_path: Path) -> None:
    status, out, err = drive("check", tmp_path / "absent.py", "--json")
    assert (status, out) == (2, "")
    said = json.loads(err)
    assert said["type"] == "FileNotFoundError"
    assert "absent.py" in said["error"]


def test_a_traceback_is_shown_when_asked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        main(["check", str(tmp_path / "absent.py"), "--traceback"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('stroe = "x"', "unknown key 'stroe'.*Did you mean 'store'"),
        ("[serve]\nprot = 1", r"unknown key 'prot'.*\[serve\].*Did you mean 'port'"),
        ('[serve]\nport = "80"', "'80'.*int"),
        ("store = ", "not TOML"),
    ],
)
def test_a_mistake_in_a_site_is_named(
    text: str, says: str, drive: Drive, ran: Any, tmp_path: Path
) -> None:
    site = tmp_path / "site.toml"
    site.write_text(text)
    status, _, err = drive("check", ran.file, "--on", site)
    assert status == 2
    assert re.search(says, err), err


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("train.epoch=1", "unknown key 'epoch'.*Did you mean 'epochs'"),
        ("trian.lr=1", "unknown key 'trian'.*Did you mean 'train'"),
        ("train.epochs=many", "'many'.*int"),
        ("serve.prot=1", "Did you mean 'port'"),
        ("train.lr", "KEY=VALUE"),
    ],
)
def test_a_mistake_in_a_setting_is_named(setting: str, says: str, drive: Drive, ran: Any) -> None:
    status, _, err = drive("check", ran.file, "--set", setting)
    assert status == 2
    assert re.search(says, err), err


def test_an_unknown_verb_is_told_the_verbs(child: Child) -> None:
    done = child("chekc", "file.py")
    assert done.returncode == 2
    assert "check" in done.stderr
    assert "Traceback" not in done.stderr


def test_reading_only_the_first_lines_ends_quietly(ran: Any) -> None:
    shell = f"{sys.executable} -m drivetrain.cli show {ran.file} | head -1"
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("made\n", "")
