"""Without ranks everything is the identity; two ranks train what one does."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from deftly import randomness
from deftly.training import distributed
from deftly.training.checkpoint import Checkpoints
from training.toys import ToyPolicy, ToyStream, TwoTerms, make_batch, make_trainer, small_config


class Shard(ToyStream):
    """Rank r of n sees every n-th sample of each batch of eight."""

    def __init__(self, rank: int, ranks: int) -> None:
        super().__init__(dtype=torch.float64)
        self.rank, self.ranks = rank, ranks

    def next(self):
        positions = torch.arange(8)[self.rank :: self.ranks]
        keys = randomness.sample_keys(0, torch.full_like(positions, self.position), positions)
        self.position += 1
        return make_batch(keys, self.dtype)


def run(directory: Path, rank: int, ranks: int):
    torch.manual_seed(0)
    objective = TwoTerms(ToyPolicy(dropout=0.0, batch_norm=False)).double()
    config = small_config(steps=10, validate_every=None, checkpoint_every=None, log_every=1)
    trainer = make_trainer(directory, objective=objective, stream=Shard(rank, ranks), config=config, validation=None)
    return trainer, trainer.fit()


def test_one_process_is_the_identity():
    value = torch.tensor([1.0, 2.0])
    assert distributed.sum_over_ranks(value) is value
    parameter = nn.Parameter(torch.zeros(1))
    distributed.sum_gradients([parameter])
    assert parameter.grad is None
    assert (distributed.active(), distributed.rank(), distributed.world_size()) == (False, 0, 1)


RANKS = """
import os, sys, traceback
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import torch
import torch._dynamo  # which every optimizer imports: once, before the ranks part
import torch.distributed as dist
from training.test_distributed import run
torch.set_num_threads(1)
ranks = []
for rank in range(2):
    ranks.append(os.fork())
    if ranks[-1] == 0:
        try:
            dist.init_process_group("gloo", init_method=sys.argv[3], rank=rank, world_size=2)
            run(Path(sys.argv[2]), rank, 2)
            dist.destroy_process_group()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in ranks))
"""


def test_two_ranks_train_what_one_does(tmp_path):
    whole, expected = run(tmp_path / "one", 0, 1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    arguments = [sys.executable, "-W", "ignore", "-c", RANKS, str(Path(__file__).parents[1]), str(tmp_path / "two"), address]
    ranks = subprocess.Popen(arguments, stderr=subprocess.PIPE, start_new_session=True)
    try:
        _, error = ranks.communicate(timeout=150)
        assert ranks.returncode == 0, error.decode()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(ranks.pid, signal.SIGKILL)
    found = Checkpoints(tmp_path / "two" / "checkpoints", 2).newest(pytest.fail)
    assert found is not None
    assert found.raw is not None
    for name, tensor in whole.snapshot().raw.items():  # type: ignore[union-attr]
        assert (tensor - found.raw[name]).abs().max() < 1e-10, name
    assert found.trainer["samples"] == expected["samples"] == 80
    assert found.trainer["last"]["loss"] == pytest.approx(expected["loss"], abs=1e-10)
