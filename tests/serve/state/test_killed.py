"""A process that keeps observations is killed at any moment: nothing that was acknowledged is
lost, and nothing counts twice."""

import numpy as np
import pytest
from apart import Apart
from feeder import Feed, Keeper

from drivetrain.core.batch import Batch
from drivetrain.core.tracks import Tracks
from drivetrain.core.window import Window
from drivetrain.serve.execution.filling import Kept
from drivetrain.serve.state.embedded import Embedded
from drivetrain.serve.telemetry.metrics import Metrics

KILLS = 20
COUNTING = {
    "count": Window(by="card", stat="count", over="100d"),
    "sum": Window("amount", by="card", stat="sum", over="100d", known="settled"),
    "shops": Window("shop", by="card", stat="distinct", over="100d"),
    "recent": Window("amount", by="card", stat="last", known="settled"),
}


def kept_of(cards, columns):
    windows = cards.windows(columns, 1000 * cards.hour)
    for track in windows.tracks:
        alone = type(windows)(windows.time, track.windows, windows.lateness)
        yield Kept(alone, cards.schema.select(dict.fromkeys((*alone.asked, *alone.observed))))


def read(tracks, kept, cards):
    """All windows of every card at the end of time."""
    names = [f"card {n}" for n in range(20)]
    rows = [{"at": cards.start + 1000 * cards.hour, "card": n, "shop": "shop 1"} for n in names]
    schema = cards.schema.select(("at", "card", "shop"))
    found = {}
    for each in kept:
        batch = Batch.from_rows(rows, schema)
        found |= tracks[each.digest].read(batch)
    return found


@pytest.mark.slow
def test_what_was_acknowledged_survives_every_kill_and_counts_once(tmp_path, cards):
    rows = cards.rows(4000, seed=3)
    kept = list(kept_of(cards, COUNTING))
    feed, random = Feed(rows), np.random.default_rng(0)
    for _ in range(KILLS):
        keeper = Keeper(tmp_path, kept)
        try:
            feed.begin(keeper)
            feed.go_on(keeper, int(random.integers(1, 30)))
        finally:
            keeper.kill()
    assert feed.left, "it was killed to the end"
    keeper = Keeper(tmp_path, kept)
    feed.begin(keeper)
    feed.go_on(keeper, len(rows))
    keeper.kill()
    assert not feed.left
    assert list(tmp_path.glob("*.snapshot")), "the log was shortened meanwhile"
    state = Embedded("cards", tmp_path, 1 << 30, Metrics())
    reference = {each.digest: Tracks(each.windows, each.schema) for each in kept}
    for tracks in reference.values():
        tracks.observe(Batch.from_rows(rows, cards.schema))
    found, expected = (read(t, kept, cards) for t in (state.memory.tracks, reference))
    for name in COUNTING:
        np.testing.assert_array_equal(found[name], expected[name])
    state._journal.close()


@pytest.mark.slow
def test_a_server_that_was_killed_predicts_as_if_it_had_not_been(windowed, cards, tmp_path):
    rows = cards.rows(120)
    expected = cards.offline(rows)
    keeping = {"place": str(tmp_path)}
    for start in range(0, len(rows), 40):
        with Apart(windowed, **keeping) as server:
            pairs = list(zip(rows, expected, strict=True))[start : start + 40]
            for number, (row, wanted) in enumerate(pairs, start + 1):
                status, answer = server.post("/predict/cards", cards.asked(row))
                assert status == 200
                assert cards.same(cards.plain(answer["predictions"][0]), wanted)
                body = {"rows": [row], "source": "s", "offset": number}
                status, answer = server.post("/observe/cards", body)
                assert (status, answer["ignored"], answer["durable"]) == (200, 0, True)
