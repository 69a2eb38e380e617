"""One trainer per directory, and an end in good order."""

import os
import signal
import threading
import time

import pytest

from deftly import storage
from deftly.training.checkpoint import Checkpoints
from deftly.training.lifetime import Interrupt, interruptible
from deftly.types import UsageError
from training.toys import ToyStream, fingerprint, log_lines, make_trainer


def test_t15_the_trainer_holds_its_directory(tmp_path):
    def second():
        with pytest.raises(UsageError, match="another trainer"):
            make_trainer(tmp_path).fit()

    make_trainer(tmp_path, stream=ToyStream(calls={3: second})).fit()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_first_signal_is_remembered_and_handlers_are_put_back(number, code):
    before = signal.getsignal(number)
    with interruptible() as interrupt:
        assert interrupt.exit_code is None
        os.kill(os.getpid(), number)
        assert interrupt.exit_code == code
    assert signal.getsignal(number) == before


def test_a_signal_that_comes_while_ranks_agree_is_for_the_next_boundary():
    """It was lost: the others had said that there was none, which was written over it."""
    interrupt = Interrupt()

    def asked_meanwhile(mine):
        interrupt(signal.SIGTERM, None)
        return mine

    assert not interrupt.agree(asked_meanwhile), "the others do not leave at this boundary"
    assert interrupt.agree(lambda mine: mine)
    assert interrupt.exit_code == 143
    other = Interrupt()
    assert other.agree(lambda mine: signal.SIGINT)
    assert other.exit_code == 130


def test_a_second_signal_ends_at_once(monkeypatch):
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    interrupt = Interrupt()
    interrupt(signal.SIGTERM, None)
    assert codes == []
    interrupt(signal.SIGTERM, None)
    assert codes == [143]


def test_a_forked_worker_dies_of_its_own_signal(monkeypatch):
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    interrupt = Interrupt()
    interrupt.owner = -1
    interrupt(signal.SIGTERM, None)
    assert codes == [143]


def test_outside_of_the_main_thread_signals_are_left_alone():
    seen = []

    def run():
        with interruptible() as interrupt:
            seen.append(interrupt.exit_code)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [None]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_t16_a_signal_saves_the_next_step_boundary(tmp_path, number, code):
    started = []

    def asked():
        started.append(time.monotonic())
        os.kill(os.getpid(), number)

    with pytest.raises(SystemExit) as ended:
        make_trainer(tmp_path, stream=ToyStream(calls={5: asked})).fit()
    assert ended.value.code == code
    assert time.monotonic() - started[0] < 10
    assert (tmp_path / "checkpoints" / "last").read_text() == "step-00000006\n"


def test_t16_a_stream_that_dies_of_the_same_signal_costs_nothing(tmp_path):
    def killed():
        os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError("a data worker was killed")

    with pytest.raises(SystemExit) as ended:
        make_trainer(tmp_path, stream=ToyStream(calls={5: killed})).fit()
    assert ended.value.code == 143
    assert (tmp_path / "checkpoints" / "last").read_text() == "step-00000005\n"

    def broken():
        raise RuntimeError("no such file")

    with pytest.raises(RuntimeError, match="no such file"):
        make_trainer(tmp_path, stream=ToyStream(calls={7: broken})).fit(resume=True)


def inside_save(monkeypatch, step, act):
    """`act()` is called in the thread that saves, when the files of that step's checkpoint are about to be written."""
    real = Checkpoints.save

    def save(self, snapshot, *rest):
        if snapshot.step == step:
            act()
        return real(self, snapshot, *rest)

    monkeypatch.setattr(Checkpoints, "save", save)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    directory = tmp_path_factory.mktemp("undisturbed")
    trainer = make_trainer(directory)
    trainer.fit()
    return fingerprint(trainer), log_lines(directory)


def goes_on_to(directory, undisturbed):
    trainer = make_trainer(directory)
    trainer.fit(resume=True)
    assert (fingerprint(trainer), log_lines(directory)) == undisturbed


def test_t16_sigterm_inside_a_save_finishes_it(tmp_path, monkeypatch, undisturbed):
    def asked():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)

    with monkeypatch.context() as patch:
        inside_save(patch, 14, asked)
        with pytest.raises(SystemExit) as ended:
            make_trainer(tmp_path).fit()
    assert ended.value.code == 143
    checkpoints = Checkpoints(tmp_path / "checkpoints", 2)
    last = checkpoints.steps()[-1]
    assert 14 in checkpoints.steps(), "the one under way is whole, and so is that of the boundary that the loop was at"
    assert last >= 14
    for step in (14, last):
        storage.verify(checkpoints.path(step))
    goes_on_to(tmp_path, undisturbed)


def test_t16_a_second_sigterm_ends_at_once(tmp_path, monkeypatch, undisturbed):
    read, write = os.pipe()
    run = os.fork()
    if run == 0:
        inside_save(monkeypatch, 14, lambda: (os.write(write, b"."), time.sleep(60)))
        try:
            make_trainer(tmp_path).fit()
        finally:
            os._exit(0)
    assert os.read(read, 1) == b"."
    os.kill(run, signal.SIGTERM)
    time.sleep(0.3)
    assert os.waitpid(run, os.WNOHANG) == (0, 0), "the first one waits for the save"
    began = time.monotonic()
    os.kill(run, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(run, 0)[1]) == 143
    assert time.monotonic() - began < 5
    os.close(read)
    os.close(write)
    goes_on_to(tmp_path, undisturbed)
