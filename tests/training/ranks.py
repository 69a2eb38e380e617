"""Two processes that train together, as a launcher starts them, but forked from one interpreter: importing torch is most of the time."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

FORK = """
import importlib, os, sys, traceback
sys.path[:0] = sys.argv[1:2]
import torch
import torch._dynamo  # which every optimizer imports: once, before the ranks part
torch.set_num_threads(1)
module, _, name = sys.argv[2].partition(":")
function = getattr(importlib.import_module(module), name)
ranks = []
for rank in range(int(os.environ["WORLD_SIZE"])):
    ranks.append(os.fork())
    if ranks[-1] == 0:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
        code = 0
        try:
            function(*sys.argv[3:])
        except SystemExit as ended:
            code = ended.code or 0
        except BaseException as error:
            traceback.print_exc()
            print(f"rank {rank}: {type(error).__name__}: {error}", file=sys.stderr)
            code = 1
        sys.stderr.flush()
        os._exit(code)
print(*[os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in ranks])
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_ranks(function: str, *words: str | Path, ranks: int = 2, timeout: float = 200) -> tuple[list[int], str]:
    """Call `module:function` with `words` in every rank. Returns the exit codes and everything that was written to stderr."""
    environment = {
        **os.environ,
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
    arguments = [sys.executable, "-W", "ignore", "-c", FORK, str(Path(__file__).parents[1]), function, *map(str, words)]
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment
    )
    try:
        out, error = process.communicate(timeout=timeout)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return [int(word) for word in out.split()], error
