"""Each verb as a person types it: what it prints, what it leaves, how it ends."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from drivetrain.cli import main
from drivetrain.registry.registry import Registry

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
Drive = Callable[..., tuple[int, str, str]]


@pytest.fixture
def drive(capsys: pytest.CaptureFixture[str]) -> Drive:
    """``drive(*arguments)`` runs a verb in this process: its status, its output, its errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def here(ran: Any, tmp_path: Path) -> tuple[str, ...]:
    """Arguments that put a verb on a site of the test's own, which has the made bundle."""
    site = ran.copy(tmp_path)
    file = tmp_path / "site.toml"
    file.write_text(
        f'store = "{site.store}"\nwork = "{site.work}"\ndevice = "cpu"\n'
        f'[engine]\nmemory = "{site.engine.memory}"\nthreads = 1\n'
        f'[serve]\nport = 0\nfeedback = "{tmp_path / "feedback"}"\n'
    )
    return ("--on", str(file))


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "drivetrain.cli", *map(str, arguments)]


def child(*arguments: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, env=ENVIRONMENT, check=False
    )


# -- check -----------------------------------------------------------------------------------------


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


def test_an_unknown_verb_is_told_the_verbs() -> None:
    done = child("chekc", "file.py")
    assert done.returncode == 2
    assert "check" in done.stderr
    assert "Traceback" not in done.stderr


def test_reading_only_the_first_lines_ends_quietly(ran: Any) -> None:
    shell = f"{' '.join(command('show', ran.file))} | head -1"
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("made\n", "")


# -- run -------------------------------------------------------------------------------------------


def test_run_prints_the_bundle_and_what_comes_next(drive: Drive, ran: Any, here: Any) -> None:
    status, out, err = drive("run", ran.file, *here)
    assert status == 0, err
    assert f"bundle {ran.bundle.digest}" in out
    assert re.search(r"test/auc +0\.\d+", out)
    assert re.search(r"run/(estimated_)?energy_kwh +\d", out)
    assert "energy: energy by " in err
    assert f"next: drivetrain promote {ran.bundle.digest[:12]} made" in out


def test_run_as_json_is_an_object_a_line(drive: Drive, ran: Any, here: Any) -> None:
    german = "--set=energy.country=DEU"
    status, out, _ = drive("run", ran.file, *here, "--json", "--set=compress=[]", german)
    assert status == 0
    *stream, last = [json.loads(line) for line in out.splitlines()]
    assert {item["type"] for item in stream} >= {"note", "metric"}
    assert last["metrics"]["test/auc"] > 0.6
    spent = last["measured"]
    carbon = spent.pop("run/estimated_carbon_kg")
    (kwh,) = spent.values()
    assert carbon == pytest.approx(kwh * 380.95 / 1000)


def test_run_stops_where_it_is_told(drive: Drive, ran: Any, tmp_path: Path) -> None:
    rooms = [f"--set=store={tmp_path / 'store'}", f"--set=work={tmp_path / 'work'}"]
    status, _, _ = drive("run", ran.file, "--until", "features", *rooms)
    assert status == 0
    assert {path.name for path in (tmp_path / "work").iterdir()} == {"events", "features"}
    assert not (tmp_path / "store").exists()


def test_run_ends_with_1_when_a_bound_is_broken(drive: Drive, ran: Any, here: Any) -> None:
    changed = ["--set=probes.0.at_least=0.999", "--set=compress=[]"]
    status, out, err = drive("run", ran.file, *here, *changed)
    assert status == 1
    assert re.search(r"a bound is broken: test/auc 0\.\d+ \(at least 0\.999\)", err)
    digest = re.search(r"bundle ([0-9a-f]{64})", out)
    assert digest
    status, _, err = drive("promote", digest[1], "made", *here)
    assert status == 2
    assert "test/auc" in err


def test_a_dry_run_prints_the_command_and_starts_nothing(
    drive: Drive, ran: Any, tmp_path: Path
) -> None:
    settings = [f"--set=work={tmp_path / 'work'}", "--set=train.lr=0.5", "--set=resources.cpus=2"]
    status, out, _ = drive("run", ran.file, "--dry-run", "--until=train", *settings)
    assert status == 0
    assert out.startswith("OMP_NUM_THREADS=2 RANK=0 LOCAL_RANK=0 WORLD_SIZE=1 ")
    for part in ("drivetrain.cli run", "--until=train", "--set=train.lr=0.5"):
        assert part in out
    assert not (tmp_path / "work").exists()


def test_the_local_launcher_starts_a_child_and_passes_its_status_on(
    ran: Any, tmp_path: Path
) -> None:
    rooms = [f"--set=store={tmp_path / 'store'}", f"--set=work={tmp_path / 'work'}"]
    local = ["--set=launcher.kind=local", "--until=features"]
    done = child("run", ran.file, *rooms, *local)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "work").iterdir()} == {"events", "features"}
    failed = child("run", ran.file, *rooms, *local, "--set=engine.kind=none")
    assert failed.returncode == 2
    assert failed.stderr.splitlines()[-1].startswith("drivetrain: unknown engine 'none'")


@pytest.mark.parametrize(
    ("setting", "says"),
    [("launcher.kind=lokal", "'lokal', allowed: inline, local"), ("resources.processes=2", "1")],
)
def test_a_launcher_that_is_not_here_is_refused(
    setting: str, says: str, drive: Drive, ran: Any
) -> None:
    status, _, err = drive("run", ran.file, "--dry-run", f"--set={setting}")
    assert status == 2
    assert says in err


@pytest.mark.parametrize("name", ["nodes", "processes"])
def test_more_than_one_process_is_never_passed_over(name: str, drive: Drive, ran: Any) -> None:
    status, _, err = drive("run", ran.file, f"--set=resources.{name}=2")
    assert status == 2
    assert f"[resources] {name}: found 2, allowed: 1 with Single" in err


@pytest.mark.parametrize(
    ("setting", "allowed"),
    [
        ("resources.gpus=1", "device= names the one to use"),
        ("resources.memory=8Gi", "'' with a local launcher"),
        ("resources.cpus=2", "0 with the launcher 'inline'"),
    ],
)
def test_a_resource_that_nobody_would_give_is_refused(
    setting: str, allowed: str, drive: Drive, ran: Any
) -> None:
    status, _, err = drive("run", ran.file, f"--set={setting}")
    assert status == 2
    assert f"[{setting.split('.')[0]}] {setting.split('.')[1].split('=')[0]}: found" in err
    assert allowed in err


def test_the_stages_that_the_command_line_names_are_those_of_the_pipeline() -> None:
    from drivetrain import cli, pipeline

    assert cli.STAGES == pipeline.STAGES


# -- show ------------------------------------------------------------------------------------------


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


# -- test, promote, rollback -----------------------------------------------------------------------


def test_test_measures_the_test_split_again_as_registered(
    drive: Drive, ran: Any, here: Any
) -> None:
    status, out, err = drive("test", ran.bundle.digest, *here)
    assert status == 0, err
    assert re.search(r"test/auc 0\.\d+ \(at least 0\.6\)  as registered", out)
    assert "latency/p99_ms" in out


def test_test_measures_rows_of_another_file(
    drive: Drive, ran: Any, here: Any, make_events: Any, tmp_path: Path
) -> None:
    pq.write_table(make_events(rows=900, seed=5), tmp_path / "other.parquet")
    arguments = ("test", ran.bundle.digest, "--data", tmp_path / "other.parquet", *here, "--json")
    status, out, err = drive(*arguments)
    assert status == 0, err
    found = {m["name"]: m for m in map(json.loads, out.splitlines())}
    assert found["test/auc"]["holds"] is True
    assert found["test/auc"]["value"] != ran.bundle.manifest.metrics["test/auc"]
    pq.write_table(make_events(rows=90).drop(["shop"]), tmp_path / "other.parquet")
    status, _, err = drive(*arguments)
    assert status == 2
    assert "unknown column 'shop'" in json.loads(err)["error"]


def test_test_says_so_when_its_rows_are_gone(drive: Drive, ran: Any, tmp_path: Path) -> None:
    status, _, err = drive("test", ran.bundle.path, f"--set=work={tmp_path}")
    assert status == 2
    assert "--data" in err


def test_test_ends_with_1_when_a_bound_is_broken(
    drive: Drive, ran: Any, here: Any, make_events: Any, tmp_path: Path
) -> None:
    turned = make_events(rows=600)
    bad = [1 - value for value in turned["bad"].to_pylist()]
    pq.write_table(make_events(rows=600, bad=bad), tmp_path / "turned.parquet")
    status, out, _ = drive("test", ran.bundle.digest, "--data", tmp_path / "turned.parquet", *here)
    assert status == 1
    assert re.search(r"test/auc .*BROKEN", out)


def test_a_damaged_bundle_is_refused(drive: Drive, ran: Any, here: Any, tmp_path: Path) -> None:
    model = tmp_path / "store" / "bundles" / ran.bundle.digest / "model.onnx"
    model.write_bytes(model.read_bytes().replace(b"bad", b"bed", 1))
    for verb in (("test", ran.bundle.digest), ("promote", ran.bundle.digest, "made")):
        status, _, err = drive(*verb, *here)
        assert status == 2
        assert "model.onnx" in err


def test_promote_and_rollback_move_an_alias(drive: Drive, ran: Any, here: Any) -> None:
    first = ran.bundle.digest
    status, out, _ = drive("run", ran.file, *here, "--set=compress=[]", "--json")
    second = json.loads(out.splitlines()[-1])["bundle"]
    assert (status, second != first) == (0, True)
    for digest in (first, second):
        status, out, _ = drive("promote", digest, "made", *here)
        assert status == 0
        assert out == f"made is {digest}\nnext: drivetrain serve made\n"
    status, out, _ = drive("rollback", "made", *here)
    assert (status, out) == (0, f"made is {first} again\n")
    status, _, err = drive("rollback", "made", *here)
    assert status == 2
    assert "never meant another" in err


def test_an_unknown_alias_suggests_the_nearest(drive: Drive, ran: Any, here: Any) -> None:
    drive("promote", ran.bundle.digest, "made", *here)
    for verb in ("rollback", "serve", "show", "test", "watch"):
        status, _, err = drive(verb, "maed", *here)
        assert status == 2
        assert "Did you mean 'made'" in err, verb


# -- serve and watch -------------------------------------------------------------------------------


@contextmanager
def served(reference: str, here: tuple[str, ...]) -> Iterator[str]:
    """A server in a process of its own; its address."""
    process = subprocess.Popen(
        command("serve", reference, *here),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=ENVIRONMENT,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert found, line + process.stdout.read()
        yield found[0]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_serve_answers_and_watch_looks_once(ran: Any, here: Any) -> None:
    main(["promote", ran.bundle.digest, "made", *here])
    rows = [{"amount": 40.0, "age": 33, "shop": "north", "note": None}] * 3
    with served("made", here) as url:
        request = urllib.request.Request(
            f"{url}/predict/made",
            json.dumps({"rows": rows}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            predictions = json.load(answer)["predictions"]
        expected = ran.bundle.predict(rows)["bad"]
        assert [p["bad"] for p in predictions] == pytest.approx(list(expected), abs=0)
        looked = child("watch", "made", "--once", "--json", "--url", url, *here)
    assert looked.returncode == 0, looked.stderr
    assert "made" in looked.stdout
    for line in looked.stdout.splitlines():
        json.loads(line)
    assert "Traceback" not in looked.stderr


@pytest.mark.slow
def test_a_bundle_is_served_by_its_digest_too(ran: Any, here: Any) -> None:
    with (
        served(ran.bundle.digest, here) as url,
        urllib.request.urlopen(f"{url}/v2/models/{ran.bundle.digest}", timeout=30) as answer,
    ):
        assert json.load(answer)["name"] == ran.bundle.digest
    assert Registry(Path(here[1]).parent / "store").aliases() == {}
