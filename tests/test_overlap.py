"""Steps that run ahead of each other in threads."""

import threading
import warnings

import pytest

from lmfn.overlap import ahead, heard, warnings_by_thread


def test_items_come_in_order_and_the_maker_keeps_its_distance() -> None:
    made = []

    def make():
        for n in range(50):
            made.append(n)
            yield n

    taken = []
    for n in ahead(make(), 3):
        taken.append(n)
        assert len(made) <= len(taken) + 4
    assert taken == list(range(50))


def test_the_distance_is_a_weight() -> None:
    made = []
    one_is_there = threading.Event()

    def make():
        for n in range(4):
            made.append(n)
            yield n
            one_is_there.set()

    items = ahead(make(), 10, weigh=lambda _: 10)
    assert next(items) == 0
    assert one_is_there.wait(10)
    assert len(made) <= 3  # one taken, one with the full weight, none behind it
    items.close()
    assert not any(thread.name.startswith("ahead") for thread in threading.enumerate())


def test_an_error_comes_in_its_place_and_closing_ends_the_maker() -> None:
    closed = []

    def make(last):
        try:
            yield from range(last)
            raise OSError("no more")
        finally:
            closed.append(last)

    items = ahead(make(2), 8)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(OSError, match="no more"):
        next(items)
    items = ahead(make(1000), 2)
    next(items)
    items.close()
    assert closed == [2, 1000]


def test_warnings_are_those_of_the_thread() -> None:
    def step(number):
        messages = []
        with heard(messages):
            for _ in range(3):
                warnings.warn(f"of step {number}", UserWarning, stacklevel=1)
        return {str(message.message) for message in messages}, len(messages)

    with warnings_by_thread(UserWarning):
        for number, found in zip(range(5), ahead(map(step, range(5)), 2), strict=True):
            assert step(-1) == ({"of step -1"}, 3)
            assert found == ({f"of step {number}"}, 3)
        with pytest.warns(UserWarning, match="of nobody"):
            warnings.warn("of nobody", UserWarning, stacklevel=1)
