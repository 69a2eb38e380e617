"""Kills training runs with SIGKILL, restarts them by the same command, and compares what they end in with a run that nothing disturbed.

    python tests/killing.py                            one run killed 20 times and 20 runs killed once: `make proof-kill`
    python tests/killing.py --chains 10 --singles 0    ten runs killed 20 times each: `make soak`

A run is killed as a process group, at moments drawn from a seed that is printed: while it starts, at a step, inside a save (which the hook
of `save_hook.py` is for: the program is another one, the command is not), and after its last step.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from deftly import storage
from save_hook import Hook, How

TESTS = Path(__file__).parent
KILLS, STEPS = 20, 300
PATIENCE_S = 120.0


def write_run(home: Path, steps: int) -> Path:
    """A dataset, and the run.json of a policy with one of everything that randomness and state could hide in."""
    from deftly.contract import Window
    from deftly.data.augment import AugmentConfig
    from deftly.data.language.augment import LanguageConfig
    from deftly.data.source import DataConfig
    from deftly.models.heads import FlowMatchingConfig
    from deftly.models.language import TextConfig
    from deftly.models.policy import PolicyConfig
    from deftly.models.vision import CNNConfig
    from deftly.run import Run
    from deftly.training.config import TrainingConfig
    from deftly.training.optim import AdamWConfig
    from deftly.training.schedule import WarmupCosineConfig
    from recordings import write

    data = DataConfig(
        path=write(home / "data", (13, 9, 17, 11, 8)),
        image_size=24,
        window=Window(frames=2, chunk=4, past_actions=True),
        batch_size=8,  # which no epoch divides by
        validation_fraction=0.3,
        workers=2,
        augmentation=AugmentConfig(noise=0.02, crop_scale=(0.7, 1.0), rotation_degrees=5, blur=0.2, erase=0.2, mixup=0.2),
        language=LanguageConfig(probability=0.5),
    )
    policy = PolicyConfig(
        vision=CNNConfig(widths=(8, 16), keypoints=8),
        text=TextConfig(dim=16, heads=2),
        width=32,
        dropout=0.1,
        head=FlowMatchingConfig(width=32, blocks=1, draws=2),
    )
    training = TrainingConfig(
        steps=steps, accumulation=2, precision="fp32", optimizer=AdamWConfig(learning_rate=1e-3), schedule=WarmupCosineConfig(),
        ema_decay=0.99, log_every=1, validate_every=50, checkpoint_every=7, threads=1,
    )  # fmt: skip
    (home / "run.json").write_text(Run(name="killed", data=data, policy=policy, training=training, executed_steps=2).to_json())
    return home / "run.json"


def command(run: Path, out: Path) -> list[str]:
    """The one command by which a run is started, and started again."""
    return ["train", str(run), "--out", str(out), "--device", "cpu", "--resume"]


# -- what a run came to -------------------------------------------------------------------------------------------------------------------


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def digests(checkpoint: Path) -> dict[str, str]:
    """Of everything in a checkpoint but how long it took."""
    files = {"model": "raw.safetensors", "ema": "objective.safetensors", "optimizer": "optimizer.safetensors"}
    found = {name: storage.sha256(checkpoint / file) for name, file in files.items()}
    found["policy"] = digest(
        {path.name: storage.sha256(path) for path in (checkpoint / "policy").iterdir() if path.name != "manifest.json"}
    )
    state = {name: value for name, value in storage.read_json(checkpoint / "trainer.json").items() if name != "seconds"}
    return {**found, "guard": digest(state["guard"]), "stream": digest(state["stream"]), "trainer": digest(state)}


def newest(out: Path) -> tuple[int, dict[str, str]] | None:
    """(step, digests) of the newest checkpoint, which must be whole; None where there is none yet."""
    steps = sorted((out / "checkpoints").glob("step-*"))
    if not steps:
        return None
    storage.verify(steps[-1])
    return int(steps[-1].name.removeprefix("step-")), digests(steps[-1])


def log(out: Path) -> list[dict[str, Any]]:
    """The lines of the log without their wall-clock fields."""
    return [{name: value for name, value in line.items() if name != "time"} for line in storage.read_lines(out / "metrics.jsonl")]


def outcome(out: Path) -> dict[str, str]:
    """What must be the same in the end: the last checkpoint, the log, the errors on held-out episodes, and which files there are."""
    last = newest(out)
    assert last is not None, f"{out}: no checkpoint"
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*"))
    return {**last[1], "log": digest(log(out)), "offline": storage.sha256(out / "offline.json"), "files": digest(files)}


# -- processes ----------------------------------------------------------------------------------------------------------------------------


class Process(Protocol):
    """The leader of a process group."""

    pid: int

    def poll(self) -> int | None: ...


Start = Callable[[list[str], Path, Path | None], Process]  # (words of the command, its output, hook)


def as_users_do(words: list[str], output: Path, hook: Path | None) -> Process:
    """The command as a new process."""
    program = ["-m", "deftly.cli.main"] if hook is None else [str(TESTS / "save_hook.py"), str(hook)]
    with open(output, "wb") as file:
        return subprocess.Popen([sys.executable, *program, *words], start_new_session=True, stdout=file, stderr=file)


def wait(process: Process, what: Callable[[], bool] = lambda: False) -> int | None:
    """The exit code, or None as soon as `what` holds."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if (code := process.poll()) is not None:
            return code
        if what():
            return None
        time.sleep(0.004)
    os.killpg(process.pid, signal.SIGKILL)
    raise AssertionError(f"nothing happened for {PATIENCE_S:g} s")


# -- moments ------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Moment:
    kind: Literal["start", "step", "save", "end"]
    step: int
    """`step`: when the log has it; `save`: of this step or the next one that is saved."""
    fraction: float
    """`start`: of the time from the command to the first step; `step`, `end`: of SHORTLY_S, from the moment that it is seen."""
    operation: int
    how: How


SHORTLY_S = 0.05


def draw_moments(draw: random.Random, kinds: list[str], steps: int, operations: int) -> list[Moment]:
    """One after the other through the run, each somewhere in its own share of the steps."""
    found = []
    for number, kind in enumerate(kinds):
        low, high = (steps * k // len(kinds) for k in (number, number + 1))
        step = draw.randrange(max(low, 1), max(high, 2))
        if kind == "save":
            step = min(step, steps - 8)  # that one is saved before the last step, which is waited for
        how: How = draw.choice(("before", "after", "torn"))
        found.append(Moment(kind, step, draw.random(), draw.randint(1, operations), how))  # type: ignore[arg-type]
    return found


def kinds_of_chain(draw: random.Random) -> list[str]:
    """Of 20 kills of one run: nine inside a save, the last one when all steps are done."""
    kinds = ["save"] * 9 + ["step"] * 7 + ["start"] * 3
    draw.shuffle(kinds)
    return [*kinds, "end"]


def kind_of_single(number: int) -> str:
    """Of runs that are killed once: eight of twenty inside a save."""
    return ("save", "step", "step", "save", "end", "save", "step", "step", "save", "start")[number % 10]


# -- runs ---------------------------------------------------------------------------------------------------------------------------------


@dataclass
class Reference:
    """A run that nothing disturbed."""

    run: Path
    outcome: dict[str, str]
    checkpoints: dict[int, dict[str, str]]
    """Digests of every checkpoint that there was, by step."""
    operations: int
    """Durable operations of a save."""
    startup_s: float
    """From the command to its first step."""
    steps: int

    @classmethod
    def make(cls, home: Path, start: Start, steps: int) -> Reference:
        run, out = write_run(home, steps), home / "undisturbed"
        hook, began = Hook(str(home / "saves.jsonl")).write(home / "watch.json"), time.monotonic()
        process = start(command(run, out), home / "undisturbed.txt", hook)
        code = wait(process, lambda: (out / "metrics.jsonl").exists() and (out / "metrics.jsonl").stat().st_size > 0)
        startup_s = time.monotonic() - began
        code = wait(process) if code is None else code
        assert code == 0, (home / "undisturbed.txt").read_text()
        saves = list(storage.read_lines(home / "saves.jsonl"))
        made = {line["step"]: line["digests"] for line in saves}
        return cls(run, outcome(out), made, max(line["operations"] for line in saves), startup_s, steps)


class Victim:
    """A run that is killed, over and over, and started again by the same command."""

    def __init__(self, name: str, home: Path, reference: Reference, start: Start, say: Callable[[str], None] = print) -> None:
        self.name, self.home, self.reference, self.start, self.say = name, home, reference, start, say
        self.out, self.output, self.report = home / name, home / f"{name}.txt", home / f"{name}.deaths.jsonl"
        self.in_save = 0

    def die(self, moment: Moment) -> None:
        """One life: start, SIGKILL to the group at that moment; what is left must be the undisturbed run's, or nothing yet."""
        before = self._log_changed()
        process = self.begin(moment)
        if moment.kind == "start":
            time.sleep(moment.fraction * self.reference.startup_s)
            where = f"{moment.fraction * self.reference.startup_s:.2f} s after the command"
        elif moment.kind == "save":
            assert wait(process) == -signal.SIGKILL, f"{self.name}: outlived {moment}:\n{self.output.read_text()}"
            death = list(storage.read_lines(self.report))[-1]
            where = f"inside the save of step {death['step']}, {death['where']}"
            self.in_save += 1
        else:
            target = self.reference.steps if moment.kind == "end" else moment.step
            code = wait(process, lambda: self._log_changed() != before and self.last_step() >= target)
            assert code in (None, 0), f"{self.name}: ended with {code} before step {target}:\n{self.output.read_text()}"
            time.sleep(moment.fraction * SHORTLY_S)
            where = f"after step {self.last_step()}"
        if moment.kind != "save":
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            code = wait(process)
            if code == 0:  # it was faster than we; a finished run can still be started and killed
                return self.die(replace(moment, kind="start", fraction=moment.fraction / 2))
            assert code == -signal.SIGKILL, f"{self.name}: ended with {code}:\n{self.output.read_text()}"
        self.say(f"{self.name}: killed {where}; it goes on from {self._check_left()}")

    def finish(self) -> dict[str, str]:
        """The same command once more, to the end."""
        code = wait(self.begin(None))
        assert code == 0, f"{self.name}: exit code {code}:\n{self.output.read_text()}"
        return outcome(self.out)

    def begin(self, moment: Moment | None) -> Process:
        """The command, with the hook where it is to die inside a save."""
        hook = None
        if moment is not None and moment.kind == "save":
            hook = Hook(str(self.report), moment.step, moment.operation, moment.how).write(self.home / f"{self.name}.hook.json")
        return self.start(command(self.reference.run, self.out), self.output, hook)

    def _check_left(self) -> str:
        left = newest(self.out)
        if left is None:
            return "the beginning"
        assert left[1] == self.reference.checkpoints[left[0]], f"{self.name}: the checkpoint of step {left[0]} is not the undisturbed run's"
        return f"step {left[0]}, which is the undisturbed run's"

    def _log_changed(self) -> int | None:
        """Changes when a resumed run has cut off what is about to be done again, and with every line."""
        path = self.out / "metrics.jsonl"
        return path.stat().st_mtime_ns if path.exists() else None

    def last_step(self) -> int:
        return max((line["step"] for line in storage.read_lines(self.out / "metrics.jsonl")), default=0)


def shown(found: dict[str, str]) -> str:
    return " ".join(f"{name} {value[:12]}" for name, value in found.items())


def kill_all(home: Path, chains: int, singles: int, steps: int, seed: int, jobs: int, start: Start) -> bool:
    """The whole campaign; whether every run ended as the undisturbed one."""
    began, draw = time.monotonic(), random.Random(seed)
    print(f"seed {seed}: {chains} runs killed {KILLS} times and {singles} killed once, {steps} steps each, {jobs} at a time", flush=True)
    reference = Reference.make(home, start, steps)
    print(f"undisturbed: {shown(reference.outcome)}", flush=True)
    plans = [draw_moments(draw, kinds_of_chain(draw), steps, reference.operations) for _ in range(chains)]
    for number in range(singles):
        kind = kind_of_single(number)
        (moment,) = draw_moments(draw, [kind], steps, reference.operations)
        plans.append([moment])

    def one(number: int) -> tuple[bool, int]:
        victim = Victim(f"run {number}", home, reference, start, lambda text: print(text, flush=True))
        try:
            for moment in plans[number]:
                victim.die(moment)
            found = victim.finish()
        except Exception as error:  # an AssertionError, or what a broken run raises where it is looked at: the others go on
            print(f"{victim.name}: FAILED: {error}", flush=True)
            return False, victim.in_save
        different = [name for name in found if found[name] != reference.outcome[name]]
        verdict = f"DIFFERENT in {', '.join(different)}" if different else "equal"
        print(f"{victim.name}: {len(plans[number])} kills, {verdict}: {shown(found)}", flush=True)
        if not different:
            shutil.rmtree(victim.out)
        return not different, victim.in_save

    with ThreadPoolExecutor(jobs) as pool:
        results = list(pool.map(one, range(len(plans))))
    equal, kills, in_save = sum(good for good, _ in results), sum(map(len, plans)), sum(count for _, count in results)
    print(f"{equal} of {len(plans)} runs equal after {kills} kills, {in_save} of them inside a save; {time.monotonic() - began:.0f} s")
    return equal == len(plans)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chains", type=int, default=1, help=f"runs that are killed {KILLS} times")
    parser.add_argument("--singles", type=int, default=20, help="runs that are killed once")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=None, help="of the moments; drawn and printed by default")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--keep", type=Path, default=None, help="a folder to work in, kept; a temporary one by default")
    flags = parser.parse_args()
    home = flags.keep or Path(tempfile.mkdtemp(prefix="killing-"))
    home.mkdir(parents=True, exist_ok=True)
    seed = flags.seed if flags.seed is not None else random.SystemRandom().randrange(2**32)
    os.environ["OMP_NUM_THREADS"] = "1"
    is_equal = kill_all(home, flags.chains, flags.singles, flags.steps, seed, flags.jobs, as_users_do)
    if is_equal and flags.keep is None:
        shutil.rmtree(home)
    elif not is_equal:
        print(f"what was found is in {home}")
    return 0 if is_equal else 1


if __name__ == "__main__":
    sys.exit(main())
