"""An alias with a canary and a shadow: who answers, what the metrics say, and how it changes."""

import collections
import time

import pyarrow.parquet as pq
import pytest
from waiting import wait_until

from drivetrain.core.bundle import Bundle, Manifest
from drivetrain.core.schema import Field, Schema
from drivetrain.serve.execution.models import Artefact, Traffic
from drivetrain.serve.versions.spare import Spare

ROW = {"carrier": "AA", "distance": 733.5, "hour": 7}


@pytest.fixture(scope="module")
def bundles(write_bundle, tmp_path_factory):
    room = tmp_path_factory.mktemp("traffic")
    return [write_bundle(room / str(weight), weight) for weight in (0.75, 0.5, 0.25)]


class Told:
    """What an alias means, until somebody says otherwise."""

    def __init__(self, **traffic):
        self.now = traffic

    def __call__(self):
        return Traffic(
            **{k: Artefact(v.digest, v.path) if k != "share" else v for k, v in self.now.items()}
        )


def version(bundle):
    return bundle.digest[:12]


def answers(client, count=200):
    """How many answers each version gave; each answer must be that version's own."""
    with_connection = client.connection()
    found = collections.Counter()
    for _ in range(count):
        reply = client.post("/predict/tiny", ROW, over=with_connection)
        assert reply.status == 200
        found[reply.json["version"], reply.json["predictions"][0]["late"]] += 1
    with_connection.close()
    return {told: (late, n) for (told, late), n in found.items()}


def test_a_canary_answers_its_share_and_the_metrics_tell_the_two_apart(serve, bundles):
    stable, canary, _ = bundles
    client = serve({"tiny": Told(stable=stable, canary=canary, share=0.2)})
    found = answers(client)
    assert {told: n for told, (_, n) in found.items()} == {
        version(stable): 160,
        version(canary): 40,
    }
    for bundle, role, share in ((stable, "stable", 0.8), (canary, "canary", 0.2)):
        name = f'model="tiny",version="{version(bundle)}"'
        late, count = found[version(bundle)]
        assert late == pytest.approx(bundle.predict([ROW])["late"][0], rel=1e-6)
        asked = f'drivetrain_requests_total{{{name},route="rows",code="200"}}'
        said = f'drivetrain_prediction_sum{{{name},output="late"}}'
        assert client.metric(asked) == count
        assert client.metric(said) == pytest.approx(count * late, rel=1e-5)
        assert client.metric(f'drivetrain_request_seconds_count{{{name},route="rows"}}') == count
        assert client.metric(f'drivetrain_traffic_share{{{name},role="{role}"}}') == share
        info = f'drivetrain_model_info{{{name},digest="{bundle.digest}",role="{role}"}}'
        assert client.metric(info) == 1


def test_a_shadow_that_has_time_hears_of_every_answer_and_gives_none(
    serve, bundles, tmp_path, monkeypatch
):
    monkeypatch.setattr(Spare, "busiest", lambda self: 0.0)  # this test is a busy thread too
    stable, canary, shadow = bundles
    told = Told(stable=stable, canary=canary, share=0.2, shadow=shadow)
    client = serve({"tiny": told}, feedback=tmp_path)
    found = answers(client, 50)
    assert set(found) == {version(stable), version(canary)}
    name = f'model="tiny",version="{version(shadow)}"'
    outcome = f'drivetrain_shadow_requests_total{{{name},outcome="%s"}}'
    wait_until(lambda: client.metric(outcome % "answered") == 50)
    assert client.metric(outcome % "dropped") == client.metric(outcome % "failed") == 0
    mine = float(shadow.predict([ROW])["late"][0])
    for against, (late, count) in found.items():
        labels = f'{name},against="{against}",output="late"'
        assert client.metric(f"drivetrain_shadow_difference_count{{{labels}}}") == count
        total = client.metric(f"drivetrain_shadow_difference_sum{{{labels}}}")
        assert total == pytest.approx(count * abs(late - mine), rel=1e-4)
    assert client.metric(f'drivetrain_prediction_count{{{name},output="late"}}') == 50
    client.server.stop()
    room = tmp_path / "_shadow" / "tiny"
    wait_until(lambda: list(room.glob("*/*.parquet")))
    rows = [r for file in room.glob("*/*.parquet") for r in pq.read_table(file).to_pylist()]
    assert {row["version"] for row in rows} == {version(shadow)}
    served = list(tmp_path.glob("tiny/*/*.parquet"))
    roles = collections.Counter(r for f in served for r in pq.read_table(f)["role"].to_pylist())
    assert roles == {"stable": 40, "canary": 10}
    ids = {r for f in served for r in pq.read_table(f)["request_id"].to_pylist()}
    assert {row["request_id"] for row in rows} == ids


def test_a_shadow_that_needs_another_column_is_refused_and_the_others_serve(
    serve, bundles, write_bundle, tmp_path, caplog
):
    stable, _, _ = bundles
    wide = Manifest(
        name="wide",
        inputs=Schema((*stable.manifest.inputs, Field("extra", "float32"))),
        outputs=stable.manifest.outputs,
    )
    shadow = Bundle.write(tmp_path / "wide", stable.graph, wide, {})
    told = Told(stable=stable)
    client = serve({"tiny": told}, reload_seconds=0.05)
    told.now = {"stable": stable, "shadow": shadow}
    wait_until(lambda: "column 'extra' of the shadow" in caplog.text)
    assert client.metric('drivetrain_reload_failures_total{model="tiny"}') == 1
    assert set(answers(client, 5)) == {version(stable)}
    time.sleep(0.2)
    assert caplog.text.count("column 'extra' of the shadow") == 1  # told once, not once a second


def test_a_canary_comes_is_promoted_and_goes_while_the_server_runs(serve, bundles):
    first, second, _ = bundles
    told = Told(stable=first)
    client = serve({"tiny": told}, reload_seconds=0.02)
    assert set(answers(client, 20)) == {version(first)}
    told.now = {"stable": first, "canary": second, "share": 0.5}
    wait_until(lambda: len(answers(client, 20)) == 2)
    told.now = {"stable": second}
    wait_until(lambda: set(answers(client, 20)) == {version(second)})
    lines = client.get("/metrics").body.decode().splitlines()
    info = [line for line in lines if line.startswith("drivetrain_model_info")]
    assert len(info) == 1
    assert f'version="{version(second)}"' in info[0]
    assert 'role="stable"' in info[0]
    shares = [line for line in lines if line.startswith("drivetrain_traffic_share")]
    assert [line.rpartition(" ")[2] for line in shares] == ["1"]
