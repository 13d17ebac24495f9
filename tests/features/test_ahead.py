"""One item made ahead, in order, with errors where they are due and no thread left over."""

import threading
from collections.abc import Iterator

import pytest

from drivetrain.features.ahead import ahead


def test_items_come_in_order() -> None:
    assert list(ahead(range(100))) == list(range(100))
    assert list(ahead([])) == []
    assert list(ahead([None, 0])) == [None, 0]


def test_the_next_item_is_made_while_the_last_is_used() -> None:
    made = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        made.set()
        yield 2

    found = ahead(items())
    next(found)
    assert made.wait(10)
    assert list(found) == [2]


def test_an_error_rises_after_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("torn")

    found = ahead(items())
    assert next(found) == 1
    with pytest.raises(OSError, match="torn"):
        next(found)


def test_closing_ends_the_thread_and_closes_the_source() -> None:
    closed = threading.Event()
    before = threading.active_count()

    def items() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    found = ahead(items())
    next(found)
    found.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert closed.is_set()
    assert threading.active_count() == before
