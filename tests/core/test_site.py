"""Sites: small TOML files, every key of which is known."""

from pathlib import Path

import pytest

from drivetrain.core.site import ServeSite, Site


def load(tmp_path: Path, text: str | bytes) -> Site:
    file = tmp_path / "lab.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return Site.load(file)


def test_an_empty_file_is_the_default(tmp_path: Path):
    assert load(tmp_path, "") == Site()


def test_sections_are_read(tmp_path: Path):
    text = 'store = "models"\nengine = { threads = 2 }\n[serve]\nport = 0\n[resources]\ngpus = 1\n'
    site = load(tmp_path, text)
    assert (site.store, site.engine.threads, site.serve.port) == ("models", 2, 0)
    assert site.resources.gpus == 1
    assert site.engine.kind == "duckdb"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stor = 'x'", "unknown key 'stor' in .*lab.toml.*Did you mean 'store'"),
        ("[engine]\nthread = 1", r"unknown key 'thread' in .*\[engine\].*Did you mean 'threads'"),
        ("store = 3", "store: found 3, allowed: str"),
        ("[serve]\nport = true", "port: found True, allowed: int"),
        ("[serve]\nport = 80.0", "port: found 80.0, allowed: int"),
        ("engine = 'duckdb'", "engine: found 'duckdb', allowed: a table of EngineSite"),
        ("store = ", "is not TOML"),
        (b"store = '\xff'", "is not TOML"),
    ],
)
def test_a_mistake_names_the_key_and_what_is_allowed(
    tmp_path: Path, text: str | bytes, message: str
):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, text)


def test_an_absent_site_is_said_to_be_absent(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        Site.load(tmp_path / "none.toml")


def test_a_token_is_what_its_file_holds_and_none_where_there_is_no_file(tmp_path):
    file = tmp_path / "token"
    file.write_text("  sesame-7\n")
    assert ServeSite().token() is None
    assert ServeSite(token_file=str(file)).token() == "sesame-7"


@pytest.mark.parametrize("text", ["", " \n", "two words", "tab\there", "pässword"])
def test_a_file_that_holds_no_token_is_refused_and_not_shown(tmp_path, text):
    file = tmp_path / "token"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="allowed: one word of visible ASCII") as raised:
        ServeSite(token_file=str(file)).token()
    assert not text.strip() or text.strip() not in str(raised.value)


def test_a_token_file_that_is_absent_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        ServeSite(token_file=str(tmp_path / "none")).token()
