"""From a declaration with windows to a bundle that says which of its inputs a server keeps."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import drivetrain as dt
from drivetrain import col
from drivetrain.cli import main
from drivetrain.core.schema import Schema
from drivetrain.core.site import Site
from drivetrain.core.system import System
from drivetrain.core.window import Windows
from drivetrain.events.table import Table
from drivetrain.pipeline import run


@pytest.fixture
def windowed(ran: Any) -> System:
    """The made system with two windows, of which the features read one, as it is."""
    events = dt.Parquet(ran.folder / "events.parquet", time="at").with_windows(
        spent=dt.Window("amount", by="shop", stat="mean", over="30d"),
        seen=dt.Window(by="shop", stat="count", over="30d"),
    )
    features = (dt.Scale("amount"), dt.Scale("spent"), dt.Index("shop"))
    split = dt.TimeSplit(validate="2024-07-01", test="2024-09-01")
    return replace(ran.system, events=events.split(split), features=features, compress=())


def test_a_bundle_says_which_inputs_are_windows_and_what_they_read(
    ran: Any, windowed: System, site: Site
) -> None:
    bundle = run(windowed, site)
    assert bundle is not None
    said = bundle.manifest
    assert said.inputs.names == ("amount", "spent", "shop")
    windows = Windows.from_json(said.windows)
    assert windows.columns == (("spent", dt.Window("amount", by="shop", stat="mean", over="30d")),)
    assert (windows.time, windows.lateness) == ("at", 0)
    read = [(field.name, field.dtype) for field in said.window_schema]
    assert read == [("at", "timestamp"), ("shop", "string"), ("amount", "float64")]
    assert (ran.bundle.manifest.windows, ran.bundle.manifest.window_schema) == ({}, Schema(()))


def test_what_a_server_could_not_compute_is_an_error_before_a_row_is_read(
    windowed: System, site: Site
) -> None:
    assert isinstance(windowed.events, Table)
    events = windowed.events.with_columns(share=col("amount") / col("spent"))
    system = replace(windowed, events=events, features=(dt.Scale("share"),))
    with pytest.raises(
        ValueError, match=r"'share': found .*with_columns\(share=.*server could not"
    ):
        run(system, site)
    assert not Path(site.work, "events").exists()


def test_check_names_the_step_that_no_server_could_do(
    ran: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = Path(ran.file).read_text()
    window = 'dt.Window("amount", by="shop", stat="mean", over="30d")'
    steps = f'.with_windows(spent={window}).rename(outlay="spent").split('
    text = text.replace(".split(", steps).replace('dt.Scale("amount")', 'dt.Scale("outlay")')
    file = tmp_path / "late.py"
    file.write_text(text)
    assert main(["check", str(file), f"--set=work={tmp_path / 'work'}"]) == 2
    assert "what rename(outlay='spent') makes of a window" in capsys.readouterr().err
