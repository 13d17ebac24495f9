"""What the pipeline does with mistakes in a declaration and with rows as they come."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import drivetrain as dt
from drivetrain.core.batch import Batch
from drivetrain.core.bundle import Bundle
from drivetrain.core.metric import Emitted, Note
from drivetrain.core.schema import Field, Schema
from drivetrain.core.seams import SPLITS, Shard, Split
from drivetrain.core.site import EngineSite, Site
from drivetrain.core.system import System
from drivetrain.declaration import load
from drivetrain.models import MLP
from drivetrain.pipeline import run
from drivetrain.registry.registry import Registry


def finished(system: System, site: Site) -> Bundle:
    bundle = run(system, site)
    assert bundle is not None
    return bundle


# -- what a run refuses ----------------------------------------------------------------------------


def test_a_mistyped_column_suggests_the_nearest_before_a_row_is_read(ran: Any, site: Site) -> None:
    system = replace(ran.system, features=(dt.Scale("amuont"),))
    with pytest.raises(ValueError, match=r"'amuont' in feature Scale.*Did you mean 'amount'"):
        run(system, site)
    assert not Path(site.work).exists()


def test_a_mistyped_target_suggests_the_nearest(ran: Any, site: Site) -> None:
    train = replace(ran.system.train, loss=dt.BinaryCrossEntropy("bda"))
    with pytest.raises(ValueError, match=r"unknown column 'bda' in targets\. Did you mean 'bad'"):
        run(replace(ran.system, targets=("bda",), train=train), site)


def test_a_loss_of_another_target_is_refused_at_declaration(ran: Any) -> None:
    train = replace(ran.system.train, loss=dt.BinaryCrossEntropy("bda"))
    with pytest.raises(ValueError, match=r"'bda' in BinaryCrossEntropy.*Did you mean 'bad'"):
        replace(ran.system, train=train)
    with pytest.raises(ValueError, match=r"unknown target 'bda' in Estimator"):
        replace(ran.system, train=dt.Estimator(convert=Names, target="bda"))


class Names:
    """A factory's stand-in whose forward names a feature that nobody declared."""

    def forward(self, amount_scael: Any) -> Any:
        return amount_scael


def test_a_forward_that_names_no_feature_is_refused_at_declaration(ran: Any) -> None:
    with pytest.raises(ValueError, match=r"'amount_scael' in Names\.forward.*'amount_scale'"):
        replace(ran.system, model=Names)


def test_an_unknown_engine_is_refused_by_name(ran: Any, site: Site) -> None:
    spark = replace(site, engine=EngineSite(kind="duckbd"))
    with pytest.raises(ValueError, match=r"unknown engine 'duckbd'.*'duckdb'"):
        run(ran.system, spark)


# -- rows as they come -----------------------------------------------------------------------------


def test_null_targets_are_named(declared: Any, make_events: Any, site: Site) -> None:
    bad = [None if i == 7 else i % 2 for i in range(300)]
    system = load(declared(make_events(rows=300, bad=pa.array(bad, pa.int64()))))
    with pytest.raises(ValueError, match=r"bad.*(null|missing)"):
        run(system, site)
    assert not Path(site.store).exists()


def test_events_without_a_row_are_named(declared: Any, make_events: Any, site: Site) -> None:
    system = load(declared(make_events(rows=300).slice(0, 0)))
    with pytest.raises(ValueError, match="found 0 rows"):
        run(system, site)
    assert not list(Path(site.work).rglob("*.parquet"))
    assert not Path(site.store).exists()


def test_a_torn_file_is_named(declared: Any, make_events: Any, site: Site) -> None:
    system = load(declared(make_events(rows=300)))
    file = Path(system.events.source.paths[0])
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"events\.parquet.*torn"):
        run(system, site)


def test_a_column_all_null_trains_and_serves(declared: Any, make_events: Any, site: Site) -> None:
    nothing = {
        "amount": pa.nulls(600, pa.float64()),
        "shop": pa.nulls(600, pa.string()),
        "note": pa.nulls(600, pa.string()),
    }
    system = load(declared(make_events(rows=600, **nothing)))
    bundle = finished(replace(system, probes=()), site)
    rows = [{"amount": None, "age": 30, "shop": None, "note": None}]
    rows += [{"amount": 3.0, "age": 30, "shop": "new", "note": "x"}]
    assert np.isfinite(bundle.predict(rows)["bad"]).all()


@pytest.mark.parametrize(
    "changed",
    [
        {"shop": "never seen"},
        {"shop": None, "amount": None, "age": None, "note": None},
        {"amount": math.nan},
        {"amount": math.inf},
        {"amount": -math.inf},
        {"amount": 1e300},
        {"age": 2**62},
        {"note": "日本語 \U0001f600" * 200},
        {"note": ""},
    ],
    ids=lambda c: ascii(c)[:40],
)
def test_whatever_a_row_holds_the_bundle_answers_a_probability(
    changed: dict[str, Any], ran: Any
) -> None:
    row = {"amount": 40.0, "age": 33, "shop": "north", "note": "note 3"}
    (answer,) = ran.bundle.predict([row | changed])["bad"]
    assert 0 <= answer <= 1
    if not math.isfinite(changed.get("amount") or 0):
        (missing,) = ran.bundle.predict([row | {"amount": None}])["bad"]
        assert answer == missing


# -- a source that is no table ---------------------------------------------------------------------


@dataclass(frozen=True)
class Clicks:
    """Made rows that lie in no file."""

    rows: int = 400

    @property
    def schema(self) -> Schema:
        return Schema((Field("x", "float64"), Field("page", "string"), Field("click", "int64")))

    def batches(self, split: Split, shard: Shard = Shard()) -> Iterator[Batch]:
        random = np.random.default_rng(SPLITS.index(split))
        x = random.normal(size=self.rows)
        page = random.choice(np.array(["a", "b"], dtype=object), self.rows)
        yield Batch({"x": x, "page": page, "click": (x > 0).astype(np.int64)})


def test_a_source_that_is_no_table_goes_the_whole_way(site: Site) -> None:
    system = System(
        name="clicks",
        events=Clicks(),
        features=(dt.Scale("x"), dt.Index("page")),
        model=MLP(hidden=(8,), dim=4),
        targets=("click",),
        train=dt.Single(loss=dt.BinaryCrossEntropy("click"), epochs=2, batch_size=40, lr=0.02),
        compress=(dt.Optimize(),),
        probes=(dt.AUC(at_least=0.9),),
    )
    bundle = finished(system, site)
    assert bundle.manifest.metrics["test/auc"] > 0.9
    heard: list[Emitted] = []
    again = run(system, site, emit=heard.append)
    assert again is not None
    assert again.digest == bundle.digest
    said = [h.text for h in heard if isinstance(h, Note) and h.stage == "train"]
    assert any("nothing changed" in text for text in said)
    assert Registry(site.store).promote(bundle.digest, "clicks").digest == bundle.digest


def test_a_source_whose_code_was_changed_is_read_anew(tmp_path: Path, site: Site) -> None:
    text = """
from tests_rows import rows
from dataclasses import dataclass
import drivetrain as dt
from drivetrain.core.schema import Field, Schema
from drivetrain.models import MLP

@dataclass(frozen=True)
class Own:
    @property
    def schema(self):
        return Schema((Field("x", "float64"), Field("y", "int64")))

    def batches(self, split, shard=None):
        yield rows(THRESHOLD)

system = dt.System(
    name="own",
    events=Own(),
    features=(dt.Scale("x"),),
    model=MLP(hidden=(4,)),
    targets=("y",),
    train=dt.Single(loss=dt.BinaryCrossEntropy("y"), batch_size=50),
)
"""
    rows = "import numpy as np\nfrom drivetrain.core.batch import Batch\n\ndef rows(threshold):\n"
    rows += "    x = np.random.default_rng(0).normal(size=200)\n"
    rows += "    return Batch({'x': x, 'y': (x > threshold).astype(np.int64)})\n"
    (tmp_path / "tests_rows.py").write_text(rows)
    digests: list[str] = []
    for number, threshold in enumerate(("0.0", "0.5", "0.5")):
        file = tmp_path / f"own_{number and 1}.py"
        file.write_text(text.replace("THRESHOLD", threshold))
        digests.append(finished(load(file), site).digest)
    assert digests[0] != digests[1] == digests[2]
    assert len(list(Path(site.work, "train").iterdir())) == 2
