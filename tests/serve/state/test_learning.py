"""What a served factorization learns is seen by the next request, whatever is told."""

import threading

import films
import numpy as np
from learnt import SEVERAL, answers, observe, offline, same, served

from drivetrain.events.follow.telling import Server as Told


def test_the_very_next_request_sees_an_event(serve, one):
    client = serve(models={"films": one.path})
    trained = served(client)
    assert same(trained, answers(one, offline(one, [])))
    assert trained[-2] == trained[-1], "who is not known is answered with what is popular"
    told = []
    for row in [
        {"user": "user 1", "film": "film 4"},
        {"user": "new", "film": "film 7"},
        {"user": "new", "film": "one of its own"},
        *({"user": f"user {n}", "film": "one of its own"} for n in (0, 2)),
    ]:
        told.append(row)
        assert observe(client, [row])["observed"] == 1
        found = served(client)
        assert same(found, answers(one, offline(one, told))), row
    assert all("one of its own" not in found[n][0] for n in (0, 2, 4)), "they had it"
    assert "film 7" not in found[4][0]
    assert found[4] != trained[4]
    whole = client.post("/predict/films", {"rows": [{"user": user} for user in SEVERAL]}).json
    assert [row["items"] for row in whole["predictions"]] == [items for items, _ in found]


def test_what_comes_twice_or_in_another_order_or_means_nothing(serve, one):
    client = serve(models={"films": one.path})
    row = {"user": "new", "film": "film 3"}
    known = films.rows(1)[0]  # a pair of the training
    assert observe(client, [row], source="s/1", offset=5)["observed"] == 1
    assert observe(client, [row], source="s/1", offset=5)["ignored"] == 1
    assert observe(client, [row, known])["observed"] == 0
    assert observe(client, [{"user": None, "film": "film 3"}])["missing"] == 1
    assert observe(client, [{"user": "", "film": "film 1"}])["missing"] == 1
    for wrong, says in [
        ({"user": "new"}, "row 0: found columns user; allowed: all of film, user"),
        ({"user": 5, "film": "film 1"}, "row 0, column 'user': found 5"),
        ({"user": "new", "film": ["film 1"]}, "row 0, column 'film'"),
        ({"user": "new", "flim": "film 1"}, "Did you mean 'film'?"),
        (b'{"user": "new", "film": NaN}', "body: found no JSON"),
    ]:
        reply = client.post("/observe/films", wrong)
        assert reply.status == 400
        assert says in reply.json["error"]
    assert same(served(client), answers(one, offline(one, [row])))
    told = client.get("/observe/films").json
    assert (told["learner"]["learnt"], told["learner"]["missing"]) == (1, 2)
    assert told["positions"] == {"s/1": 5}


def test_places_for_new_items_run_out_and_the_rest_goes_on(serve, one):
    client = serve(models={"films": one.path})
    rows = [{"user": f"user {n}", "film": f"premiere {n}"} for n in range(8)]
    assert observe(client, rows)["observed"] == 5
    assert client.metric('drivetrain_learner_new_items{model="films"}') == 5
    assert client.metric('drivetrain_learner_refused{model="films"}') == 3
    assert client.metric('drivetrain_learner_events{model="films"}') == 5
    assert client.metric('drivetrain_learner_rolled_back{model="films"}') == 0
    assert client.metric('drivetrain_learner_bytes{model="films"}') > 0
    for name in ("auc", "frozen_auc"):  # new items are compared with none
        assert f"drivetrain_learner_{name}{{" not in client.get("/metrics").body.decode()
    assert observe(client, [{"user": "new", "film": "film 1"}])["observed"] == 1
    assert client.metric('drivetrain_learner_new_users{model="films"}') == 1
    assert 0 <= client.metric('drivetrain_learner_auc{model="films"}') <= 1
    assert same(
        served(client), answers(one, offline(one, [*rows, {"user": "new", "film": "film 1"}]))
    )


def test_a_flood_of_one_user_holds_nobody_up(serve, one):
    client = serve(models={"films": one.path})
    flood = [{"user": "flood", "film": f"film {n % films.FILMS}"} for n in range(8000)]
    replies = []
    thread = threading.Thread(target=lambda: replies.append(observe(client, flood)))
    thread.start()
    statuses = []
    while thread.is_alive():
        statuses.append(client.post("/predict/films", {"user": "flood"}).status)
    thread.join()
    assert set(statuses) <= {200}
    assert replies[0]["observed"] >= films.FILMS
    assert same(served(client), answers(one, offline(one, flood)))


def test_poison_is_rolled_back_and_training_answers_again(serve, tmp_path):
    guarded = films.write(tmp_path / "guarded", guard=0.02, evidence=60)
    client = serve(models={"films": guarded.path})
    random = np.random.default_rng(1)
    rows = [
        {"user": f"user {random.integers(40)}", "film": f"film {random.integers(films.FILMS)}"}
        for _ in range(3000)
    ]
    learner = offline(guarded, rows)
    assert learner.rolled_back, "the made poison is poison"
    for start in range(0, len(rows), 250):
        observe(client, rows[start : start + 250])
    assert client.metric('drivetrain_learner_rolled_back{model="films"}') == 1
    auc, frozen = (
        client.metric(f'drivetrain_learner_{name}{{model="films"}}')
        for name in ("auc", "frozen_auc")
    )
    assert auc < frozen
    assert same(served(client), answers(guarded, learner))


def test_what_a_stream_tells_is_learnt(serve, one):
    client = serve(models={"films": one.path})
    server = Told(f"{client.url}/observe/films")
    try:
        positions, columns = server.state()
        assert (positions, columns) == ({}, ("user", "film"))
        rows = films.rows(30, seed=12)
        server.tell(rows[:20], "films/0", 20)
        server.tell(rows[:20], "films/0", 20)
        server.tell(rows[20:], "films/0", 30)
        assert server.state()[0] == {"films/0": 30}
    finally:
        server.close()
    assert same(served(client), answers(one, offline(one, rows)))
