import threading

import pytest
import torch

from condmis_interp.threads import side_by_side


def test_results_come_in_order_and_torch_has_its_threads_again():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        both = threading.Barrier(2, timeout=20)  # neither job goes on before the other has begun

        def work(job):
            if job < 2:
                both.wait()
            return job, torch.get_num_threads()

        assert side_by_side(work, range(5)) == [(i, 1) for i in range(5)]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_when_one_fails_the_others_are_told_and_those_that_wait_never_begin():
    stop, begun = threading.Event(), []

    def work(job):
        begun.append(job)
        if job == 0:
            raise KeyboardInterrupt
        assert stop.wait(20)

    with pytest.raises(KeyboardInterrupt):
        side_by_side(work, range(100), give_up=stop.set)
    assert stop.is_set()
    assert len(begun) < 100
