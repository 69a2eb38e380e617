"""--executor: what it may say, and how SIGTERM ends a command that uses one."""

import os
import signal

import pytest

from deftly.cli import data
from deftly.cli.executor import executor_of, using
from deftly.sim.processes import Local
from deftly.types import UsageError
from guards import guards


def test_what_it_may_say() -> None:
    pytest.importorskip("ray")
    from deftly.sim.cluster import Ray

    assert isinstance(executor_of("local"), Local)
    for text, address in (("ray", None), ("ray=auto", "auto"), ("ray=10.0.0.5:6379", "10.0.0.5:6379")):
        executor = executor_of(text)
        assert isinstance(executor, Ray)
        assert executor.address == address


@guards("executor.unknown")
@pytest.mark.parametrize("text", ["", "dask", "ray=", "local=2", "Ray"])
def test_what_it_may_not_say(text: str) -> None:
    with pytest.raises(UsageError, match="give local, ray, ray=HOST:PORT or ray=auto"):
        executor_of(text)


def test_the_commands_refuse_before_they_touch_anything(tmp_path) -> None:
    with pytest.raises(UsageError, match="--executor 'dask'"):
        data.main(["generate", "--episodes", "1", "--out", str(tmp_path / "data"), "--executor", "dask"])
    assert not (tmp_path / "data").exists()


def stopped_by(number: int, closed: list[str]) -> None:
    with using("local"):
        try:
            os.kill(os.getpid(), number)
            signal.pause()
        except SystemExit:
            closed.append("generators end")
            raise SystemExit(1) from None  # what Ray makes of it


def test_sigterm_ends_the_block_with_143_and_the_handler_is_put_back(capsys: pytest.CaptureFixture[str]) -> None:
    before, closed = signal.getsignal(signal.SIGTERM), []
    with pytest.raises(SystemExit) as caught:
        stopped_by(signal.SIGTERM, closed)
    assert caught.value.code == 143
    assert closed
    assert signal.getsignal(signal.SIGTERM) is before
    assert capsys.readouterr().err.startswith("deftly: stopped by SIGTERM")


def test_other_exits_keep_their_code() -> None:
    with pytest.raises(SystemExit) as caught, using("local"):
        raise SystemExit(3)
    assert caught.value.code == 3
