import itertools
import pickle

import pytest
import torch

from deftly.data.workers import Answers, Jobs, Refusal, Workers
from deftly.types import DataError, UsageError


class Squares:
    """A source that refuses 9."""

    def __getitem__(self, job: int) -> dict[str, torch.Tensor]:
        if job == 9:
            raise DataError("frame 9 is broken")
        return {"square": torch.tensor(job**2)}


@pytest.mark.parametrize("count", [0, 1, 2])
def test_results_come_in_order_and_errors_in_one_line(count):
    workers = Workers(Squares(), 1, 2, count)
    assert [int(workers.next()["square"]) for _ in range(4)] == [1, 9, 25, 49]
    with pytest.raises(DataError, match=r"^frame 9 is broken$"):
        workers.next()
    workers.close()


def test_stopped_workers_go_on_where_they_were():
    workers = Workers(Squares(), 0, 1, 1)
    assert [int(workers.next()["square"]) for _ in range(2)] == [0, 1]
    workers.close()
    assert int(workers.next()["square"]) == 4
    workers.close()


def test_jobs_go_on_for_ever():
    assert list(itertools.islice(Jobs(3, 4), 3)) == [3, 7, 11]


def test_a_refusal_survives_the_way_between_processes():
    refusal = pickle.loads(pickle.dumps(Answers(Squares())[9]))
    assert isinstance(refusal, Refusal)
    assert (refusal.kind, refusal.message) == (DataError, "frame 9 is broken")
    assert Refusal(UsageError("x")).kind is UsageError
