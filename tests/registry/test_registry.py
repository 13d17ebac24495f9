"""What the store promises of bundles, aliases and measurements."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drivetrain.core.batch import Batch
from drivetrain.core.bundle import Bundle
from drivetrain.core.metric import Metric
from drivetrain.registry.registry import Registry

Make = Callable[..., tuple]


@pytest.fixture
def store(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "store")


def test_a_written_bundle_is_named_by_its_digest_and_predicts(store: Registry, parts: Make):
    bundle = store.write(*parts(3.0))
    assert bundle.path == store.root / "bundles" / bundle.digest
    opened = store.open(bundle.digest)
    assert opened.predict([{"x": 2.0}])["score"].tolist() == [6.0]


def test_a_packed_bundle_is_stored_as_the_directory_that_it_came_from(
    store: Registry, parts: Make, tmp_path: Path
):
    bundle = store.write(*parts())
    bundle.pack(tmp_path / "made.bundle")
    other = Registry(tmp_path / "other")
    added = other.add(tmp_path / "made.bundle")
    assert added.path == other.root / "bundles" / bundle.digest
    for name in ("manifest.json", *bundle.manifest.files):
        assert (added.path / name).read_bytes() == (bundle.path / name).read_bytes()


def test_the_same_content_twice_is_one_bundle(store: Registry, parts: Make):
    first, second = store.write(*parts()), store.write(*parts())
    assert first.digest == second.digest
    assert store.bundles() == (first.digest,)


def test_two_stores_give_the_same_content_the_same_name(tmp_path: Path, parts: Make):
    digests = {Registry(tmp_path / name).write(*parts()).digest for name in ("a", "b")}
    assert len(digests) == 1


def test_an_unborn_store_is_empty_and_reading_creates_nothing(store: Registry):
    assert store.bundles() == ()
    assert store.aliases() == {}
    for read in (store.open, store.lineage, store.rollback, store.history):
        with pytest.raises(ValueError, match="unknown alias 'prod'"):
            read("prod")
    assert not store.root.exists()


@pytest.mark.parametrize("length", [8, 12, 63, 64])
def test_a_unique_prefix_means_the_bundle(store: Registry, parts: Make, length: int):
    digest = store.write(*parts()).digest
    assert store.open(digest[:length]).digest == digest
    assert store.open(f"sha256:{digest[:length]}").digest == digest


def test_a_prefix_below_eight_characters_is_no_digest(store: Registry, parts: Make):
    digest = store.write(*parts()).digest
    with pytest.raises(ValueError, match="unknown alias"):
        store.open(digest[:7])


def test_the_path_of_a_bundle_is_where_its_name_says(store: Registry, parts: Make):
    bundle = store.write(*parts())
    store.promote(bundle.digest, "prod")
    assert store.path("prod") == store.path(bundle.digest[:9]) == bundle.path
    with pytest.raises(ValueError, match="unknown bundle"):
        store.path("0" * 64)


def test_an_ambiguous_prefix_is_refused(store: Registry, parts: Make):
    digest = store.write(*parts()).digest
    twin = digest[:20] + ("0" * 44 if digest[20:] != "0" * 44 else "1" * 44)
    (store.root / "bundles" / twin).mkdir()
    with pytest.raises(ValueError, match=f"ambiguous: it may be any of .*{digest}"):
        store.open(digest[:20])


def test_an_unknown_digest_lists_what_is_there(store: Registry, parts: Make):
    digest = store.write(*parts()).digest
    for ref in ("0" * 64, "0" * 12):
        with pytest.raises(ValueError, match=f"unknown bundle '{ref}'.*{digest[:12]}"):
            store.open(ref)


def test_an_alias_suggests_the_nearest(store: Registry, parts: Make):
    store.promote(store.write(*parts()).digest, "flights")
    with pytest.raises(ValueError, match=r"unknown alias 'flihgts'.*Did you mean 'flights'"):
        store.open("flihgts")


def test_every_changed_byte_is_refused(store: Registry, parts: Make):
    bundle = store.write(*parts())
    for name in ("manifest.json", "model.onnx", "statistics.json"):
        file = bundle.path / name
        data = file.read_bytes()
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(ValueError, match=r"digest|missing|manifest"):
            store.open(bundle.digest)
        file.write_bytes(data)
    assert store.open(bundle.digest).digest == bundle.digest


def test_a_bundle_under_another_name_is_refused(store: Registry, parts: Make):
    bundle = store.write(*parts())
    liar = store.root / "bundles" / ("f" * 64)
    bundle.path.rename(liar)
    with pytest.raises(ValueError, match="found digest"):
        store.open("f" * 64)


def test_writing_over_a_damaged_bundle_tells_of_the_damage(store: Registry, parts: Make):
    bundle = store.write(*parts())
    (bundle.path / "model.onnx").write_bytes(b"")
    with pytest.raises(ValueError, match="damaged"):
        store.write(*parts())


def test_a_bundle_is_imported_after_verification(store: Registry, parts: Make, tmp_path: Path):
    foreign = Bundle.write(tmp_path / "foreign", *parts())
    assert store.add(foreign.path).digest == foreign.digest
    assert store.add(foreign.path).path.parent == store.root / "bundles"
    assert store.bundles() == (foreign.digest,)


def test_a_damaged_bundle_is_not_imported(store: Registry, parts: Make, tmp_path: Path):
    foreign = Bundle.write(tmp_path / "foreign", *parts())
    (foreign.path / "statistics.json").write_bytes(b"[]")
    with pytest.raises(ValueError, match="damaged"):
        store.add(foreign.path)
    assert store.bundles() == ()


def test_a_bundle_that_changes_while_it_is_copied_is_not_imported(
    store: Registry, parts: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    foreign = Bundle.write(tmp_path / "foreign", *parts())
    read = Bundle.read

    def racing(self: Bundle, name: str) -> bytes:
        return b"another model" if name == "model.onnx" else read(self, name)

    monkeypatch.setattr(Bundle, "read", racing)
    with pytest.raises(ValueError, match="damaged"):
        store.add(foreign.path)
    assert store.bundles() == ()
    assert not [p for p in (store.root / "bundles").iterdir() if p.is_dir()]


# -- aliases ---------------------------------------------------------------------------------------


def test_an_alias_moves_and_goes_back(store: Registry, parts: Make):
    digests = [store.write(*parts(float(i))).digest for i in range(3)]
    for digest in digests:
        store.promote(digest[:16], "prod")
        assert store.open("prod").digest == digest
    assert store.aliases() == {"prod": digests[2]}
    assert [change.bundle for change in store.history("prod")] == digests
    assert store.rollback("prod").digest == digests[1]
    assert store.rollback("prod").digest == digests[0]
    with pytest.raises(ValueError, match="never meant another"):
        store.rollback("prod")
    assert store.open("prod").digest == digests[0]


def test_promoting_what_is_there_adds_no_history(store: Registry, parts: Make):
    digest = store.write(*parts()).digest
    store.promote(digest, "prod")
    store.promote("prod", "prod")
    assert len(store.history("prod")) == 1


def test_a_rollback_to_a_bundle_that_is_gone_leaves_the_alias(store: Registry, parts: Make):
    old, new = (store.write(*parts(f)).digest for f in (1.0, 2.0))
    store.promote(old, "prod")
    store.promote(new, "prod")
    shutil.rmtree(store.root / "bundles" / old)
    with pytest.raises(ValueError, match="unknown bundle"):
        store.rollback("prod")
    assert store.open("prod").digest == new


def test_a_damaged_alias_is_named(store: Registry, parts: Make):
    store.promote(store.write(*parts()).digest, "prod")
    file = store.root / "aliases" / "prod.json"
    for text in ("", "{", "[]", '{"bundle": "../../x", "previous": [], "at": "now"}'):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"prod\.json is damaged"):
            store.open("prod")


def test_other_files_among_the_aliases_are_not_aliases(store: Registry, parts: Make):
    store.promote(store.write(*parts()).digest, "prod")
    for name in (".prod.json.abc123", "README", "UPPER.json"):
        (store.root / "aliases" / name).write_text("{")
    assert list(store.aliases()) == ["prod"]


# -- bounds ----------------------------------------------------------------------------------------


def test_a_bundle_whose_bounds_hold_is_promoted(store: Registry, parts: Make):
    made = parts(metrics={"test/auc": 0.8}, bounds={"test/auc": [0.7, None]})
    assert store.promote(store.write(*made).digest, "prod").manifest.metrics["test/auc"] == 0.8


def test_each_broken_bound_is_named_and_the_alias_stays(store: Registry, parts: Make):
    good = store.write(*parts(1.0)).digest
    store.promote(good, "prod")
    bounds = {"test/auc": [0.7, None], "test/log_loss": [None, 0.5], "latency/p99_ms": [None, 2.0]}
    metrics = {"test/auc": 0.6, "test/log_loss": 0.4}
    bad = store.write(*parts(2.0, metrics=metrics, bounds=bounds)).digest
    with pytest.raises(ValueError) as error:
        store.promote(bad, "prod")
    message = str(error.value)
    assert "test/auc 0.6 (at least 0.7)" in message
    assert "latency/p99_ms was not measured" in message
    assert "log_loss" not in message
    assert store.open("prod").digest == good


def test_a_measured_figure_answers_a_bound_and_the_latest_counts(store: Registry, parts: Make):
    digest = store.write(*parts(bounds={"latency/p99_ms": [None, 2.0]})).digest
    slow, fast = (Metric(name="latency/p99_ms", value=v, repeatable=False) for v in (3.0, 1.0))
    store.record(digest, [slow])
    with pytest.raises(ValueError, match=r"latency/p99_ms 3 \(at most 2\)"):
        store.promote(digest, "prod")
    store.record(digest, [fast])
    assert store.promote(digest, "prod").digest == digest


def test_a_measurement_with_a_bound_of_its_own_gates_too(store: Registry, parts: Make):
    digest = store.write(*parts()).digest
    store.record(digest, [Metric(name="live/psi", value=0.4, at_most=0.2)])
    with pytest.raises(ValueError, match=r"live/psi 0\.4"):
        store.promote(digest, "prod")


def test_a_figure_that_is_no_number_breaks_its_bound(store: Registry, parts: Make):
    made = parts(metrics={"test/auc": float("nan")}, bounds={"test/auc": [None, 1.0]})
    with pytest.raises(ValueError, match="test/auc nan"):
        store.promote(store.write(*made).digest, "prod")


def test_measurements_do_not_change_the_bundle(store: Registry, parts: Make):
    digest = store.write(*parts()).digest
    metrics = [
        Metric(name="a_ms", value=1.5, repeatable=False),
        Metric(name="b", value=2.0, step=3),
    ]
    store.record(digest[:12], metrics)
    store.record(digest, metrics[:1])
    assert store.measurements(digest) == (*metrics, metrics[0])
    assert store.open(digest).digest == digest


def test_measurements_of_no_bundle_are_refused(store: Registry, parts: Make):
    store.write(*parts())
    with pytest.raises(ValueError, match="unknown bundle"):
        store.record("0" * 64, [Metric(name="a", value=1.0)])
    assert not (store.root / "measured").exists()


# -- lineage ---------------------------------------------------------------------------------------


def test_lineage_follows_stored_parents_and_names_the_others(store: Registry, parts: Make):
    first = store.write(*parts(1.0, parents={"events": "e" * 64})).digest
    second = store.write(*parts(2.0, parents={"bundle": first, "system": "a" * 64})).digest
    chain = store.lineage(second[:10])
    assert [(a.role, a.digest, a.depth, a.manifest is not None) for a in chain] == [
        ("bundle", second, 0, True),
        ("bundle", first, 1, True),
        ("system", "a" * 64, 1, False),
        ("events", "e" * 64, 2, False),
    ]


def test_a_parent_that_names_a_path_is_not_followed(store: Registry, parts: Make):
    digest = store.write(*parts(parents={"bundle": "../../../etc/passwd"})).digest
    assert [a.manifest is None for a in store.lineage(digest)] == [False, True]


# -- names -----------------------------------------------------------------------------------------

HOSTILE = [
    "",
    ".",
    "..",
    "../x",
    "a/../../x",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "a..b",
    "a\0b",
    "prod\n",
    " prod",
    ".hidden",
    "-rf",
    "Prod",
    "PROD",
    "prоd",  # a Cyrillic o
    "prod\u202e",
    "ｐrod",  # full-width
    "a\u2215b",  # a division slash
    "%2e%2e%2fx",
    "~root",
    "a" * 65,
    "sha256:../../x",
    "deadbeef",  # would hide a digest
    "a:b",
]


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
def test_a_hostile_name_is_no_alias(store: Registry, parts: Make, name: str, tmp_path: Path):
    digest = store.write(*parts()).digest
    before = sorted(p for p in tmp_path.rglob("*"))
    for act in (lambda: store.promote(digest, name), lambda: store.rollback(name)):
        with pytest.raises(ValueError, match=r"alias: found"):
            act()
    with pytest.raises(ValueError, match=r"alias: found|unknown bundle"):
        store.open(name)
    with pytest.raises(ValueError, match=r"alias: found|unknown bundle"):
        store.record(name, [])
    assert sorted(p for p in tmp_path.rglob("*")) == before


@settings(deadline=None, derandomize=True, max_examples=300)
@given(name=st.text(max_size=70))
def test_a_name_that_passes_stays_in_its_directory(name: str):
    store = Registry("/nonexistent/store")
    try:
        store.resolve(name)
    except ValueError as error:
        if "unknown alias" in str(error):
            path = store.root / "aliases" / f"{name}.json"
            assert path.resolve().parent == store.root / "aliases"
            assert name.isascii()
            assert name == name.lower()


def test_a_link_in_the_place_of_a_bundle_is_refused(store: Registry, parts: Make, tmp_path: Path):
    bundle = store.write(*parts())
    bundle.path.rename(tmp_path / "outside")
    bundle.path.symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match="unknown bundle"):
        store.open(bundle.digest)
    assert store.bundles() == ()


@pytest.mark.parametrize("room", ["bundles", "aliases", "measured"])
def test_a_room_that_links_elsewhere_is_refused(
    store: Registry, parts: Make, tmp_path: Path, room: str
):
    digest = store.write(*parts()).digest
    store.promote(digest, "prod")
    store.record(digest, [Metric(name="a", value=1.0)])
    (store.root / room).rename(tmp_path / "outside")
    (store.root / room).symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match="symbolic link"):
        store.promote("prod", "prod")


def test_an_alias_or_measurements_that_link_elsewhere_are_not_read(
    store: Registry, parts: Make, tmp_path: Path
):
    digest = store.write(*parts()).digest
    store.promote(digest, "prod")
    store.record(digest, [Metric(name="a", value=1.0)])
    for file in (store.root / "aliases/prod.json", store.root / f"measured/{digest}.jsonl"):
        file.rename(tmp_path / "secret")
        file.symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match="symbolic link"):
        store.open("prod")
    with pytest.raises(ValueError, match="symbolic link"):
        store.measurements(digest)


def test_a_manifest_that_names_a_file_elsewhere_is_refused(
    store: Registry, parts: Make, tmp_path: Path
):
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    foreign = Bundle.write(tmp_path / "foreign", *parts())
    manifest = json.loads((foreign.path / "manifest.json").read_bytes())
    digest = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"
    for name in ("../secret", str(secret), "a/../../secret", "../../x", "", ".", "x\0y"):
        manifest["files"][name] = {"sha256": digest, "bytes": 6}
        (foreign.path / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(ValueError, match="is missing"):
            store.add(foreign.path)
        del manifest["files"][name]
    assert not store.root.exists()


@pytest.mark.parametrize("url", ["s3://models", "file:///tmp/x", "https://h/x", "S3://a", "gs:/x"])
def test_a_store_at_a_url_is_refused_in_words(url: str):
    with pytest.raises(ValueError, match=r"store: found .*allowed: the path of a local directory"):
        Registry(url)


def test_a_store_that_is_a_file_is_refused(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="allowed: a directory"):
        Registry(tmp_path / "file")


def test_predictions_come_from_the_stored_graph(store: Registry, parts: Make):
    store.promote(store.write(*parts(-1.0)).digest, "prod")
    out = store.open("prod").predict(Batch({"x": np.array([1, np.nan], np.float32)}))["score"]
    assert out[0] == -1.0
    assert np.isnan(out[1])
