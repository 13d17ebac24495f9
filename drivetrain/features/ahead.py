"""An iterator that makes its next item in a thread while the caller uses the last one."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


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
        close = getattr(source, "close", None)
        if close is not None:
            close()
