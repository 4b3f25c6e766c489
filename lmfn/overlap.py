"""Overlapping pipeline steps, each in its own thread, a bounded amount ahead of the next."""

import contextlib
import threading
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextvars import ContextVar
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")

_heard: ContextVar[list[warnings.WarningMessage] | None] = ContextVar("_heard", default=None)


def ahead(items: Iterable[T], limit: float, weigh: Callable[[T], float] = lambda _: 1) -> Generator[T, None, None]:
    """The same items, produced ahead by a thread, which pauses while items not yet taken weigh `limit` or more; they
    therefore weigh less than `limit` plus one item.

    An error is raised in place of the item that caused it. Closing the generator ends the thread after its current
    item.
    """
    made: SimpleQueue[tuple[T, float] | BaseException | None] = SimpleQueue()
    taken = threading.Condition()
    waiting, closed = 0.0, False

    def may_go_on() -> bool:
        return closed or waiting < limit

    def make() -> None:
        nonlocal waiting
        iterator = iter(items)
        try:
            while True:
                with taken:
                    taken.wait_for(may_go_on)
                    if closed:
                        return
                try:
                    item = next(iterator)
                except StopIteration:
                    made.put(None)
                    return
                weight = weigh(item)
                with taken:
                    waiting += weight
                made.put((item, weight))
                del item
        except BaseException as error:
            made.put(error)
        finally:
            if hasattr(iterator, "close"):
                iterator.close()

    thread = threading.Thread(target=make, name="ahead", daemon=True)
    thread.start()
    try:
        while (got := made.get()) is not None:
            if isinstance(got, BaseException):
                raise got
            item, weight = got
            with taken:
                waiting -= weight
                taken.notify()
            del got
            yield item
    finally:
        with taken:
            closed = True
            taken.notify()
        thread.join()


@contextlib.contextmanager
def warnings_by_thread(*categories: type[Warning]) -> Iterator[None]:
    """Within the context, `heard` works in several threads at once and records every warning of these categories.

    `warnings.catch_warnings(record=True)` would record those of all threads.
    """
    with warnings.catch_warnings():
        for category in categories:
            warnings.simplefilter("always", category)
        show = warnings.showwarning

        def hear(message, category, filename, lineno, file=None, line=None):  # type: ignore[no-untyped-def]
            if (messages := _heard.get()) is None:
                show(message, category, filename, lineno, file, line)
            else:
                messages.append(warnings.WarningMessage(message, category, filename, lineno, file, line))

        warnings.showwarning = hear
        yield


@contextlib.contextmanager
def heard(messages: list[warnings.WarningMessage]) -> Iterator[None]:
    """Within the context, the warnings of this thread are added to the list; see `warnings_by_thread`."""
    token = _heard.set(messages)
    try:
        yield
    finally:
        _heard.reset(token)
