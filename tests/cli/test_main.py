"""The `deftly` command: what it lists, what it suggests, and how mistakes end."""

from __future__ import annotations

import errno
import importlib.metadata
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import deftly
from deftly.cli import main as cli
from deftly.training.guard import TrainingError
from deftly.types import DataError, UsageError


def outcome(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of one command line."""
    try:
        cli.main(list(arguments))
        code = 0
    except SystemExit as error:
        code = int(error.code or 0)
    return (code, *capsys.readouterr())


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch):
    """Makes every command raise what the test says."""

    def install(error: BaseException) -> None:
        def run(command: str, arguments: list[str]) -> None:
            raise error

        monkeypatch.setattr(cli, "run", run)

    return install


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_every_command_in_one_line(capsys, arguments: list[str]):
    code, out, err = outcome(capsys, *arguments)
    assert (code, err) == (0, "")
    for name, text in cli.COMMANDS.items():
        assert any(line.split(maxsplit=1) == [name, text] for line in out.splitlines())


def test_the_commands_are_the_modules():
    shared = {"__init__", "main", "executor"}
    modules = {path.stem for path in (Path(deftly.__file__).parent / "cli").glob("*.py")} - shared
    assert set(cli.COMMANDS) == modules


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_every_command_explains_itself(capsys, command: str):
    code, out, err = outcome(capsys, command, "--help")
    assert code == 0
    assert f"usage: deftly {command}" in out.replace("\x1b[1m", "").replace("\x1b[0m", "")
    assert err == ""


def test_versions_agree(capsys):
    assert outcome(capsys, "--version") == (0, f"deftly {deftly.__version__}\n", "")
    assert importlib.metadata.version("deftly") == deftly.__version__


@pytest.mark.parametrize(("word", "near"), [("tran", "train"), ("evalute", "evaluate"), ("docter", "doctor"), ("demos", "demo")])
def test_a_wrong_word_suggests_the_nearest(capsys, word: str, near: str):
    code, out, err = outcome(capsys, word)
    assert (code, out) == (2, "")
    assert err == f"deftly: there is no command {word!r}; did you mean {near!r}?\n"


def test_a_strange_word_points_to_the_help(capsys):
    assert "deftly --help" in outcome(capsys, "xyzzy")[2]


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (UsageError("runs/x: no such run"), 2, "deftly: runs/x: no such run\n"),
        (DataError("a.parquet: truncated"), 65, "deftly: a.parquet: truncated\n"),
        (KeyboardInterrupt(), 130, "deftly: interrupted; the same command continues from what is saved\n"),
    ],
)
def test_mistakes_are_one_line(capsys, raising, error: BaseException, code: int, text: str):
    raising(error)
    assert outcome(capsys, "train") == (code, "", text)


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/out"), 2, "/out: Permission denied; change its permissions,"),
        (FileExistsError(errno.EEXIST, "File exists", Path("/out")), 2, "/out: File exists; check the path,"),
        (OSError(errno.EROFS, "Read-only file system", b"/out"), 2, "/out: Read-only file system; choose a path on a disk that"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "No space left on device; make room,"),
        (OSError(errno.EIO, "Input/output error", "a.mp4"), 65, "a.mp4: Input/output error; the disk"),
        (OSError("two\nlines"), 2, "two lines; check"),
        (TrainingError("step 3: 5 steps in a row had a non-finite loss"), 70, "step 3: 5 steps in a row had a non-finite loss\n"),
    ],
)
def test_what_the_machine_refuses_is_one_line_with_a_remedy(capsys, raising, error: Exception, code: int, text: str):
    raising(error)
    found, _, err = outcome(capsys, "train")
    assert found == code
    assert err.startswith(f"deftly: {text}")
    assert err.count("\n") == 1


def test_a_lost_worker_is_our_own_fault(capsys, raising):
    raising(ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"))
    code, _, err = outcome(capsys, "train")
    assert code == 70
    assert "internal error" in err


def test_our_own_faults_are_one_line_too(capsys, raising):
    raising(RuntimeError("two\n  lines"))
    code, _, err = outcome(capsys, "train")
    assert code == 70
    assert err.startswith("deftly: internal error: RuntimeError: two lines (")
    assert err.count("\n") == 1


@pytest.mark.parametrize("place", [0, 1])
def test_traceback_shows_where(capsys, raising, place: int):
    raising(UsageError("no such run"))
    words = ["train"]
    words.insert(place, "--traceback")
    code, _, err = outcome(capsys, *words)
    assert code == 2
    assert "Traceback" in err
    assert err.endswith("deftly: no such run\n")


def test_exit_codes_of_commands_pass(capsys, raising):
    raising(SystemExit(143))
    assert outcome(capsys, "train")[0] == 143


def test_a_flag_that_does_not_exist_is_a_usage_error(capsys):
    assert outcome(capsys, "doctor", "--directry", "x")[0] == 2


def test_help_loads_nothing_heavy():
    code = "import sys\nfrom deftly.cli.main import main\nmain(['--help'])\nprint([n for n in ('torch', 'numpy') if n in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"


def test_a_reader_that_leaves_is_no_error():
    """`deftly --help | head -1`: no traceback, no complaint while the interpreter exits."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        command = [sys.executable, "-m", "deftly.cli.main", "--help"]
        process = subprocess.Popen(command, stdout=closed, stderr=subprocess.PIPE, text=True, preexec_fn=restore_sigpipe)
        _, err = process.communicate(timeout=60)
    assert err == ""
    assert process.returncode == 1


def restore_sigpipe() -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # as Python starts everywhere: the write fails instead of ending the process


def test_an_error_that_quotes_a_file_is_no_order_to_the_terminal(capsys):
    with pytest.raises(SystemExit):
        cli.fail("a.json: \x1b]0;title\x07 is no number\nand more", 65)
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert "a.json: ?]0;title? is no number\nand more" in err
