"""Ranks that do not find each other end soon, in one line that says who waited for whom and what to do."""

import os
import socket
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from deftly import storage
from deftly.training import joining
from deftly.training.guard import TrainingError
from deftly.types import UsageError
from guards import guards
from training.ranks import free_port, run_ranks


@pytest.fixture
def as_rank(monkeypatch):
    def become(rank: int, port: int, address: str = "127.0.0.1") -> None:
        for name, value in {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "MASTER_ADDR": address, "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, str(value))

    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    return become


@pytest.mark.parametrize("address", ["127.0.0.1", ""])
def test_a_port_that_is_somebody_elses_is_named_at_once(as_rank, address):
    with socket.create_server((address, 0)) as taken:
        port = taken.getsockname()[1]
        as_rank(0, port)
        began = time.monotonic()
        with pytest.raises(UsageError, match=rf"rank 0 cannot listen at 127\.0\.0\.1:{port} \(address already in use\): set MASTER_PORT"):
            joining.meeting_place(60.0)
        assert time.monotonic() - began < 20


@guards("training.joining.all")
@pytest.mark.timeout(60)
def test_rank_0_says_for_whom_it_waited(as_rank):
    as_rank(0, free_port(), "no-such-host.invalid")  # which is for the others to know
    with pytest.raises(TrainingError, match=r"rank 0 waited 0\.3 s at no-such-host\.invalid:\d+ for rank 1 of 2: .*rank_timeout_s"):
        joining.meeting_place(0.3)


def alone(folder: str) -> None:
    """Rank 1 goes where nobody is, to a name that nobody has, and to somebody who listens and says nothing. In a process of its own, since
    torch goes on trying in a thread, and prints that it failed."""
    if os.environ["RANK"] == "0":
        return
    said = []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for address, port in (("127.0.0.1", free_port()), ("no-such-host.invalid", free_port()), ("127.0.0.1", silent.getsockname()[1])):
            os.environ.update(MASTER_ADDR=address, MASTER_PORT=str(port))
            with pytest.raises(TrainingError) as waited:
                joining.meeting_place(0.3)
            said.append([f"{address}:{port}", str(waited.value)])
    storage.write_json(Path(folder) / "said.json", said)


def test_another_rank_says_that_nobody_is_there(tmp_path):
    codes, error = run_ranks("training.test_joining:alone", tmp_path)
    assert codes == [0, 0], error
    said = storage.read_json(tmp_path / "said.json")
    assert len(said) == 3
    for place, text in said:
        assert text.startswith(
            f"rank 1 waited 0.3 s for rank 0 at {place}, where nothing of this training answers: start rank 0, or set MASTER_"
        )


@guards("training.joining.twice")
def test_two_trainings_at_one_port_are_told_apart(as_rank):
    port = free_port()
    store = dist.TCPStore("127.0.0.1", port, 2, True, timedelta(seconds=20), wait_for_workers=False)
    store.add("deftly/rank 0 has come", 1)
    as_rank(1, port)
    joining.meeting_place(20.0)
    with pytest.raises(UsageError, match=rf"another process at 127\.0\.0\.1:{port} is rank 1 already, or .* MASTER_PORT of its own"):
        joining.meeting_place(20.0)


def test_who_comes_late_is_waited_for(as_rank):
    port = free_port()

    def late() -> None:
        time.sleep(0.3)
        made.append(dist.TCPStore("127.0.0.1", port, 2, True, timedelta(seconds=20), wait_for_workers=False))
        made[0].add("deftly/rank 0 has come", 1)

    made: list[dist.Store] = []
    thread = threading.Thread(target=late)
    thread.start()
    as_rank(1, port)
    store = joining.meeting_place(30.0)
    thread.join()
    assert store is not None
    store.set("a", "b")
    assert made[0].get("a") == b"b"


def test_torchrun_has_a_meeting_place_of_its_own(as_rank, monkeypatch):
    as_rank(1, free_port())
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert joining.meeting_place(0.1) is None
