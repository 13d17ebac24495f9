"""Windows worked out anew for every question, by going through all that was ever observed."""

import math
from fractions import Fraction

from drivetrain.core.schema import MISSING_INT
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
