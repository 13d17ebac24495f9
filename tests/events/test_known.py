"""A schema is told once for unchanged files, and anew for changed ones."""

import os
from pathlib import Path

import pytest

from drivetrain.events import CSV, col
from drivetrain.events.known import known_schema
from drivetrain.events.table import Table


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    path.write_text("a,b\n1,x\n")
    return path


def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is read of files from now on."""
    from drivetrain.events.reading import read

    asked: list[str] = []
    original = read.schema_of

    def watched(leaf: CSV) -> object:
        asked.append(leaf.urls[0])
        return original(leaf)

    monkeypatch.setattr(read, "schema_of", watched)
    return asked


def table(path: Path) -> Table:
    return CSV(path).with_columns(twice=col("a") * 2)


def test_the_files_of_an_unchanged_table_are_not_read_again(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = known_schema(table(file), tmp_path / "room")
    asked = told(monkeypatch)
    assert known_schema(table(file), tmp_path / "room") == first == table(file).schema
    assert asked == [str(file)], "only the comparison itself read the file"


def test_a_changed_file_is_read_again(file: Path, tmp_path: Path) -> None:
    assert known_schema(table(file), tmp_path / "room").field("a").dtype == "int64"
    file.write_text("a,b\n1.5,x\n")
    assert known_schema(table(file), tmp_path / "room").field("a").dtype == "float64"


def test_a_file_of_the_same_size_and_another_time_is_read_again(file: Path, tmp_path: Path) -> None:
    known_schema(table(file), tmp_path / "room")
    file.write_text("a,c\n1,x\n")
    os.utime(file, ns=(1, 1))
    assert "c" in known_schema(table(file), tmp_path / "room")


def test_a_changed_declaration_is_told_anew(file: Path, tmp_path: Path) -> None:
    known_schema(CSV(file), tmp_path / "room")
    assert "twice" in known_schema(table(file), tmp_path / "room")


def test_a_damaged_note_is_told_anew(file: Path, tmp_path: Path) -> None:
    known_schema(table(file), tmp_path / "room")
    (note,) = (tmp_path / "room").iterdir()
    note.write_text('[{"name": "a"')
    assert known_schema(table(file), tmp_path / "room") == table(file).schema


def test_a_room_that_cannot_be_written_is_no_error(file: Path, tmp_path: Path) -> None:
    (tmp_path / "room").write_text("a file stands where the folder should")
    assert known_schema(table(file), tmp_path / "room") == table(file).schema


def test_an_absent_file_is_named_as_without_the_notes(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.csv"):
        known_schema(CSV(tmp_path / "absent.csv"), tmp_path / "room")
