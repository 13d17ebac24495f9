"""Parts in C may be absent where there is no compiler; where there is one they must be there."""

import re
import shutil
from importlib import import_module
from pathlib import Path

import pytest

SETUP = Path(__file__).parents[1] / "setup.py"
PARTS = re.findall(r'"(drivetrain\.\w+\.native\.\w+)"', SETUP.read_text())


@pytest.mark.skipif(
    shutil.which("cc") is None and shutil.which("gcc") is None,
    reason="NOT TESTED: there is no C compiler here",
)
@pytest.mark.parametrize("part", PARTS)
def test_every_part_in_c_is_built_where_there_is_a_compiler(part: str) -> None:
    """Their build is optional, so that a fault in one would else be a row of skipped tests."""
    assert import_module(part).__file__.endswith(".so")  # type: ignore[union-attr]


def test_parts_in_c_are_found_in_the_set_up() -> None:
    assert len(PARTS) == len(set(PARTS)) >= 5
