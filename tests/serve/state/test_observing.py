"""Bundles with windows, served: what is observed over HTTP is what later rows are given."""

import json
import struct
import time

import grpc
import jsonschema
import openapi_spec_validator
import pyarrow.parquet as pq
import pytest
from waiting import wait_until

from drivetrain.serve.protocols.messages_v2 import messages
from drivetrain.serve.server import Server, running
from drivetrain.serve.state.states import Keeping
from drivetrain.serve.transport.http import HttpLimits


@pytest.fixture
def client(serve, windowed):
    """A server of one bundle with windows, in memory only."""
    return serve(models={"cards": windowed.path})


def test_an_event_is_asked_and_observed_one_by_one_as_offline(client, cards):
    rows = cards.rows(150)
    for row, expected in zip(rows, cards.offline(rows), strict=True):
        reply = client.post("/predict/cards", cards.asked(row))
        assert reply.status == 200, reply.body
        (found,) = reply.json["predictions"]
        assert found["far"] == 1.5
        assert cards.same(cards.plain(found), expected), (row, found, expected)
        assert client.post("/observe/cards", row).status == 200


def test_rows_of_one_post_are_observed_and_the_answer_says_what_became_of_them(client, cards):
    rows = cards.rows(200)
    reply = client.post("/observe/cards", {"rows": rows})
    assert reply.status == 200
    assert reply.json.keys() == {"observed", "late", "missing", "ignored", "durable"}
    assert reply.json["durable"] is False
    tracks = 4
    assert sum(reply.json[k] for k in ("observed", "late", "missing")) == tracks * len(rows)
    late = {"card": "a", "shop": "s", "at": rows[-1]["at"] - 7 * cards.hour}
    assert client.post("/observe/cards", late).json["late"] == 3
    latest = max(row["settled"] or 0 for row in rows)
    pairs = list(zip(rows, cards.offline(rows), strict=True))
    pairs = [pair for pair in pairs if pair[0]["at"] > latest - 6 * cards.hour]
    body = {"rows": [cards.asked(row) for row, _ in pairs]}
    found = client.post("/predict/cards", body).json["predictions"]
    assert len(found) > 50
    for answer, (_, expected) in zip(found, pairs, strict=True):
        assert cards.same(cards.plain(answer), expected)


def test_a_row_feeds_the_tracks_whose_columns_it_has(client, cards):
    start = cards.start
    seen = {"card": "a", "at": start}
    assert client.post("/observe/cards", seen).json["observed"] == 1
    known = {"card": "a", "amount": 5.0, "settled": "2023-11-14T22:13:20.5"}
    reply = client.post("/observe/cards", {"rows": [known, seen | {"shop": "s"}, seen]})
    assert reply.json["observed"] == 1 + 3 + 1
    row = {"distance": 0, "at": start + 1_000_000, "card": "a", "shop": "s"}
    found = client.post("/predict/cards", row).json["predictions"][0]
    assert cards.plain(found) == {
        "hourly": 3, "mean": 5.0, "top": 5.0, "last": 5.0, "shops": 1, "since": 1.0,
    }  # fmt: skip


WRONG = [
    (b"{", "body: found no JSON"),
    ([], "body"),
    ({"rows": []}, "rows: found 0, allowed: 1 to 8192"),
    ({"rows": [1]}, "row 0: found 1"),
    ({"crad": "a"}, "unknown column 'crad' in row 0. Did you mean 'card'?"),
    ({"rows": [{"card": "a", "at": 5}, {"card": "a", "at": "x"}]}, "row 1, column 'at'"),
    ({"rows": [{"card": "a", "at": 5}, {"card": 7, "at": 5}]}, "row 1, column 'card': found 7"),
    ({"card": "a"}, "row 0: found columns card; allowed: all of"),
    ({"rows": [{"card": "a", "at": 5}], "sauce": "t"}, "Did you mean 'source'?"),
    ({"rows": [{"card": "a", "at": 5}], "source": "t"}, "offset: found None"),
    ({"rows": [{"card": "a", "at": 5}], "offset": 5}, "source: found None"),
    ({"rows": [{"card": "a", "at": 5}], "source": "t", "offset": -1}, "offset: found -1"),
    ({"rows": [{"card": "a", "at": 5}], "source": "t", "offset": 1.5}, "offset: found 1.5"),
    ({"rows": [{"card": "a", "at": 5}], "source": "", "offset": 1}, "source: found ''"),
]


@pytest.mark.parametrize(("body", "says"), WRONG, ids=[says[:25] for _, says in WRONG])
def test_what_cannot_be_understood_is_told_and_nothing_of_it_is_kept(client, body, says):
    reply = client.post("/observe/cards", body)
    assert reply.status == 400
    assert says in reply.json["error"]
    assert client.get("/observe/cards").json["keys"] == 0


def test_a_clock_that_is_far_ahead_does_not_make_the_rest_late(client, serve, windowed, cards):
    ahead = {"card": "a", "at": int(time.time() * 1e6) + 2 * 86_400_000_000}
    reply = client.post("/observe/cards", {"rows": [{"card": "a", "at": cards.start}, ahead]})
    assert reply.status == 400
    assert "row 1, column 'at': found" in reply.json["error"]
    assert "allowed: at most 86400 s ahead of this server's clock" in reply.json["error"]
    assert client.post("/observe/cards", {"card": "a", "at": cards.start}).json["late"] == 0
    unbounded = serve(models={"cards": windowed.path}, state=Keeping(ahead=0))
    assert unbounded.post("/observe/cards", ahead).json["observed"] == 1


def test_a_clock_that_is_an_hour_off_makes_nothing_late_within_the_lateness_or_is_refused(
    client, serve, windowed, cards
):
    now = int(time.time() * 1e6)
    ahead = {"card": "a", "at": now + cards.hour}
    behind = {"card": "c", "at": now - cards.hour}
    for row in (ahead, {"card": "b", "at": now}, behind):
        reply = client.post("/observe/cards", row).json
        assert (reply["observed"], reply["late"]) == (1, 0)
    strict = serve(models={"cards": windowed.path}, state=Keeping(ahead=600))
    assert strict.post("/observe/cards", ahead).status == 400
    assert strict.post("/observe/cards", behind).json["observed"] == 1


def test_a_poisoned_post_fails_alone(client, cards):
    good = {"card": "a", "at": cards.start}
    with_bad = {"rows": [good, {"card": "a", "at": "never"}]}
    replies = [client.post("/observe/cards", body).status for body in (good, with_bad, good)]
    assert replies == [200, 400, 200]
    row = {"distance": 0, "at": cards.start + 1, "card": "a", "shop": "s"}
    assert client.post("/predict/cards", row).json["predictions"][0]["got_hourly"] == 2


def test_what_a_source_repeats_is_ignored(client, cards):
    body = {"rows": [{"card": "a", "at": cards.start}], "source": "topic/3", "offset": 10}
    assert client.post("/observe/cards", body).json["ignored"] == 0
    for offset in (10, 3):
        reply = client.post("/observe/cards", body | {"offset": offset})
        assert reply.json == {
            "observed": 0, "late": 0, "missing": 0, "ignored": 1, "durable": False,
        }  # fmt: skip
    assert client.post("/observe/cards", body | {"offset": 11}).json["observed"] == 1
    assert client.post("/observe/cards", body | {"source": "topic/4"}).json["observed"] == 1
    told = client.get("/observe/cards").json
    assert told["positions"] == {"topic/3": 11, "topic/4": 10}
    assert set(told["columns"]) == set(cards.schema.names)


def test_what_comes_out_of_order_within_the_lateness_counts_as_if_in_order(client, cards):
    for known in (5, 1, 3, 2):
        body = {"card": "a", "amount": float(known), "settled": cards.start + known}
        assert client.post("/observe/cards", body).json["observed"] == 1
    row = {"distance": 0, "at": cards.start + 4, "card": "a", "shop": "s"}
    found = client.post("/predict/cards", row).json["predictions"][0]
    assert (found["got_last"], found["got_mean"], found["got_top"]) == (3.0, 2.0, 3.0)


def test_every_protocol_and_page_shows_what_a_request_has_to_bring(client, cards):
    names = ["distance", "at", "card", "shop"]
    metadata = client.get("/v2/models/cards").json
    assert [tensor["name"] for tensor in metadata["inputs"]] == names
    config = client.get("/v2/models/cards/config").json
    assert [tensor["name"] for tensor in config["input"]] == names
    page = client.get("/openapi.json").json
    assert list(page["components"]["schemas"]["cards.Row"]["properties"]) == names
    observed = page["components"]["schemas"]["cards.Observation"]
    assert set(observed["properties"]) == {"at", "card", "shop", "amount", "settled"}
    assert ["card", "at"] in observed["anyOf"] or {"required": ["card", "at"]} in observed["anyOf"]
    assert set(page["paths"]["/observe/cards"]) == {"post", "get"}
    client.post("/observe/cards", {"card": "a", "at": cards.start})
    row = {"distance": 2.0, "at": cards.start + 1, "card": "a", "shop": "s"}
    tensors = [
        {"name": "distance", "datatype": "FP32", "shape": [1], "data": [2.0]},
        {"name": "at", "datatype": "INT64", "shape": [1], "data": [row["at"]]},
        *(
            {"name": name, "datatype": "BYTES", "shape": [1], "data": [row[name]]}
            for name in ("card", "shop")
        ),
    ]
    v2 = client.post("/v2/models/cards/infer", {"inputs": tensors}).json
    assert {o["name"]: o["data"] for o in v2["outputs"]}["got_hourly"] == [1]
    v1 = client.post("/v1/models/cards:predict", {"instances": [row]}).json
    assert v1["predictions"][0]["got_hourly"] == 1
    reply = client.post("/predict/cards", row | {"hourly": 1})
    assert reply.status == 400
    assert "unknown column 'hourly'" in reply.json["error"]


def test_binary_tensors_are_filled_in_too(client, cards):
    client.post("/observe/cards", {"card": "a", "at": cards.start})

    def text(value):
        return len(value).to_bytes(4, "little") + value.encode()

    columns = [
        ("distance", "FP32", struct.pack("<2f", 1, 2)),
        ("at", "INT64", struct.pack("<2q", cards.start + 1, cards.start)),
        ("card", "BYTES", text("a") * 2),
        ("shop", "BYTES", text("s") * 2),
    ]
    head = json.dumps({"inputs": [
        {"name": n, "datatype": d, "shape": [2], "parameters": {"binary_data_size": len(b)}}
        for n, d, b in columns
    ]}).encode()  # fmt: skip
    body = head + b"".join(blob for _, _, blob in columns)
    headers = {"Inference-Header-Content-Length": str(len(head))}
    for _ in range(2):  # the second time the layout is known
        found = client.post("/v2/models/cards/infer", body, headers=headers).json
        assert {o["name"]: o["data"] for o in found["outputs"]}["got_hourly"] == [1, 0]


def test_no_alias_without_windows_is_observed(serve, windowed, tiny):
    client = serve(models={"cards": windowed.path, "tiny": tiny.path})
    reply = client.post("/observe/tiny", {"card": "a"})
    assert reply.status == 404
    assert client.post("/observe/card", {}).status == 404
    assert client.ask("PUT", "/observe/cards").status == 405


def test_observing_needs_the_token_and_is_bounded(serve, windowed, cards):
    limits = HttpLimits(body_bytes=1000)
    client = serve(models={"cards": windowed.path}, token="sesame", limits=limits)
    body = {"card": "a", "at": cards.start}
    assert client.post("/observe/cards", body).status == 401
    with_token = {"Authorization": "Bearer sesame"}
    assert client.post("/observe/cards", body, headers=with_token).status == 200
    assert client.post("/observe/cards", {"rows": [body] * 50}, headers=with_token).status == 413


def test_memory_is_bounded_and_predictions_go_on(serve, windowed, cards):
    least = serve(models={"cards": windowed.path}).get("/observe/cards").json["bytes"]
    keeping = Keeping(bytes=least + 20_000)
    client = serve(models={"cards": windowed.path}, state=keeping)
    reply = None
    for number in range(200):
        body = {"rows": [{"card": f"{number} {n}", "at": cards.start} for n in range(20)]}
        reply = client.post("/observe/cards", body)
        if reply.status != 200:
            break
    assert reply.status == 503
    assert "[serve] state_bytes" in reply.json["error"]
    assert "raise it" in reply.json["error"]
    assert reply.headers["retry-after"] == "1"
    row = {"distance": 0, "at": cards.start + 1, "card": "0 0", "shop": "s"}
    assert client.post("/predict/cards", row).json["predictions"][0]["got_hourly"] == 1
    text = 'drivetrain_window_observations_total{model="cards",outcome="refused"}'
    assert client.metric(text) == 20


def test_keys_that_can_give_nothing_more_are_forgotten(serve, cards, tmp_path):
    columns = {"hourly": cards.columns["hourly"]}
    bundle = cards.write(tmp_path / "bundle", columns=columns, lateness=0)
    client = serve(models={"cards": bundle.path})
    for hour in range(6):
        at = cards.start + hour * cards.hour
        body = {"rows": [{"card": f"{hour} {n}", "at": at} for n in range(10)]}
        assert client.post("/observe/cards", body).json["observed"] == 10
    assert client.get("/observe/cards").json["keys"] <= 20


def test_memory_that_is_full_recovers_as_time_goes_on(serve, cards, tmp_path):
    columns = {"hourly": cards.columns["hourly"]}
    bundle = cards.write(tmp_path / "bundle", columns=columns, lateness=0)
    empty = serve(models={"cards": bundle.path})
    least = empty.get("/observe/cards").json["bytes"]
    keeping = Keeping(place=str(tmp_path / "state"), bytes=least + 20_000)
    server = Server({"cards": bundle.path}, port=0, state=keeping)
    with running(server) as url:
        client = type(empty)(server, url)

        def post(at, *names):
            rows = [{"card": name, "at": cards.start + at} for name in names]
            return client.post("/observe/cards", {"rows": rows}).status

        group = 0
        while post(0, *(f"{group} {n}" for n in range(30))) == 200:
            group += 1
        assert post(1, "a") == 503, "so short a time lets nothing expire"
        assert post(cards.hour // 2, "b") == 200
        assert post(cards.hour // 2, "c") == 503, "what is there may still be asked for"
        assert post(cards.hour + 1, "d") == 200
        assert post(cards.hour + 1, "e") == 200
        assert client.get("/observe/cards").json["keys"] == 3
    again = serve(models={"cards": bundle.path}, state=keeping)
    for card, seen in (("b", 1), ("0 1", 0)):
        row = {"distance": 0, "at": cards.start + cards.hour + 2, "card": card}
        assert again.post("/predict/cards", row).json["predictions"][0]["got_hourly"] == seen


def test_metrics_tell_of_what_is_kept(client, cards):
    client.post("/observe/cards", {"rows": cards.rows(50)})
    client.post("/predict/cards", cards.asked(cards.rows(1)[0]))
    label = '{model="cards"}'
    kept = client.get("/observe/cards").json
    assert client.metric(f"drivetrain_window_keys{label}") == kept["keys"] > 0
    assert client.metric(f"drivetrain_window_bytes{label}") == kept["bytes"] > 0
    mean = client.metric(f"drivetrain_window_key_bytes{label}")
    assert mean == pytest.approx(kept["bytes"] / kept["keys"])
    assert client.metric(f"drivetrain_window_lookup_seconds_count{label}") == 1
    assert client.metric(f"drivetrain_window_watermark_lag_seconds{label}") > 0
    assert client.metric(f"drivetrain_window_tracks_begun_total{label}") == 4
    counted = {
        outcome: client.metric(
            f'drivetrain_window_observations_total{{model="cards",outcome="{outcome}"}}'
        )
        for outcome in ("observed", "late", "missing")
    }
    assert sum(counted.values()) == 4 * 50


def test_feedback_records_what_the_model_saw(serve, windowed, cards, tmp_path):
    client = serve(models={"cards": windowed.path}, feedback=tmp_path)
    client.post("/observe/cards", {"card": "a", "at": cards.start})
    row = {"distance": 2.0, "at": cards.start + 1, "card": "a", "shop": "s"}
    client.post("/predict/cards", row)
    wait_until(lambda: list(tmp_path.rglob("*.parquet")), 30.0)
    (file,) = tmp_path.rglob("*.parquet")
    (event,) = pq.read_table(file).to_pylist()
    assert (event["hourly"], event["shops"], event["mean"]) == (1, 0, None)
    assert (event["card"], event["distance"], event["prediction.got_hourly"]) == ("a", 2.0, 1)


def test_a_row_that_the_graph_refuses_fails_alone_with_its_windows(serve, windowed, cards):
    client = serve(models={"cards": windowed.path})
    client.post("/observe/cards", {"card": "a", "at": cards.start})
    bodies = [
        {"distance": 1.0, "at": cards.start + 1, "card": "a", "shop": "s"},
        {"distance": "far", "at": cards.start + 1, "card": "a", "shop": "s"},
        {"distance": 1.0, "at": None, "card": "a", "shop": "s"},
        {"distance": 1.0, "at": cards.start + 1, "card": None, "shop": "s"},
    ]
    replies = [client.post("/predict/cards", body) for body in bodies]
    assert [reply.status for reply in replies] == [200, 400, 200, 200]
    found = [r.json["predictions"][0]["got_hourly"] for r in replies if r.status == 200]
    assert found == [1, 0, 0]


def test_grpc_brings_and_shows_the_same_columns(client, cards):
    client.post("/observe/cards", {"card": "a", "at": cards.start})
    kinds, service = messages(), "/inference.GRPCInferenceService/"
    request = kinds["ModelInferRequest"](model_name="cards")
    text = len("a").to_bytes(4, "little") + b"a"
    for name, datatype, raw in (
        ("distance", "FP32", struct.pack("<f", 1.0)),
        ("at", "INT64", struct.pack("<q", cards.start + 1)),
        ("card", "BYTES", text),
        ("shop", "BYTES", text),
    ):
        request.inputs.add(name=name, datatype=datatype, shape=[1])
        request.raw_input_contents.append(raw)
    with grpc.insecure_channel(f"{client.server.host}:{client.server.port}") as channel:

        def ask(method, message):
            return channel.unary_unary(service + method)(message.SerializeToString(), timeout=30)

        metadata = kinds["ModelMetadata"].FromString(
            ask("ModelMetadata", kinds["ModelName"](name="cards"))
        )
        for _ in range(2):  # the second time the layout is known
            answer = kinds["ModelInferResponse"].FromString(ask("ModelInfer", request))
            names = [output.name for output in answer.outputs]
            raw = answer.raw_output_contents[names.index("got_hourly")]
            assert struct.unpack("<q", raw) == (1,)
    assert [tensor.name for tensor in metadata.inputs] == ["distance", "at", "card", "shop"]


def test_the_page_of_a_bundle_with_windows_is_valid_and_its_answers_are_as_it_says(client, cards):
    page = client.get("/openapi.json").json
    openapi_spec_validator.validate(page)
    row = {"card": "a", "at": cards.start}
    answers = {
        "Observed": client.post("/observe/cards", row).json,
        "Kept": client.get("/observe/cards").json,
        "Observation": row,
        "Observations": {"rows": [row], "source": "s", "offset": 4},
    }
    for name, answer in answers.items():
        schema = {**page, "$ref": f"#/components/schemas/cards.{name}"}
        jsonschema.validate(answer, schema)
