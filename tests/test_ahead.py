"""Work ahead of the one who needs it: in order, bounded, and with its errors in their places."""

import threading

import pytest
import torch

from hcmi.ahead import ahead, on_device


def asked(count: int, taken: list[int]):
    for number in range(count):
        taken.append(number)
        yield number


@pytest.mark.parametrize("threads", [1, 3])
def test_ahead_gives_results_in_order_and_takes_no_more_than_its_depth(threads):
    taken: list[int] = []
    results = ahead(lambda number: number * number, asked(6, taken), depth=2, threads=threads)
    assert next(results) == 0
    assert taken == [0, 1, 2]
    assert [next(results), next(results)] == [1, 4]
    assert taken == [0, 1, 2, 3, 4]
    assert list(results) == [9, 16, 25]


def test_ahead_works_while_nobody_asks():
    done = threading.Event()
    results = ahead(lambda number: number == 1 and done.set(), range(2), depth=1)
    next(results)
    assert done.wait(60)


def test_ahead_raises_an_error_in_its_place():
    results = ahead(lambda number: 1 // number, [2, 1, 0, 1], depth=2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_ahead_ends_its_threads_when_it_is_left():
    results = ahead(lambda number: number, range(5), depth=2)
    next(results)
    results.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_on_device_gives_the_same_tensors_when_they_are_there_already():
    batch = ("a plan", torch.zeros(2), torch.ones(2))
    found = next(on_device(iter([batch]), torch.device("cpu")))
    assert all(one is other for one, other in zip(found, batch, strict=True))
