"""How ranks find each other: rank 0 listens at MASTER_PORT, the others come to MASTER_ADDR, and nobody waits in silence or for ever.

torchrun keeps a meeting place of its own, and its ranks meet there. What ranks do once they have met is in `distributed.py`.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

from torch.distributed import Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from deftly.training.guard import TrainingError
from deftly.types import UsageError

PAUSE_S = 0.1  # between two looks
SLACK_S = 5.0  # that torch tries longer than we wait, so that it does not print how it failed
STORE_S = 86400.0  # once all are there, one of them may come to the next message much later than another (it decodes a dataset)


def meeting_place(timeout_s: float) -> Store | None:
    """The store through which all ranks of the environment have met; None where torchrun has one.

    Raises `UsageError` where rank 0 cannot listen or two processes have the same rank, and `TrainingError` where somebody has not come
    after `timeout_s`: one line that says who waited for whom.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return None
    until = time.monotonic() + timeout_s
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = host(ranks, timeout_s) if rank == 0 else visit(rank, ranks, timeout_s)
    if store.add(f"deftly/rank {rank} has come", 1) > 1:  # guard: training.joining.twice
        raise UsageError(
            f"another process at {where()} is rank {rank} already, or was and died: start all processes again, each with a RANK of its "
            "own, and each training of a machine with a MASTER_PORT of its own"
        )
    roll_call(store, rank, ranks, timeout_s, until)
    store.set_timeout(timedelta(seconds=STORE_S))
    return store


def where() -> str:
    return f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"


def host(ranks: int, timeout_s: float) -> Store:
    """Rank 0's own store, at MASTER_PORT of this machine."""
    try:
        # By the loopback: how this machine is called by the others need not be known to itself. Not multi_tenant, which torch makes its own
        # stores: that one waits where the port is somebody else's.
        port, patience = int(os.environ["MASTER_PORT"]), timedelta(seconds=timeout_s)
        return TCPStore("localhost", port, ranks, True, patience, wait_for_workers=False)
    except RuntimeError as error:
        why = re.search(r"message: ([^\n]{1,80})", str(error))
        raise UsageError(
            f"rank 0 cannot listen at {where()} ({why[1] if why else 'no reason is given'}): set MASTER_PORT to a free port above 1023, "
            "the same for all processes"
        ) from None


def visit(rank: int, ranks: int, timeout_s: float) -> Store:
    """Rank 0's store, once it is there."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    patience = timedelta(seconds=timeout_s + SLACK_S)
    store = within(lambda: TCPStore(address, port, ranks, False, patience, wait_for_workers=False), timeout_s)
    if store is None:
        raise TrainingError(
            f"rank {rank} waited {timeout_s:g} s for rank 0 at {where()}, where nothing of this training answers: start rank 0, or set "
            "MASTER_ADDR and MASTER_PORT to where it listens"
        )
    return store


def within(connect: Callable[[], Store], seconds: float) -> Store | None:
    """What comes of `connect`, or None where nothing has after `seconds`: torch waits for ever where somebody listens and says nothing."""
    found: list[Store] = []

    def work() -> None:
        with suppress(RuntimeError):
            found.append(connect())

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else None


def roll_call(store: Store, rank: int, ranks: int, timeout_s: float, until: float) -> None:
    """Come back when every rank has come."""
    missing = list(range(ranks))
    while True:
        missing = [other for other in missing if not store.check([f"deftly/rank {other} has come"])]
        if not missing:
            return
        if time.monotonic() > until:  # guard: training.joining.all
            names = ", ".join(map(str, missing[:8])) + (" and more" if len(missing) > 8 else "")
            raise TrainingError(
                f"rank {rank} waited {timeout_s:g} s at {where()} for rank {names} of {ranks}: start as many processes as WORLD_SIZE says, "
                "with the same MASTER_ADDR and MASTER_PORT, or raise training.rank_timeout_s"
            )
        time.sleep(PAUSE_S)
