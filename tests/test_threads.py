"""Batches side by side: in order, with torch's threads shared among them, and no further than the caller goes."""

import threading

import pytest
import torch

from vapi_core.threads import parallel_map


@pytest.fixture(autouse=True)
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("count", "each_has"), [(1, 4), (2, 2), (3, 1), (9, 1)])
def test_things_side_by_side_share_torchs_threads(count, each_has):
    meet = threading.Barrier(min(count, 4))

    def work(number):
        if number < meet.parties:
            meet.wait(timeout=60)  # all of them are at work at the same time
        return number, torch.get_num_threads()

    with parallel_map("cpu", count) as each:
        assert list(each(work, range(count))) == [(number, each_has) for number in range(count)]
    assert torch.get_num_threads() == 4


def test_after_an_error_nothing_begins_any_more():
    begun, go_on = [], threading.Event()

    def work(number):
        begun.append(number)
        if number:
            go_on.wait(timeout=60)
        return number

    with pytest.raises(KeyboardInterrupt), parallel_map("cpu", 100) as each:  # noqa: PT012
        for _ in each(work, range(100)):
            threading.Timer(0.0, go_on.set).start()
            raise KeyboardInterrupt
    assert len(begun) < 100
    assert torch.get_num_threads() == 4


def test_on_a_gpu_one_thing_follows_another():
    with parallel_map("cuda", 8) as each:
        assert each is map
