"""Starts commands by forking one process that has imported everything: seconds less for each than a new interpreter takes.

python tests/nursery.py     is that process: a JSON line in, a JSON line out
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn


class Nursery:
    """`start` is a `killing.Start`."""

    def __init__(self) -> None:
        program = [sys.executable, "-W", "ignore", __file__]
        self.server = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def start(self, words: list[str], output: Path, hook: Path | None) -> Born:
        """A process group of its own that runs `deftly WORDS`."""
        return Born(self, self.ask({"words": words, "output": str(output), "hook": str(hook) if hook else None}))

    def ask(self, question: dict[str, Any]) -> Any:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        print(json.dumps(question), file=self.server.stdin, flush=True)
        return json.loads(self.server.stdout.readline())

    def close(self) -> None:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.close()
        self.server.wait()
        self.server.stdout.close()


class Born:
    def __init__(self, nursery: Nursery, pid: int) -> None:
        self.nursery, self.pid = nursery, pid
        self.code: int | None = None

    def poll(self) -> int | None:
        if self.code is None:
            self.code = self.nursery.ask({"poll": self.pid})
        return self.code


def serve() -> None:
    import torch
    import torch._dynamo  # which every optimizer imports

    from deftly.cli import main, train  # noqa: F401

    torch.set_num_threads(1)  # no thread may compute while this process forks
    for line in sys.stdin:
        asked = json.loads(line)
        if "poll" in asked:
            pid, status = os.waitpid(asked["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if answer == 0:
                live(**asked)
            os.setpgid(answer, answer)
        print(json.dumps(answer), flush=True)


def live(words: list[str], output: str, hook: str | None) -> NoReturn:
    """Be the command."""
    from deftly.cli.main import main
    from save_hook import Hook, Hooked

    code: Any = 1
    try:
        os.setpgid(0, 0)
        file, nothing = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (file, 1), (file, 2)):
            os.dup2(source, target)
        if hook is not None:
            Hooked(Hook(**json.loads(Path(hook).read_text()))).install()
        main(words)
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    serve()
