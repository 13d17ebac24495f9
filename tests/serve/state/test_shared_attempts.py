"""What one write of posts to Redis is made of, without Redis."""

import asyncio

import numpy as np
import pytest

from drivetrain.core.batch import Batch
from drivetrain.core.schema import Schema
from drivetrain.core.window import Window
from drivetrain.serve.execution.filling import Filling, Kept
from drivetrain.serve.state.kept import Outcome
from drivetrain.serve.state.posts import Post
from drivetrain.serve.state.redis import VERSION
from drivetrain.serve.state.scratch import Scratch
from drivetrain.serve.state.shared import Asking, _tried
from drivetrain.serve.telemetry.metrics import Metrics

COLUMNS = {"top": Window("amount", by="card", stat="max", over="24h")}
NOTHING = b"not a state of a key"


@pytest.fixture
def kept(cards):
    windows = cards.windows(COLUMNS)
    names = dict.fromkeys((*windows.asked, *windows.observed))
    return Kept(windows, cards.schema.select(names))


def post_of(at, amount, **source):
    columns = {
        "at": np.array([at]),
        "card": np.array(["a"], object),
        "amount": np.array([amount]),
    }
    return Post((Batch(columns),), 1, 100, **source)


def tried(scratch, post, blob, watermarks):
    wanted = scratch.fed_by([post])
    return _tried([post], [scratch], [wanted], ["k"], [blob], {}, watermarks)


def test_a_key_is_written_once_its_state_is_another(kept, cards):
    scratch = Scratch(kept)
    first = tried(scratch, post_of(cards.start, 5.0), None, {})
    version, blob, stays = first.keys["k"]
    assert (version, int.from_bytes(blob[:VERSION], "little")) == (b"", 1)
    assert stays > 0
    assert first.watermarks == {kept.digest: cards.start}
    second = tried(scratch, post_of(cards.start + 1, 7.0), blob, first.watermarks)
    version, after, _ = second.keys["k"]
    assert version == blob[:VERSION]
    assert int.from_bytes(after[:VERSION], "little") == 2
    assert second.watermarks == {kept.digest: cards.start + 1}


def test_a_row_that_changes_nothing_writes_no_key(kept, cards):
    scratch = Scratch(kept)
    missing = tried(scratch, post_of(cards.start, np.nan), None, {})
    assert (missing.keys, missing.watermarks) == ({}, {})
    assert missing.outcomes == [Outcome(missing=1)]
    first = tried(scratch, post_of(cards.start, 5.0), None, {})
    blob, mark = first.keys["k"][1], first.watermarks
    late = tried(scratch, post_of(cards.start - 7 * cards.hour, 9.0), blob, mark)
    assert (late.keys, late.watermarks, late.outcomes) == ({}, {}, [Outcome(late=1)])
    assert tried(scratch, post_of(cards.start - 7 * cards.hour, 9.0), None, mark).keys == {}


def test_of_a_row_that_changes_nothing_its_source_is_written(kept, cards):
    post = post_of(cards.start, np.nan, source="s", offset=3)
    attempt = tried(Scratch(kept), post, None, {})
    assert (attempt.keys, attempt.sources) == ({}, {"s": (None, 3)})


def test_a_state_that_is_none_leaves_nothing_behind_where_it_is_written(kept, cards):
    scratch = Scratch(kept)
    post = post_of(cards.start, 5.0)
    with pytest.raises(ValueError, match="other bytes"):
        tried(scratch, post, bytes(VERSION) + NOTHING, {kept.digest: cards.start})
    assert (scratch.tracks.keys, scratch.tracks.watermark) == (0, None)
    assert "k" in tried(scratch, post, None, {}).keys


def test_a_state_that_is_none_leaves_nothing_behind_where_it_is_read(kept, cards):
    good = tried(Scratch(kept), post_of(cards.start, 5.0), None, {}).keys["k"][1]

    class Lies:
        """Two keys, of which the state of the second is none."""

        blobs = (good, bytes(VERSION) + NOTHING)

        def keys(self, kept, hashes):
            return [str(number) for number in range(len(hashes))]

        async def read(self, names):
            return list(self.blobs)

    filled = Schema(tuple(kept.windows.fields(cards.schema)))
    filling = Filling(cards.schema.select(("at", "card")), filled, (kept,))
    asking = Asking(filling, Lies(), Metrics().lookup_seconds.of("cards"), None)
    rows = np.full(2, cards.start + 1), np.array(["a", "b"], object)
    with pytest.raises(ValueError, match="other bytes"):
        asyncio.run(asking._found(rows))
    assert asking._parts[0][0].tracks.keys == 0
