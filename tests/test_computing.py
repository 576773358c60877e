"""What is made one ahead: in order, in another thread, with errors where values would have come."""

from __future__ import annotations

import threading

import pytest

from kosine.computing import one_ahead


@pytest.mark.parametrize("threaded", [False, True])
@pytest.mark.parametrize("count", range(5))
def test_values_come_in_order(threaded, count):
    assert list(one_ahead(lambda x: x * x, range(count), threaded=threaded)) == [
        x * x for x in range(count)
    ]


def test_the_next_is_made_while_this_one_is_used():
    made = [threading.Event() for _ in range(3)]
    threads = set()

    def make(number: int) -> int:
        threads.add(threading.current_thread())
        made[number].set()
        return number

    for number in one_ahead(make, range(3), threaded=True):
        assert all(event.wait(60) for event in made[number : number + 2])
    assert threading.current_thread() not in threads
    assert not any(thread.is_alive() for thread in threads)


def test_one_item_needs_no_thread():
    threads = []
    list(one_ahead(lambda _: threads.append(threading.current_thread()), [0], threaded=True))
    list(one_ahead(lambda _: threads.append(threading.current_thread()), range(3), threaded=False))
    assert threads == 4 * [threading.current_thread()]


@pytest.mark.parametrize("threaded", [False, True])
def test_an_error_comes_in_its_turn(threaded):
    def make(number: int) -> float:
        return 1 / (2 - number)

    values = one_ahead(make, range(9), threaded=threaded)
    assert next(values) == 0.5
    assert next(values) == 1
    with pytest.raises(ZeroDivisionError):
        next(values)
