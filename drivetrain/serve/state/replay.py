"""What a log of observations holds, and doing it again."""

import logging
from collections.abc import Iterable, Sequence
from itertools import chain, groupby
from typing import Any

import msgspec

from drivetrain.core.batch import Batch
from drivetrain.serve.execution.filling import Kept
from drivetrain.serve.state.learners import Entry
from drivetrain.serve.state.memory import Memory
from drivetrain.serve.state.posts import Post

log = logging.getLogger("drivetrain.serve")

_KEEP, _POST, _LEARN = 0, 1, 2
_ROWS = 8192
"""That are done again at once: a call for each post would take ten times as long."""


def entries_of(
    changed: Sequence[Kept] | None, learners: Sequence[Entry] | None, posts: Sequence[Post]
) -> bytes:
    """A frame of the log: which tracks are kept and which learners learn from now on, if others
    than before; then posts.

    Nothing, where it would be empty.
    """
    entries: list[tuple[int, Any]] = []
    if learners is not None:
        entries.append((_LEARN, learners))
    if changed is not None:
        entries.append((_KEEP, [each.to_json() for each in changed]))
    entries += [(_POST, post.packed()) for post in posts]
    return msgspec.msgpack.encode(entries) if entries else b""


def replay(memory: Memory, frames: Iterable[bytes], *, learners: bool = True) -> None:
    """Do what frames say, in their order.

    Args:
        memory: to which.
        frames: of a log.
        learners: whether to what learns too, which is told once its graph is there.

    Raises:
        ValueError: they say something else.
        MemoryError: there is not enough of it for what they say.
    """
    waiting: list[Post] = []
    rows = 0
    for frame in frames:
        for kind, content in msgspec.msgpack.decode(frame):
            if kind == _POST:
                waiting.append(Post.unpacked(content))
                rows += waiting[-1].rows
            if kind != _POST or rows >= _ROWS:
                _observe(memory, waiting, learners)
                waiting, rows = [], 0
            if kind == _KEEP:
                memory.keep([Kept.from_json(each) for each in content])
            elif kind == _LEARN and learners:
                memory.learners.keep(content, {})
    _observe(memory, waiting, learners)


def _observe(memory: Memory, posts: Sequence[Post], learners: bool) -> None:
    """Posts as one, in their order."""
    pieces = chain.from_iterable(post.pieces for post in posts)
    merged = tuple(
        Batch.concat(list(alike)) for _, alike in groupby(pieces, key=lambda p: tuple(p.columns))
    )
    if learners:
        memory.learners.note(merged)
    try:
        memory.observe(Post(merged, sum(map(len, merged)), 0))
    except MemoryError:  # of what was acknowledged nothing is left out
        raise
    except Exception:  # as when it came: it stays left out
        log.exception("an observation was left out")
    memory.positions |= {post.source: post.offset for post in posts if post.source is not None}
