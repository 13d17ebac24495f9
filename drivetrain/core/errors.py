"""Errors for the user's mistakes: each names the offender, what was found and what is allowed."""

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import cast

_LONGEST_NAME = 1000
"""Of a name that may be meant: comparing takes as long as the name is, and clients send any."""


def nearest(found: str, allowed: Iterable[str]) -> str | None:
    """The allowed name most like ``found``, or None when nothing is close."""
    names = list(allowed)
    if len(found) > _LONGEST_NAME:
        return None
    close = get_close_matches(found, names, n=1, cutoff=0.6)
    if close:
        return close[0]
    folded = {name.lower(): name for name in names}
    close = get_close_matches(found.lower(), list(folded), n=1, cutoff=0.6)
    return folded[close[0]] if close else None


def unknown(what: str, found: str, allowed: Iterable[str], where: str = "") -> ValueError:
    """The error for a name that does not exist.

    Args:
        what: the kind of thing that was named, such as ``"column"``.
        found: the name as the user wrote it.
        allowed: the names that exist.
        where: where it was written, such as ``"feature Scale('delay')"``.
    """
    names = sorted(allowed)
    shown = ", ".join(names[:20]) + (f", … ({len(names)} in all)" if len(names) > 20 else "")
    place = f" in {where}" if where else ""
    guess = nearest(found, names)
    hint = f" Did you mean {guess!r}?" if guess else ""
    return ValueError(
        f"unknown {what} {_short(found, 300)}{place}.{hint} Allowed: {shown or 'none'}."
    )


def wrong(where: str, found: object, allowed: str) -> ValueError:
    """The error for a value of the wrong kind: the place, what was found and what is allowed."""
    return ValueError(f"{where}: found {_short(found)}, allowed: {allowed}.")


def _short(found: object, most: int = 80) -> str:
    text = ""
    for piece in _pieces(found):
        text += piece
        if len(text) > most:  # the rest may be long, and nested as deep as can be
            return text[: most - 3] + "…"
    return text


def _pieces(found: object) -> Iterator[str]:
    """The representation of plain data, no further than somebody reads it."""
    if type(found) is list:
        items = cast("list[object]", found)
        yield "["
        for number, item in enumerate(items):
            yield ", " if number else ""
            yield from _pieces(item)
        yield "]"
    elif type(found) is dict:
        pairs = cast("dict[object, object]", found)
        yield "{"
        for number, (key, value) in enumerate(pairs.items()):
            yield f"{', ' if number else ''}{key!r}: "
            yield from _pieces(value)
        yield "}"
    else:
        yield repr(found)
