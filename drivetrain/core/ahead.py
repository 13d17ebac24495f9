"""Iterators that make their next items in threads while the caller uses the last one."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


SECOND = 1.0
"""How often who waits for an item is told so."""


def ahead(
    items: Iterable[T],
    *,
    waiting: Callable[[], None] | None = None,
    stopped: Callable[[], None] | None = None,
) -> Generator[T, None, None]:
    """The same items in the same order, one made ahead; errors rise where the item was due.

    The thread lives while the iterator is being read: it ends with the last item, with an error,
    and when the iterator is closed or dropped.

    Args:
        items: are made in a thread of their own.
        waiting: is called, in the caller's thread, each second for which an item is waited for.
        stopped: is called where not all items are read, before the end of the one that is being
            made is waited for: it may bring that about.
    """
    source = iter(items)
    nothing = object()
    try:
        with ThreadPoolExecutor(1, thread_name_prefix="drivetrain-ahead") as thread:
            try:
                pending = thread.submit(next, source, nothing)
                while (item := _made(pending, waiting)) is not nothing:
                    pending = thread.submit(next, source, nothing)
                    yield item  # pyright: ignore[reportReturnType]
                    del item  # it is not held while the next one is waited for
            except BaseException:
                if stopped is not None:
                    stopped()
                raise
    finally:
        _close(source)


def _made(pending: Future[R], waiting: Callable[[], None] | None) -> R:
    while waiting is not None and not wait((pending,), SECOND).done:
        waiting()
    return pending.result()


def in_parallel(function: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """``function`` of each item, in order, some at a time; it should leave the interpreter's lock.

    At most ``threads + 1`` items are held. Errors and the end of the threads are as with
    :func:`ahead`.
    """
    source = ahead(items)
    held: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="drivetrain-map")
    try:
        for item in source:
            held.append(pool.submit(function, item))
            if len(held) > threads:
                yield held.popleft().result()
        while held:
            yield held.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        _close(source)


def _close(source: Iterator[object]) -> None:
    if isinstance(source, Generator):
        source.close()
