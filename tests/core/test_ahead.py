"""Items made ahead, in order, with errors where they are due and no thread left over."""

import threading
import weakref
from collections.abc import Iterator

import pytest

from drivetrain.core.ahead import ahead, in_parallel


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


def test_results_come_in_order_and_some_are_made_at_a_time() -> None:
    both = threading.Barrier(2)

    def meet(number: int) -> int:
        both.wait(10)
        return number * number

    assert list(in_parallel(meet, range(20), 2)) == [n * n for n in range(20)]
    assert list(in_parallel(str, [], 2)) == []


def test_no_more_items_are_read_than_are_worked_on() -> None:
    read: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            read.append(number)
            yield number

    found = in_parallel(str, items(), 2)
    assert next(found) == "0"
    assert len(read) <= 5
    found.close()  # pyright: ignore[reportAttributeAccessIssue]


def test_an_error_of_the_function_rises_where_its_result_was_due() -> None:
    before = threading.active_count()
    found = in_parallel(lambda number: 1 // number, [1, 1, 0, 1], 2)
    assert [next(found), next(found)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(found)
    assert threading.active_count() == before


def test_an_error_of_the_items_rises_too() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("torn")

    with pytest.raises(OSError, match="torn"):
        list(in_parallel(str, items(), 2))


def test_who_waits_is_told_so_and_may_stop_what_is_waited_for(monkeypatch) -> None:
    monkeypatch.setattr("drivetrain.core.ahead.SECOND", 0.01)
    go_on, said = threading.Event(), []

    def items() -> Iterator[int]:
        yield 1
        assert go_on.wait(60)
        yield 2
        yield 3

    def waiting() -> None:
        said.append(threading.current_thread())
        if len(said) == 3:
            go_on.set()

    found = ahead(items(), waiting=waiting, stopped=go_on.clear)
    assert list(found) == [1, 2, 3]
    assert set(said) == {threading.current_thread()}
    assert go_on.is_set(), "all items were read, so there was nothing to stop"

    found = ahead(items(), stopped=go_on.set)
    go_on.clear()
    assert next(found) == 1
    found.close()
    assert go_on.is_set()


def test_an_error_of_who_waits_stops_what_is_waited_for(monkeypatch) -> None:
    monkeypatch.setattr("drivetrain.core.ahead.SECOND", 0.01)
    stopped, before = threading.Event(), threading.active_count()

    def items() -> Iterator[int]:
        assert stopped.wait(60)
        yield 1

    def waiting() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        next(ahead(items(), waiting=waiting, stopped=stopped.set))
    assert threading.active_count() == before


def test_an_item_is_not_held_while_the_next_is_waited_for() -> None:
    class Item:
        pass

    gone = threading.Event()

    def items() -> Iterator[Item]:
        yield (first := Item())
        weakref.finalize(first, gone.set)
        del first
        assert gone.wait(60)
        yield Item()

    found = ahead(items())
    next(found)
    assert isinstance(next(found), Item)
