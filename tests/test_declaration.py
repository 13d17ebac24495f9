"""What a file declares, and how single values of it are changed by name."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from drivetrain.core.schema import Schema
from drivetrain.core.site import Site
from drivetrain.core.system import System
from drivetrain.declaration import load, with_settings

DECLARED = """
from dataclasses import dataclass
from drivetrain.core.system import System
from drivetrain.features.numeric import Scale

class Rows:
    schema = ()

def model(features):
    return None

{name} = System(name="one", events=Rows(), features=(Scale("x"),), model=model, targets=("y",),
                train=None)
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "system.py"
    path.write_text(text)
    return path


def test_the_only_system_of_a_file_is_found(tmp_path: Path) -> None:
    assert load(written(tmp_path, DECLARED.format(name="anything"))).name == "one"


def test_of_several_systems_the_one_called_system_is_taken(tmp_path: Path) -> None:
    text = DECLARED.format(name="other") + "import dataclasses\n"
    text += "system = dataclasses.replace(other, name='two')\n"
    assert load(written(tmp_path, text)).name == "two"


def test_several_systems_and_none_called_system_are_refused_by_name(tmp_path: Path) -> None:
    text = DECLARED.format(name="a") + "import dataclasses\nb = dataclasses.replace(a, name='b')\n"
    with pytest.raises(ValueError, match=r"found \['a', 'b'\], allowed: one System"):
        load(written(tmp_path, text))


def test_a_file_without_a_system_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'no System'"):
        load(written(tmp_path, "x = 1\n"))


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.py"):
        load(tmp_path / "absent.py")


@dataclass(frozen=True)
class Train:
    lr: float = 0.1
    epochs: int = 3
    seed: int | None = None


@dataclass(frozen=True)
class Column:
    name: str
    columns: tuple[str, ...] = ("x",)
    size: int = 4


@dataclass(frozen=True)
class Nothing:
    schema: Schema = field(default=Schema(()))


def system() -> System:
    parts: Any = {"events": Nothing(), "train": Train(), "features": (Column("a"), Column("b"))}
    return System(name="s", model=lambda features: None, targets=("y",), **parts)


def changed(*settings: str) -> Any:
    return with_settings(system(), Site(), settings)


def test_a_dotted_key_changes_one_value_and_nothing_else() -> None:
    made, site = changed("train.lr=0.01")
    assert made.train == Train(lr=0.01)
    assert site == Site()


def test_an_entry_of_a_tuple_is_named_by_its_number() -> None:
    made, _ = changed("features.1.size=9")
    assert [feature.size for feature in made.features] == [4, 9]


def test_a_whole_number_sets_a_float_and_a_value_fills_what_was_empty() -> None:
    made, _ = changed("train.lr=1", "train.seed=7")
    assert made.train == Train(lr=1.0, seed=7)


def test_the_sites_values_are_reached_by_the_same_option() -> None:
    _, site = changed("serve.port=0", "store=elsewhere")
    assert (site.serve.port, site.store) == (0, "elsewhere")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.lrr=1", r"unknown key 'lrr'.*Did you mean 'lr'\?"),
        ("trian.lr=1", r"unknown key 'trian'.*Did you mean 'train'\?"),
        ("train.lr=fast", "found 'fast', allowed: float"),
        ("train.epochs=1.5", r"found 1\.5, allowed: int"),
        ("train.epochs", "KEY=VALUE"),
        ("features.2.size=1", "a number below 2"),
        ("train.lr.deeper=1", "a path of declared attributes"),
    ],
)
def test_a_mistaken_setting_is_refused_with_what_is_allowed(setting: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        changed(setting)
