"""The `deftly` command: finds the sub-command's module and turns mistakes into one line and an exit code.

Nothing of ours is imported before it is needed, so that `deftly --help` answers at once. A sub-command is a module `deftly.cli.NAME` with
`main(arguments: list[str]) -> None`, which reads its own flags.

Exit codes: 0 done, 2 usage, 65 bad data, 70 internal or training failed, 130 interrupted by Ctrl-C, 143 stopped by SIGTERM after saving.
"""

from __future__ import annotations

import difflib
import errno
import os
import sys
import traceback

COMMANDS = {
    "demo": "the whole path in one go: generate, train, evaluate, report",
    "data": "generate, import or look at demonstrations",
    "train": "run a recipe, repeat a run, or train on your own dataset",
    "evaluate": "measure a trained policy in closed loop, beside its baselines",
    "play": "let a policy act on your own sentence and watch it",
    "report": "write a run's page: one self-contained HTML file",
    "runs": "list runs and what became of them, or put some side by side",
    "diagnose": "what is wrong with a run: verdicts, evidence, remedies",
    "doctor": "look at this machine: what works, what does not, how to mend it",
}
# What to do about an error of the operating system; the rest is REMEDY.
REMEDIES = {
    errno.EACCES: "change its permissions, or choose another path",
    errno.EPERM: "change its permissions, or choose another path",
    errno.EROFS: "choose a path on a disk that can be written",
    errno.ENOSPC: "make room, or choose a path on another disk",
    errno.EDQUOT: "make room, or choose a path on another disk",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.EIO: "the disk cannot read or write it: check the disk, or use a copy",
}
REMEDY = "check the path, then repeat the command"
SEE_HELP = "`deftly --help` lists the commands"


def main(arguments: list[str] | None = None) -> None:
    """Run one command; ends by SystemExit when there is a mistake to report."""
    arguments = sys.argv[1:] if arguments is None else arguments
    show_traceback = "--traceback" in arguments
    arguments = [argument for argument in arguments if argument != "--traceback"]
    try:
        dispatch(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader left (`deftly ... | head`): point stdout at nothing, or the interpreter complains while it exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        fail("interrupted; the same command continues from what is saved", 130)
    except Exception as error:
        if show_traceback:
            traceback.print_exc()
        fail(*explain(error))


def dispatch(arguments: list[str]) -> None:
    """Answer `--help` and `--version`, or hand the rest of the words to the command that the first one names."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
    elif arguments[0] in ("-V", "--version"):
        from deftly import __version__

        print(f"deftly {__version__}")
    elif arguments[0] in COMMANDS:
        run(arguments[0], arguments[1:])
    else:
        near = difflib.get_close_matches(arguments[0], COMMANDS, n=1)
        fail(f"there is no command {arguments[0]!r}; {f'did you mean {near[0]!r}?' if near else SEE_HELP}", 2)


def run(command: str, arguments: list[str]) -> None:
    """Import one command's module, and only that one, and call it."""
    match command:
        case "demo":
            from deftly.cli.demo import main as command_main
        case "data":
            from deftly.cli.data import main as command_main
        case "train":
            from deftly.cli.train import main as command_main
        case "evaluate":
            from deftly.cli.evaluate import main as command_main
        case "play":
            from deftly.cli.play import main as command_main
        case "report":
            from deftly.cli.report import main as command_main
        case "runs":
            from deftly.cli.runs import main as command_main
        case "diagnose":
            from deftly.cli.diagnose import main as command_main
        case _:
            from deftly.cli.doctor import main as command_main
    command_main(arguments)


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "deftly trains robots to follow instructions: from demonstrations to a measured policy.",
            "",
            "usage: deftly COMMAND ...",
            "",
            *lines,
            "",
            "`deftly COMMAND --help` shows its flags; --version prints the version; --traceback, anywhere, shows where an error came from.",
        ]
    )


def explain(error: Exception) -> tuple[str, int]:
    """An error as one line for the user, and its exit code."""
    from deftly.training.guard import TrainingError
    from deftly.training.memory import is_out_of_memory
    from deftly.types import UsageError

    text = " ".join(str(error).split())
    if isinstance(error, UsageError):
        return str(error), error.exit_code
    if isinstance(error, TrainingError):
        return text, 70
    if is_out_of_memory(error):
        said = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        return f"out of memory ({said}); choose a smaller policy, data.batch_size or image_size where this trains, or free memory", 70
    if isinstance(error, OSError) and not isinstance(error, ConnectionError):  # a connection is to a process of our own
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes | os.PathLike) else ""
        reason = error.strerror or text or type(error).__name__
        return f"{where}{reason}; {REMEDIES.get(error.errno or 0, REMEDY)}", 65 if error.errno == errno.EIO else 2
    return f"internal error: {type(error).__name__}: {text} (--traceback shows where; it is worth a report)", 70


def fail(message: str, code: int) -> None:
    from deftly.foreign import printable_lines

    print(f"deftly: {printable_lines(message)}", file=sys.stderr)  # it may quote a file of somebody else's
    sys.exit(code)


if __name__ == "__main__":
    main()
