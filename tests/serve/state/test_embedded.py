"""What a process keeps is at any time what its log gives."""

import asyncio
import json
import threading

import msgspec
import numpy as np
import pytest

from drivetrain.core.schema import Schema
from drivetrain.core.window import Window
from drivetrain.serve.execution.filling import AwayError, Filling, Kept
from drivetrain.serve.state import embedded, memory, queue
from drivetrain.serve.state.embedded import Embedded
from drivetrain.serve.state.memory import Memory
from drivetrain.serve.state.posts import Limits
from drivetrain.serve.telemetry.metrics import Metrics

COLUMNS = {
    "count": Window(by="card", stat="count", over="100d"),
    "sum": Window("amount", by="card", stat="sum", over="100d", known="settled"),
    "shops": Window("shop", by=("card", "shop"), stat="distinct", over="100d"),
}


def kept_of(cards, columns):
    windows = cards.windows(columns, 1000 * cards.hour)
    for track in windows.tracks:
        alone = type(windows)(windows.time, track.windows, windows.lateness)
        yield Kept(alone, cards.schema.select(dict.fromkeys((*alone.asked, *alone.observed))))


EARLY = (("at", "card"), ("card", "amount", "settled"), ("at", "card", "amount", "settled"))
LATE = (*EARLY, ("at", "card", "shop"), ("at", "card", "shop", "amount", "settled"))


def bodies(cards, rows, sets, seed):
    """Posts of one to five rows, each row with the columns of one track or of more."""
    random = np.random.default_rng(seed)
    made, number = cards.rows(rows, seed=seed), 1000 * seed
    while made:
        count = int(random.integers(1, 6))
        post, made = made[:count], made[count:]
        rows = [{n: row[n] for n in sets[random.integers(len(sets))]} for row in post]
        number += 1
        body = {"rows": rows, "source": f"s/{number % 3}", "offset": number}
        yield json.dumps(body if number % 4 else {"rows": rows}).encode()


def dumped(state):
    return {digest: tracks.dump() for digest, tracks in state.memory.tracks.items()}


async def told_of(state, given):
    """Post all at once, and wait until each is safe."""
    outcomes = []
    for body in given:
        state.observe(state.reader.read(body), outcomes.append)
    async with asyncio.timeout(60):
        while len(outcomes) < len(given):
            await asyncio.sleep(0.001)
    return outcomes


def test_a_log_with_changes_and_snapshots_gives_what_was_in_memory(tmp_path, cards, monkeypatch):
    monkeypatch.setattr(embedded, "_LOG_BYTES", 10_000)
    before = list(kept_of(cards, {"count": COLUMNS["count"], "sum": COLUMNS["sum"]}))
    after = list(kept_of(cards, {"sum": COLUMNS["sum"], "shops": COLUMNS["shops"]}))
    given = [list(bodies(cards, 500, sets, seed)) for seed, sets in enumerate((EARLY, LATE))]

    async def live():
        state = Embedded("cards", tmp_path, 1 << 30, Metrics())
        for kept, posts in zip((before, after), given, strict=True):
            state.keep(kept, Limits(8192))
            for start in range(0, len(posts), 20):
                await told_of(state, posts[start : start + 20])
        if state._keeping is not None:
            await state._keeping
        found = dumped(state), {**await state.tell(), "bytes": None}
        await state.close()
        return found

    async def again():
        state = Embedded("cards", tmp_path, 1 << 30, Metrics())
        state.keep(after, Limits(8192))
        found = dumped(state), {**await state.tell(), "bytes": None}
        await state.close()
        return found

    first = asyncio.run(live())
    assert list(tmp_path.glob("*.snapshot"))
    assert len(first[0]) == 3, "the tracks of the version before stay"
    assert asyncio.run(again()) == first


def test_posts_that_wait_are_bounded_and_share_flushes(tmp_path, cards, monkeypatch):
    kept = list(kept_of(cards, COLUMNS))
    flushed = []
    body = json.dumps({"rows": [{"card": "a", "at": cards.start}]}).encode()

    async def post():
        state = Embedded("cards", tmp_path, 1 << 30, Metrics())
        state.keep(kept, Limits(8192))
        append = state._journal.append
        monkeypatch.setattr(
            state._journal, "append", lambda content: (flushed.append(1), append(content))
        )
        outcomes = await told_of(state, [body] * 500)
        assert [outcome.observed for outcome in outcomes] == [1] * 500
        assert len(flushed) < 50
        monkeypatch.setattr(queue, "WAITING_BYTES", 3 * len(body))
        outcomes = await told_of(state, [body] * 5)
        await state.close()
        return outcomes

    refused = [o for o in asyncio.run(post()) if isinstance(o, AwayError)]
    assert len(refused) == 2
    assert "wait for the disk" in str(refused[0])


def test_a_post_behind_one_of_its_source_that_waits_is_ignored_once_that_is_safe(tmp_path, cards):
    kept = list(kept_of(cards, COLUMNS))

    async def post():
        state = Embedded("cards", tmp_path, 1 << 30, Metrics())
        state.keep(kept, Limits(8192))
        row = {"card": "a", "at": cards.start}
        given = [
            json.dumps({"rows": [row], "source": "s", "offset": offset}).encode()
            for offset in (5, 5, 4, 6)
        ]
        outcomes = await told_of(state, given)
        await state.close()
        return [(outcome.observed, outcome.ignored) for outcome in outcomes]

    assert asyncio.run(post()) == [(1, 0), (0, 1), (0, 1), (1, 0)]


def test_a_tail_that_fails_to_be_written_counts_for_nothing(tmp_path, cards, monkeypatch):
    kept = list(kept_of(cards, COLUMNS))
    body = json.dumps(
        {"rows": [{"card": "a", "at": cards.start}], "source": "s", "offset": 5}
    ).encode()

    def fails(content):
        raise OSError(28, "No space left on device")

    async def post():
        state = Embedded("cards", tmp_path, 1 << 30, Metrics())
        state.keep(kept, Limits(8192))
        append = state._journal.append
        state._journal.append = fails
        (failed,) = await told_of(state, [body])
        assert isinstance(failed, AwayError)
        assert state.memory.positions == {}
        state._journal.append = append
        (good,) = await told_of(state, [body])
        await state.close()
        return good

    assert asyncio.run(post()).observed == 1
    state = Embedded("cards", tmp_path, 1 << 30, Metrics())
    assert state.memory.positions == {"s": 5}
    assert state.memory.keys == 1
    asyncio.run(state.close())


def test_an_alias_that_moves_twice_within_a_flush_is_read_as_it_is_observed(tmp_path, cards):
    by_shop = {"visits": Window(by="shop", stat="count", over="100d")}
    one, two, three = (
        list(kept_of(cards, columns))
        for columns in ({"count": COLUMNS["count"]}, {"sum": COLUMNS["sum"]}, by_shop)
    )
    given = cards.schema.select(("at", "shop"))
    filled = Schema(tuple(three[0].windows.fields(cards.schema)))
    entered, released = threading.Event(), threading.Event()

    async def move():
        state = Embedded("cards", tmp_path, 1 << 30, Metrics())
        state.keep(one, Limits(8192))
        await told_of(state, [json.dumps({"card": "a", "at": cards.start}).encode()])
        append = state._journal.append

        def waits(content):
            entered.set()
            assert released.wait(60)
            append(content)

        state._journal.append = waits
        state.keep(two, Limits(8192))
        await asyncio.to_thread(entered.wait, 60)
        state.keep(three, Limits(8192))
        lookup = state.lookup(Filling(given, filled, tuple(three)))
        released.set()
        while state._task is not None:
            await asyncio.sleep(0.001)
        await told_of(state, [json.dumps({"shop": "s", "at": cards.start}).encode()])
        found = []
        for rows in (1, 100):
            asked = np.full(rows, cards.start + 1), np.full(rows, "s", object)
            lookup(asked, found.append)
        live = dumped(state)
        await state.close()
        return found, live

    found, live = asyncio.run(move())
    assert [windows[0].tolist() for windows in found] == [[1], [1] * 100]
    state = Embedded("cards", tmp_path, 1 << 30, Metrics())
    assert dumped(state) == live
    asyncio.run(state.close())


def test_whatever_a_disk_fails_with_who_waits_is_answered(tmp_path, cards):
    kept = list(kept_of(cards, COLUMNS))

    def fails(content):
        raise ValueError("a file that was closed")

    async def post():
        state = Embedded("cards", tmp_path, 1 << 30, Metrics())
        state.keep(kept, Limits(8192))
        state._journal.append = fails
        (failed,) = await told_of(state, [json.dumps({"card": "a", "at": cards.start}).encode()])
        await state.close()
        return failed

    failed = asyncio.run(post())
    assert isinstance(failed, AwayError)
    assert "a file that was closed" in str(failed)


def test_a_snapshot_that_fails_is_not_tried_again_after_every_commit(tmp_path, cards, monkeypatch):
    monkeypatch.setattr(embedded, "_LOG_BYTES", 1000)
    kept = list(kept_of(cards, COLUMNS))
    tried = []

    def fails(number, content):
        tried.append(number)
        raise OSError(28, "No space left on device")

    async def post():
        state = Embedded("cards", tmp_path, 1 << 30, Metrics())
        monkeypatch.setattr(state._journal, "keep", fails)
        state.keep(kept, Limits(8192))
        for body in bodies(cards, 600, EARLY, 1):
            await told_of(state, [body])
            if state._keeping is not None:
                await state._keeping
        await state.close()

    asyncio.run(post())
    assert 1 < len(tried) < 12
    assert len(list(tmp_path.glob("*.log"))) < 12


def test_a_snapshot_holds_a_track_in_pieces_and_one_of_before_is_read(cards, monkeypatch):
    kept = list(kept_of(cards, COLUMNS))
    made = Memory()
    made.keep(kept)
    reader = embedded.Reader(embedded.observed_by(kept), kept, Limits(8192))
    for body in bodies(cards, 50, EARLY, 1):
        made.observe(reader.read(body))
    monkeypatch.setattr(memory, "_PIECE", 100)
    content = made.dump()
    plain = msgspec.msgpack.decode(content)
    assert all(len(piece) <= 100 for each in plain["tracks"] for piece in each["state"])
    before = {**plain, "format": 1}
    before["tracks"] = [{**each, "state": b"".join(each["state"])} for each in plain["tracks"]]
    for snapshot in (content, msgspec.msgpack.encode(before)):
        again = Memory()
        again.load(snapshot)
        assert again.dump() == content


def test_what_was_safe_is_not_left_out_for_want_of_memory(tmp_path, cards, monkeypatch):
    kept = list(kept_of(cards, COLUMNS))

    async def post():
        state = Embedded("cards", tmp_path, 1 << 30, Metrics())
        state.keep(kept, Limits(8192))
        await told_of(state, [json.dumps({"card": "a", "at": cards.start}).encode()])
        await state.close()

    def fails(memory, post):
        raise MemoryError

    asyncio.run(post())
    with monkeypatch.context() as patched:
        patched.setattr(Memory, "observe", fails)
        with pytest.raises(MemoryError):
            Embedded("cards", tmp_path, 1 << 30, Metrics())
    state = Embedded("cards", tmp_path, 1 << 30, Metrics())
    assert state.memory.keys == 1
    asyncio.run(state.close())
