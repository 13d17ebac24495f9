"""The plain JSON route: rows in, named predictions out, and errors that name the place."""

import gc
import json
import struct
import time

import numpy as np
import pytest

from drivetrain.serve.protocols.calls import Call

ROWS = [
    {"carrier": "AA", "distance": 733.5, "hour": 7},
    {"carrier": "UA", "distance": None, "hour": 23},
    {"carrier": None, "distance": 1e300, "hour": None},
    {"carrier": "β", "distance": 0.1, "hour": 0},
]


def float32(values):
    return np.array(values, np.float32)


def test_many_rows_are_answered_in_order_as_the_bundle_predicts_them(client, tiny):
    reply = client.post("/predict/tiny", {"rows": ROWS})
    expected = tiny.predict(ROWS)
    found = reply.json["predictions"]
    assert reply.status == 200
    assert reply.json["model"] == "tiny"
    assert reply.json["version"] == tiny.digest[:12]
    assert (float32([row["late"] for row in found]) == expected["late"]).all()
    assert [row["slot"] for row in found] == expected["slot"].tolist()


def test_one_row_by_itself_is_answered_as_a_list_of_one(client, tiny):
    reply = client.post("/predict/tiny", ROWS[0])
    found = reply.json["predictions"]
    assert len(found) == 1
    assert np.float32(found[0]["late"]) == tiny.predict(ROWS[:1])["late"][0]


def test_a_float32_goes_out_in_at_most_nine_digits(client):
    text = client.post("/predict/tiny", ROWS[0]).body.decode()
    number = text.partition('"late":')[2].partition(",")[0]
    assert len(number.replace(".", "").strip("0")) <= 9


def test_a_whole_float_and_a_bool_pass_as_integers_as_core_has_it(client, tiny):
    row = {"carrier": "AA", "distance": True, "hour": 7.0}
    reply = client.post("/predict/tiny", row)
    assert np.float32(reply.json["predictions"][0]["late"]) == tiny.predict([row])["late"][0]


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        ({"rows": [*ROWS, {**ROWS[0], "distance": "far"}]},
         ["row 4, column 'distance'", "found 'far'", "allowed: a number or null"]),
        ({"rows": [{**ROWS[0], "hour": 7.5}]}, ["row 0, column 'hour'", "found 7.5"]),
        ({"rows": [{**ROWS[0], "hour": 2**63}]},
         ["row 0, column 'hour': found 9223372036854775808", "an integer of 64 bits"]),
        ({"rows": [{**ROWS[0], "carrier": 3}]}, ["row 0, column 'carrier'", "a string or null"]),
        ({"carrier": "AA", "distence": 1.0, "hour": 3},
         ["unknown column 'distence'", "Did you mean 'distance'?"]),
        ({"carrier": "AA", "hour": 3}, ["row 0", "found no column 'distance'"]),
        ({**ROWS[0], "distance": 10**400}, ["row 0, column 'distance'", "a number or null"]),
        ({"rows": [3]}, ["row 0", "found 3", "an object"]),
        ({"rows": []}, ["rows: found 0", "allowed: 1 to"]),
        ([1, 2], ["body", "found [1, 2]", '{"rows": [row, …]}']),
        (b'{"carrier": ', ["body", "found no JSON"]),
        (b'{"carrier": "\xff"}', ["body", "found no JSON"]),
        (b"[" * 100_000, ["body", "found no JSON"]),
        (b'{"carrier": "AA", "distance": NaN, "hour": 1}',
         ["body", "found no JSON", "byte 30", "with null for a number that is none"]),
        (b"", ["body", "found no JSON"]),
        (b'{"carrier": "AA", "distance": 1e999, "hour": 1}', ["body", "found no JSON"]),
    ],
)  # fmt: skip
def test_a_mistake_is_400_and_names_place_found_and_allowed(client, body, parts):
    reply = client.post("/predict/tiny", body)
    assert reply.status == 400
    assert list(reply.json) == ["error"]
    assert all(part in reply.json["error"] for part in parts), reply.json["error"]


def test_more_rows_than_the_queue_holds_are_refused(serve):
    from drivetrain.serve.execution.engine import Batching

    client = serve(batching=Batching(rows=2, queue_rows=4))
    reply = client.post("/predict/tiny", {"rows": ROWS + ROWS})
    assert (reply.status, reply.json["error"]) == (
        400, "rows: found 8, allowed: 1 to 4 in one request."
    )  # fmt: skip


def test_an_id_of_the_client_comes_back_and_one_is_made_where_there_is_none(client):
    named = client.post("/predict/tiny", ROWS[0], headers={"X-Request-Id": "flight-7"})
    made = [client.post("/predict/tiny", ROWS[0]).headers["x-request-id"] for _ in range(2)]
    assert named.headers["x-request-id"] == "flight-7"
    assert made[0] != made[1]


def test_an_id_that_no_header_can_carry_is_refused(client):
    reply = client.post("/predict/tiny", ROWS[0], headers={"X-Request-Id": "a b"})
    assert reply.status == 400
    assert "header 'x-request-id': found 'a b'" in reply.json["error"]


def test_an_expired_request_is_504_and_never_computed(client, tiny):
    runs = f'drivetrain_inference_seconds_count{{model="tiny",version="{tiny.digest[:12]}"}}'
    before = client.metric(runs)
    reply = client.post("/predict/tiny", ROWS[0], headers={"X-Timeout-Ms": "0.0001"})
    assert reply.status == 504
    assert client.metric(runs) == before


def test_a_time_out_that_is_no_number_is_refused(client):
    reply = client.post("/predict/tiny", ROWS[0], headers={"X-Timeout-Ms": "soon"})
    assert reply.status == 400
    assert "header 'x-timeout-ms': found 'soon'" in reply.json["error"]


def test_every_bit_of_a_float32_survives_the_way_through_json(client, tiny):
    random = np.random.default_rng(7)  # made rows
    rows = [
        {"carrier": "DL", "distance": float(d), "hour": int(h)}
        for d, h in zip(random.normal(0, 3000, 500), random.integers(0, 24, 500), strict=True)
    ]
    found = client.post("/predict/tiny", {"rows": rows}).json["predictions"]
    expected = tiny.predict(rows)["late"].tolist()
    bits = [struct.pack("f", row["late"]) for row in found]
    assert bits == [struct.pack("f", value) for value in expected]


def test_a_body_may_hold_spaces_before_its_rows(client):
    body = b' \n{ "rows" :\t' + json.dumps(ROWS).encode() + b"}"
    assert len(client.post("/predict/tiny", body).json["predictions"]) == len(ROWS)


def test_what_was_answered_or_refused_goes_without_the_garbage_collector(client):
    gc.collect()
    gc.disable()
    try:
        for hour in (9, 99):  # the second is beyond the graph's table
            client.post("/predict/tiny", {**ROWS[0], "hour": hour})
        end = time.monotonic() + 2.0
        while (left := [o for o in gc.get_objects() if type(o) is Call]) and time.monotonic() < end:
            del left
            time.sleep(0.02)
    finally:
        gc.enable()
    assert not left


@pytest.mark.parametrize("target", ["/predict/tiny", "/v1/models/tiny:predict"])
def test_a_body_nested_as_deep_as_can_be_read_is_the_clients_mistake(client, target):
    for depth in range(900, 1000):
        body = b'{"instances":' + b"[" * depth + b"]" * depth + b"}"
        assert client.post(target, body).status == 400


@pytest.mark.parametrize(
    ("target", "body"),
    [
        ("/predict/tiny", {"rows": [{}] * 9000}),
        ("/v1/models/tiny:predict", {"instances": [{}] * 9000}),
        ("/v1/models/tiny:predict", {"inputs": {"hour": [1] * 9000}}),
    ],
)
def test_rows_are_counted_before_each_is_looked_at(client, target, body):
    found = client.post(target, body).json
    assert found == {"error": "rows: found 9000, allowed: 1 to 8192 in one request."}
