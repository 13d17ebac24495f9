"""Iterators that make their next items in threads while the caller uses the last one."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ahead(items: Iterable[T]) -> Iterator[T]:
    """The same items in the same order, one made ahead; errors rise where the item was due.

    The thread lives while the iterator is being read: it ends with the last item, with an error,
    and when the iterator is closed or dropped.
    """
    source = iter(items)
    nothing = object()
    try:
        with ThreadPoolExecutor(1, thread_name_prefix="drivetrain-ahead") as thread:
            pending = thread.submit(next, source, nothing)
            while (item := pending.result()) is not nothing:
                pending = thread.submit(next, source, nothing)
                yield item  # pyright: ignore[reportReturnType]
    finally:
        _close(source)


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
