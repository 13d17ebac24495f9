"""Windows worked out anew for every question, and what the tests of the kernel ask of both."""

import math
from fractions import Fraction

import numpy as np

from drivetrain.core.batch import Batch, Categorical
from drivetrain.core.schema import MISSING_INT, Field, Schema
from drivetrain.core.window import FORGOTTEN, Track, Window, Windows, microseconds_of

MISSING = (None, MISSING_INT, "", b"")
LARGEST = 2.0**62


def is_missing(value):
    return (
        value in MISSING
        or (isinstance(value, float) and not abs(value) <= LARGEST)  # nan and infinity, too
    )


def length(text):
    return None if text is None else microseconds_of(text, "")


class Reference:
    """All observations of all tracks, and what rows are given of them."""

    def __init__(self, windows: Windows) -> None:
        self.windows = windows
        self.tracks = windows.tracks
        self.seen: list[list[tuple]] = [[] for _ in self.tracks]
        self.watermarks: list[int | None] = [None for _ in self.tracks]
        self.late = self.missing = self.kept = 0

    def tell(self, row) -> None:
        for number, track in enumerate(self.tracks):
            key = tuple(row[name] for name in track.keys)
            value = 0 if track.value is None else row[track.value]
            known = row[track.known]
            if is_missing(known) or is_missing(value) or any(map(is_missing, key)):
                self.missing += 1
                continue
            mark = self.watermarks[number]
            if mark is not None and known < mark - self.windows.lateness:
                self.late += 1
                continue
            self.kept += 1
            self.watermarks[number] = known if mark is None else max(mark, known)
            if track.resolution:
                known = -(-known // track.resolution) * track.resolution
            self.seen[number].append((key, known, value))

    def ask(self, row) -> dict:
        found = {}
        time = row[self.windows.time]
        for number, track in enumerate(self.tracks):
            key = tuple(row[name] for name in track.keys)
            mine = (
                [] if is_missing(time) else [(k, v) for at, k, v in self.seen[number] if at == key]
            )
            mine = sorted(mine)
            for name, window in track.windows:
                found[name] = given(track, window, [e for e in mine if e[0] < (time or 0)], time)
        return {name: found[name] for name in self.windows.names}


def given(track: Track, window: Window, entries, time):
    """What a window gives of observations ``(known, value)`` in order, all before ``time``."""
    if window.half_life is not None:
        return faded(window, entries, time)
    if window.over is not None:
        entries = [entry for entry in entries if entry[0] >= time - length(window.over)]
    if window.rows is not None:
        entries = entries[-window.rows :]
    values = [value for _, value in entries]
    if window.stat == "count":
        return len(values)
    if window.stat == "distinct":
        return len(set(values))
    if window.stat == "sum":
        return rounded(exact_sum(values))
    if window.stat == "recent":
        return values[::-1]
    if not values:
        return None
    if window.stat == "mean":
        return rounded(exact_sum(values) / len(values))
    if window.stat == "since":
        return (time - entries[-1][0]) / 1e6
    return {"min": min, "max": max, "last": lambda found: found[-1]}[window.stat](values)


def exact_sum(values) -> Fraction:
    """Each in units of 2**-64, a half of one to even."""
    return sum((Fraction(round(Fraction(v) * 2**64), 2**64) for v in values), Fraction(0))


def rounded(value: Fraction) -> float:
    return value.numerator / value.denominator  # Python divides integers with one rounding


def halved(value: float, age: int, half_life: int) -> float:
    """``value * 2**(-age / half_life)`` by the kernel's formula."""
    whole, rest = divmod(age, half_life)
    part = rest / half_life
    if part > 0.5:
        part, whole = part - 1.0, whole + 1
    x = -part * math.log(2.0)
    power = float(Fraction(1, math.factorial(13)))
    for i in range(12, -1, -1):
        power = power * x + float(Fraction(1, math.factorial(i)))
    return value * power * 2.0**-whole


def faded(window: Window, entries, time):
    half_life = length(window.half_life)
    sums = counts = 0.0
    last = None
    for moment in sorted({known for known, _ in entries}):
        values = [value for known, value in entries if known == moment]
        if last is None or (moment - last) // half_life >= FORGOTTEN:
            sums = counts = 0.0
        else:
            sums = halved(sums, moment - last, half_life)
            counts = halved(counts, moment - last, half_life)
        sums += rounded(exact_sum(values))
        counts += len(values)
        last = moment
    if last is None or (time - last) // half_life >= FORGOTTEN:
        return None if window.stat == "mean" else 0.0
    if window.stat == "mean":
        return sums / counts
    return halved(sums if window.stat == "sum" else counts, time - last, half_life)


# -- what is asked ----------------------------------------------------------------------

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
ADDING = ("count", "sum", "mean")
NAN = math.nan


def every_window(value: str) -> dict[str, Window]:
    """Each statistic of a column with each way to look back that it allows."""
    made = {}
    for stat in (*ADDING, "min", "max", "distinct", "last", "since"):
        ways = {
            "over": {"over": "5us"},
            "long": {"over": "20us"},
            "rows": {"rows": 3},
            "both": {"rows": 3, "over": "9us"},
        }
        if stat in (*ADDING, "last", "since"):
            ways["all"] = {}
        if stat in (*ADDING, "min", "max"):
            ways["panes"] = {"over": "20us", "resolution": "4us"}
        if stat in ADDING:
            ways |= {"half": {"half_life": "2us"}, "slow": {"half_life": "7us"}}
        for way, options in ways.items():
            made[f"{stat}_{value}_{way}"] = Window(value, by="card", stat=stat, **options)
    made[f"recent_{value}"] = Window(value, by="card", stat="recent", rows=4)
    return made


ALL = {
    **every_window("x"),
    **every_window("n"),
    "distinct_s": Window("s", by="card", stat="distinct", over="20us"),
    "count_s": Window("s", by="card", stat="count", over="20us"),
    "two_keys": Window(by=("card", "shop"), stat="count", over="9us"),
    "by_shop": Window(by="shop", stat="since"),
    "later_sum": Window("x", by="card", stat="sum", over="20us", known="known"),
    "later_last": Window("n", by="shop", stat="last", known="known"),
}


def batch_of(rows) -> Batch:
    columns = {}
    for field in SCHEMA:
        values = [row[field.name] for row in rows]
        columns[field.name] = np.array(values, dtype=field.numpy)
    return Batch(columns)


MANY = Windows(
    "at",
    tuple((name, ALL[name]) for name in sorted(ALL) if not name.startswith("later")),
    lateness=3,
)


def many_rows(rows: int, seed: int) -> Batch:
    random = np.random.default_rng(seed)
    values = np.array(["a", "b", "c", "", *(f"card {n}" for n in range(50))], dtype=object)
    times = np.sort(random.integers(0, rows, rows)) - random.integers(0, 5, rows)
    return Batch(
        {
            "at": times,
            "known": times,
            "card": Categorical(random.integers(0, len(values), rows).astype(np.int32), values),
            "shop": random.integers(0, 9, rows),
            "x": np.where(random.random(rows) < 0.1, NAN, np.round(random.normal(0, 50, rows), 2)),
            "n": random.integers(-4, 4, rows),
            "s": values[random.integers(0, 9, rows)],
        }
    )
