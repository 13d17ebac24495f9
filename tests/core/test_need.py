"""Optional imports."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from drivetrain.core import need as needed
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


def test_onnxruntime_tells_nobody_of_its_use(tmp_path: Path):
    script = "from drivetrain.core.need import need; need('onnxruntime', 'serve')"
    kept = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    env = {**kept, "TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", script], env=env, check=True)
    assert list(tmp_path.iterdir()) == []  # it would begin with a file of its own


def test_a_user_who_wants_to_be_told_of_stays_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(needed, "_SILENCE", {"json": ("JSON_DISABLE_TELEMETRY", "1")})
    monkeypatch.setenv("JSON_DISABLE_TELEMETRY", "0")
    need("json.decoder", "data")
    assert os.environ["JSON_DISABLE_TELEMETRY"] == "0"
    monkeypatch.delenv("JSON_DISABLE_TELEMETRY")
    need("json.decoder", "data")
    assert os.environ["JSON_DISABLE_TELEMETRY"] == "1"
