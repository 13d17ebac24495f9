"""`drivetrain show`: drawings, pages, dashboards, placements."""

import json
import re
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

Drive = Callable[..., tuple[int, str, str]]
Child = Callable[..., "subprocess.CompletedProcess[str]"]
Served = Callable[..., AbstractContextManager[str]]


class Page(HTMLParser):
    """What a page holds: its tags, the addresses that it would load, its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []
        self.words = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)
        self.loaded += [f"{k}={v}" for k, v in attrs if k in ("src", "href")]
        self.loaded += [tag] if tag in ("script", "iframe", "object") else []

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def test_show_draws_a_system(drive: Drive, ran: Any) -> None:
    status, out, _ = drive("show", ran.file)
    assert status == 0
    for part in ("Scale('amount')", "split by TimeSplit(validate='2024-07-01'", "AUC(at_least=0.6"):
        assert part in out


def test_show_draws_a_bundle_by_digest_alias_and_path(drive: Drive, ran: Any, here: Any) -> None:
    drive("promote", ran.bundle.digest[:12], "made", *here)
    drawn = [drive("show", what, *here) for what in (ran.bundle.digest, "made", ran.bundle.path)]
    assert drawn[0] == drawn[1] == drawn[2]
    status, out, _ = drawn[0]
    assert status == 0
    assert "model inputs" in out
    assert "test/auc" in out
    assert re.search(r"train/(estimated_)?energy_kwh +\d", out)


def test_show_measures_where_a_bundle_runs(drive: Drive, ran: Any, here: Any) -> None:
    status, out, _ = drive("show", ran.bundle.digest, *here, "--placements")
    assert status == 0
    assert " picked of: cpu 1 rows " in out
    _, out, _ = drive("show", ran.bundle.digest, *here, "--placements", "--json")
    found = json.loads(out)["placement"]
    assert found["trials"][0]["placement"] == "cpu"
    assert found["picked"] in {trial["placement"] for trial in found["trials"]}
    status, _, error = drive("show", ran.file, "--placements")
    assert status == 2
    assert "allowed: a bundle or an alias" in error


@pytest.mark.parametrize("what", ["system", "bundle"])
def test_show_writes_a_page_that_needs_nothing_else(
    what: str, drive: Drive, ran: Any, here: Any, tmp_path: Path
) -> None:
    drawn = ran.file if what == "system" else ran.bundle.digest
    status, out, _ = drive("show", drawn, *here, "--html", tmp_path / "page.html")
    assert status == 0
    assert "page.html" in out
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(", text)
    page = Page(text)
    assert (page.open, page.loaded) == ([], [])
    assert "Scale('amount')" in page.words


def test_show_writes_the_dashboard_and_the_alerts_of_what_an_alias_serves(
    drive: Drive, ran: Any, here: Any, tmp_path: Path
) -> None:
    drive("promote", ran.bundle.digest[:12], "late", *here)
    board, rules = tmp_path / "board.json", tmp_path / "rules.yml"
    status, out, err = drive("show", "late", *here, "--dashboard", board, "--alerts", rules)
    assert status == 0, err
    assert out.split() == ["wrote", str(board), "wrote", str(rules)]
    assert 'model=\\"late\\"' in board.read_text()
    assert "drivetrain-late" in rules.read_text()


def test_a_dashboard_of_a_file_that_has_not_run_is_refused(
    drive: Drive, ran: Any, tmp_path: Path
) -> None:
    status, _, err = drive("show", ran.file, "--dashboard", tmp_path / "board.json")
    assert status == 2
    assert "a bundle or an alias" in err
    assert not (tmp_path / "board.json").exists()


def test_show_as_json(drive: Drive, ran: Any) -> None:
    status, out, _ = drive("show", ran.file, "--json")
    drawn = json.loads(out)
    assert status == 0
    assert [stage["stage"] for stage in drawn["stages"]] == [
        *("events", "features", "model", "train", "compress", "probes")
    ]
