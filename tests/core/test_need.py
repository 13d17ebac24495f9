"""Optional imports."""

import sys
from pathlib import Path

import pytest

from drivetrain.core.need import need


def test_a_module_that_is_there_is_imported():
    assert need("json", "data").dumps([1]) == "[1]"


@pytest.mark.parametrize("module", ["absent_package", "absent_package.inner", "json.absent"])
def test_an_absent_module_names_the_extra_that_brings_it(module: str):
    with pytest.raises(ImportError, match=r"pip install 'drivetrain\[spark\]'") as error:
        need(module, "spark")
    assert module in str(error.value)


def test_a_module_that_lacks_something_itself_is_not_called_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "brokenly.py").write_text("import broken")  # a prefix of its own name
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="No module named 'broken'") as error:
        need("brokenly", "spark")
    assert "pip install" not in str(error.value)
    assert "brokenly" not in sys.modules
