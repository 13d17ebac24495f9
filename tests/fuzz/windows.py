"""Drives a build of the kernel of windows through made observations and made bytes.

    python tests/fuzz/windows.py MODULE.so ROUNDS

What it gives is held right elsewhere: here a sanitizer looks at what it touches.
"""

import importlib.util
import random
import sys

import numpy as np

from drivetrain.core.batch import Batch, Categorical
from drivetrain.core.schema import Field, Schema
from drivetrain.core.window import STATS, Window, Windows

KERNEL = "drivetrain.core.native.windows"
SCHEMA = Schema(
    (
        Field("at", "timestamp"),
        Field("known", "timestamp"),
        Field("card", "string"),
        Field("shop", "int64"),
        Field("x", "float64"),
        Field("n", "int64"),
        Field("s", "string"),
    )
)
CARDS = np.array(["", "é", *(f"card {n}" for n in range(40))], dtype=object)
NUMBERS = np.array([0.0, 0.1, -7.5, 1e18, -4e18, 1e-30, np.nan, np.inf, 3e300])


def use(path: str) -> None:
    """Let the package take the kernel from a file."""
    spec = importlib.util.spec_from_file_location(KERNEL, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[KERNEL] = module


def made_window(draw: random.Random) -> Window:
    """Any window that a declaration takes."""
    while True:
        options = {
            "over": draw.choice((None, "5us", "300us")),
            "rows": draw.choice((None, None, 1, 5, 70)),
            "half_life": draw.choice((None, None, None, "7us")),
            "resolution": draw.choice((None, None, "4us")),
            "known": draw.choice((None, None, "known")),
        }
        by = draw.choice(("card", "shop", ("card", "shop")))
        try:
            window = Window(
                draw.choice((None, "x", "n", "s")), by=by, stat=draw.choice(STATS), **options
            )
            window.field("w", SCHEMA)
        except ValueError:
            continue
        return window


def made_rows(draw: random.Random, start: int, rows: int) -> Batch:
    """Rows a little out of order, with ties and missing values."""
    dice = np.random.default_rng(draw.randrange(1 << 30))
    times = start + np.sort(dice.integers(0, rows, rows)) - dice.integers(0, 4, rows)
    cards = dice.integers(0, len(CARDS), rows).astype(np.int32)
    return Batch(
        {
            "at": times,
            "known": times + dice.integers(-2, 3, rows),
            "card": Categorical(cards, CARDS),
            "shop": dice.integers(-1, 3, rows),
            "x": dice.choice(NUMBERS, rows),
            "n": dice.integers(-(2**63), 2**63, rows),
            "s": CARDS[dice.integers(0, 9, rows)],
        }
    )


def play(seed: int) -> None:
    """A state from its beginning to its end."""
    from drivetrain.core.tracks import Tracks

    draw = random.Random(seed)
    columns = tuple((f"w{n}", made_window(draw)) for n in range(draw.randint(1, 8)))
    windows = Windows("at", columns, draw.choice((0, 3, 50)))
    tracks = Tracks(windows, SCHEMA, threads=draw.choice((1, 3)))
    start = draw.choice((-(2**63) + 10, -50, 0, 2**63 - 30_000))
    for _ in range(draw.randint(2, 8)):
        rows = draw.choice((1, 40, 400, 5_000))
        batch = made_rows(draw, start, rows)
        start += draw.choice((0, rows, 2_000))
        draw.choice((tracks.read, tracks.observe, tracks.replay, tracks.replay))(batch)
        for number in range(min(rows, 5)):
            row = {name: batch[name][number] for name in SCHEMA.names}
            row = {n: v.item() if isinstance(v, np.generic) else v for n, v in row.items()}
            tracks.ask(tuple(row[name] for name in windows.asked))
            tracks.tell(tuple(row[name] for name in windows.observed))
        spoil(draw, tracks, batch)
        if draw.random() < 0.3 and tracks.watermark is not None:
            tracks.expire(tracks.watermark)
        if draw.random() < 0.3:
            data = tracks.dump()
            tracks = Tracks.load(data, windows, SCHEMA)
            assert tracks.dump() == data


def spoil(draw: random.Random, tracks, batch: Batch) -> None:
    """Put in keys whose bytes were changed, with a check that fits."""
    from drivetrain.core.native import kernel

    number = draw.randrange(len(tracks.tracks))
    hashes = tracks.hash(number, batch)[:3]
    for pair, blob in zip(hashes, tracks.dump_keys(number, hashes), strict=True):
        data = bytearray(blob)
        for _ in range(draw.randint(0, 3) if data else 0):
            data[draw.randrange(min(8, len(data) - 1), len(data))] = draw.choice((0, 1, 127, 255))
        if draw.random() < 0.2:
            del data[draw.randrange(len(data) + 1) :]
        if len(data) > 8:
            data[-8:] = kernel().siphash(bytes(data[:-8]))[:8]
        try:
            tracks.load_keys(number, pair.reshape(1, 2), [bytes(data)])
        except ValueError:
            tracks.drop_keys(number, pair.reshape(1, 2))


if __name__ == "__main__":
    use(sys.argv[1])
    for seed in range(int(sys.argv[2])):
        play(seed)
    print(f"played {sys.argv[2]}")
