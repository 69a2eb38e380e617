"""docs/training/cluster.md: its scripts are valid, every option in them exists, and they do what the page says."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.run import get_args_parser

from deftly.cli import data, evaluate, train
from deftly.recipes import RECIPES
from small_data import write_dataset
from training.ranks import free_port

PAGE = (Path(__file__).parents[1] / "docs/training/cluster.md").read_text()
BLOCKS = re.findall(r"```(bash|yaml)\n(.*?)```", PAGE, re.S)
SCRIPTS = [text for kind, text in BLOCKS if kind == "bash"]
WHOLE = "\n".join(" ".join(text.replace("\\\n", " ").split("  ")) if kind == "bash" else " ".join(text.split()) for kind, text in BLOCKS)


def options_of(command: str) -> list[str]:
    """Options that follow a command, up to the end of its line."""
    return [
        option for rest in re.findall(rf"{command} (.*?)(?:$|&| -m )", WHOLE, re.M) for option in re.findall(r"(?<= )--[\w.-]+", f" {rest}")
    ]


def test_there_is_something_to_test() -> None:
    assert len(SCRIPTS) == 3
    assert len(BLOCKS) == 4


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_bash(script: str) -> None:
    assert script.startswith("#!/bin/bash\n#SBATCH ")
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_manifests_fit_together() -> None:
    yaml = pytest.importorskip("yaml")
    service, job = yaml.safe_load_all(next(text for kind, text in BLOCKS if kind == "yaml"))
    assert (service["kind"], job["kind"]) == ("Service", "Job")
    assert service["spec"]["clusterIP"] == "None", "headless"
    pod, nodes = job["spec"]["template"]["spec"], str(job["spec"]["completions"])
    assert service["metadata"]["name"] == pod["subdomain"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    command = pod["containers"][0]["command"][-1]
    assert f"--nnodes {nodes} " in command
    assert job["spec"]["parallelism"] == job["spec"]["completions"]
    assert job["spec"]["podReplacementPolicy"] == "Failed", "two pods of one rank while the first saves, otherwise"
    assert job["spec"]["successPolicy"] == {"rules": [{"succeededIndexes": "0"}]}, "rank 0 is there, which writes the run"
    assert f"--master-addr {job['metadata']['name']}-0.{pod['subdomain']} " in command
    assert f"--nproc-per-node {pod['containers'][0]['resources']['limits']['nvidia.com/gpu']} " in command
    assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_options_of_torchrun_exist() -> None:
    known = {option for action in get_args_parser()._actions for option in action.option_strings}
    found = options_of("torchrun")
    assert {"--nnodes", "--rdzv-endpoint", "--node-rank"} <= set(found) <= known


def test_options_of_deftly_train_exist() -> None:
    found = set(options_of(r"deftly train \w+"))
    assert {"--resume", "--out"} <= found
    for option in found:
        values: Any = RECIPES["imitate"](False).to_dict()
        for name in option.removeprefix("--").split("."):
            values = values.get(name) if isinstance(values, dict) and name in values else None
        assert values is not None or f"[{option}" in train.USAGE, option


@pytest.mark.parametrize(("words", "command"), [("deftly data generate", data.generate), ("deftly evaluate", evaluate.command)])
def test_options_of_commands_exist(words: str, command: Callable[..., Any]) -> None:
    known = {f"--{name.replace('_', '-')}" for name in inspect.signature(command).parameters}
    assert set(options_of(words)) <= known
    assert {"--executor", "--workers"} <= known


# -- what Slurm does with the first script ------------------------------------------------------------------------------------------------

TRAINING = SCRIPTS[0]
CODE = [re.sub(r"(^|\s)#.*", "", line) for line in TRAINING.splitlines()]
TASK = 'tree() { for child in $(cat /proc/"$1"/task/*/children); do tree "$child"; done; kill -KILL "$1"; }'
PROGRAMS = {
    # As src/srun/signals.c of Slurm has it: "forcing job termination".
    "srun": f"""{TASK}
        echo "$SRUN_CPUS_PER_TASK" > "$HERE/cpus"
        "$@" & echo $! > "$HERE/task"
        trap 'tree "$(cat "$HERE/task")" 2> /dev/null' TERM HUP QUIT
        until wait "$(cat "$HERE/task")"; code=$?; [ ! -e /proc/"$(cat "$HERE/task")" ]; do :; done
        exit $code""",
    # scancel(1): "signals other than SIGKILL are not sent to the batch step (the shell script)", without --batch and --full.
    "scancel": '[ "$*" = "--signal=TERM 7" ] && echo "$*" >> "$HERE/told" && kill -TERM "$(cat "$HERE/task")"',
    "scontrol": 'if [ "$1" = show ]; then echo 127.0.0.1; echo other; else echo "$*" >> "$HERE/told"; fi',
    "openssl": "exit 1",
}
RUN_THAT_SAVES = """
    trap 'sleep 0.3; echo "$TORCH_ELASTIC_SHUTDOWN_TIMEOUT" > "$HERE/saved"; exit "$AFTER_TERM"' TERM
    touch "$HERE/runs"
    [ "$ENDS_WITH" = never ] && while :; do sleep 0.05; done
    exit "$ENDS_WITH\""""


def announced(script: str) -> tuple[str, int]:
    """(signal, seconds before the end) that a script asks Slurm for."""
    found = re.search(r"^#SBATCH --signal=B:(\w+)@(\d+)$", script, re.M)
    assert found is not None
    return found[1], int(found[2])


def submitted(folder: Path, torchrun: str, script: str = TRAINING, **environment: str) -> subprocess.Popen[str]:
    """The script, in a Slurm that is made of shell scripts."""
    for name, text in {**PROGRAMS, "torchrun": torchrun}.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "1", "SLURM_CPUS_PER_TASK": "64", "USER": "me"}
    paths = {"PATH": f"{folder}:{os.environ['PATH']}", "HERE": str(folder)}
    (folder / "job.sh").write_text(script)
    return subprocess.Popen(
        ["bash", str(folder / "job.sh")],
        env={**os.environ, **job, **paths, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_until(there: Callable[[], bool], job: subprocess.Popen[str], seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < until, "it never came"
        assert job.poll() is None, job.communicate()[0]
        time.sleep(0.02)


def said(folder: Path, name: str) -> str | None:
    return (folder / name).read_text().strip() if (folder / name).exists() else None


@pytest.fixture
def ended() -> Iterator[list[subprocess.Popen[str]]]:
    """Jobs that are ended with everything that they started."""
    jobs: list[subprocess.Popen[str]] = []
    yield jobs
    for job in jobs:
        subprocess.run(["bash", "-c", f"{TASK}; tree {job.pid}"], capture_output=True, timeout=60)
        job.communicate(timeout=60)


def test_srun_is_sent_no_signal_and_nothing_of_slurm_is_out_of_step():
    (trap,) = [line for line in CODE if line.startswith("trap ")]
    assert not re.search(r"\bkill\b", "\n".join(CODE)), "srun makes SIGTERM the SIGKILL of its tasks"
    name, _ = announced(TRAINING)
    assert trap.endswith(f" {name}")
    assert name != "TERM", "scancel sends that, and must not requeue"
    for script in (text for text in SCRIPTS if re.search(r"^srun ", text, re.M)):
        assert 'export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"\n' in script.split("srun ")[0]
        assert "$(hostname)" not in script, "a node's name is SLURMD_NODENAME"
    assert sum("srun " in text for text in SCRIPTS) == 2


def test_torchrun_waits_for_most_of_the_announced_grace():
    """By its environment: `torchrun --shutdown-timeout` is no option of torch 2.10 and 2.11, which are in the tested range."""
    yaml = pytest.importorskip("yaml")
    name = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
    pod = list(yaml.safe_load_all(next(text for kind, text in BLOCKS if kind == "yaml")))[1]["spec"]["template"]["spec"]
    (value,) = [item["value"] for item in pod["containers"][0]["env"] if item["name"] == name]
    assert isinstance(value, str), "what Kubernetes wants"
    exported = re.findall(rf"^export {name}=(\d+)$", TRAINING, re.M)
    for seconds, grace in ((int(value), pod["terminationGracePeriodSeconds"]), (*map(int, exported), announced(TRAINING)[1])):
        assert 30 < seconds <= grace - 20
    assert "--shutdown-timeout" not in WHOLE
    if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 12):
        assert name in get_args_parser().format_help()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(("after_term", "told"), [(1, ["--signal=TERM 7", "requeue 7"]), (0, ["--signal=TERM 7"])])
def test_before_the_time_is_up_the_run_saves_and_the_job_is_queued_again(tmp_path, ended, after_term, told):
    ended.append(submitted(tmp_path, RUN_THAT_SAVES, ENDS_WITH="never", AFTER_TERM=str(after_term)))
    wait_until((tmp_path / "runs").exists, ended[0])
    os.kill(ended[0].pid, signal.Signals[f"SIG{announced(TRAINING)[0]}"])
    assert ended[0].wait(20) == after_term, "of the step, and not of the signal"
    assert said(tmp_path, "saved") == "150"
    assert said(tmp_path, "cpus") == "64"
    assert (tmp_path / "told").read_text().splitlines() == told


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("code", [0, 65])
def test_an_end_or_an_error_is_not_queued_again(tmp_path, ended, code):
    ended.append(submitted(tmp_path, RUN_THAT_SAVES, ENDS_WITH=str(code), AFTER_TERM="1"))
    assert ended[0].wait(20) == code
    assert said(tmp_path, "told") is None


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_a_cancelled_job_is_not_queued_again(tmp_path, ended):
    ended.append(submitted(tmp_path, RUN_THAT_SAVES, ENDS_WITH="never", AFTER_TERM="1"))
    wait_until((tmp_path / "runs").exists, ended[0])
    os.kill(ended[0].pid, signal.SIGTERM)  # as to all its tasks
    os.kill(int((tmp_path / "task").read_text()), signal.SIGTERM)
    assert ended[0].wait(20) == -signal.SIGTERM
    assert said(tmp_path, "told") is None


@pytest.mark.slow
def test_a_real_run_saves_and_goes_on(tmp_path, ended):
    """The script with torchrun and two ranks on this machine, twice: announced, queued again, finished."""
    data = write_dataset(tmp_path / "data")
    small = "--small --device cpu --data.batch-size 4 --data.image-size 32 --training.checkpoint-every 1000 --training.steps"
    script = TRAINING.replace("/shared/datasets/demo", str(data)).replace("/shared/runs/demo", str(tmp_path / "run"))
    script = script.replace("--nproc-per-node 8", "--nproc-per-node 2").replace(":29500", f":{free_port()}")
    torchrun = f'exec "{sys.executable}" -m torch.distributed.run "$@"'
    last, log = tmp_path / "run/checkpoints/last", tmp_path / "run/metrics.jsonl"

    def job(words: str) -> subprocess.Popen[str]:
        ended.append(submitted(tmp_path, torchrun, script.replace("--resume", f"--resume {small} {words}")))
        return ended[-1]

    first = job("100000")
    wait_until(lambda: log.exists() and '"train"' in log.read_text(), first, 120)
    assert not last.exists()
    os.kill(first.pid, signal.SIGUSR1)
    words, _ = first.communicate(timeout=120)
    assert "stopped by a signal after step" in words
    assert first.returncode == 1, "torchrun's"
    assert said(tmp_path, "told") == "--signal=TERM 7\nrequeue 7"
    step = int(last.read_text().strip().removeprefix("step-"))
    assert step < 100000
    second = job(f"{step + 5} --allow-change training.steps")
    assert second.wait(120) == 0, second.communicate()[0]
    assert last.read_text() == f"step-{step + 5:08d}\n"


# -- what Kubernetes does with the manifest ------------------------------------------------------------------------------------------------


def pod_command(folder: Path, data: Path, port: int) -> str:
    """The container's command, for small pods that are all on this machine."""
    yaml = pytest.importorskip("yaml")
    job = list(yaml.safe_load_all(next(text for kind, text in BLOCKS if kind == "yaml")))[1]
    command: str = job["spec"]["template"]["spec"]["containers"][0]["command"][-1]
    small = "--small --device cpu --data.batch-size 4 --data.image-size 32 --training.checkpoint-every 20 --training.log-every 20"
    replaced = {
        "exec torchrun": f'exec "{sys.executable}" -m torch.distributed.run',
        "--nproc-per-node 8": "--nproc-per-node 1",
        "train-0.train": "127.0.0.1",
        "29500": str(port),
        "/shared/datasets/demo": str(data),
        "/shared/runs/demo": str(folder / "run"),
        "--resume": f"--resume {small} --training.steps 200",
    }
    for words, others in replaced.items():
        assert command.count(words) == 1, words
        command = command.replace(words, others)
    return command


@pytest.mark.slow
@pytest.mark.parametrize(("name", "index", "step"), [("TERM", 1, None), ("TERM", 0, 1), ("KILL", 0, 30), ("KILL", 1, 30)])
def test_a_pod_is_replaced_and_the_run_goes_on(tmp_path, ended, name, index, step):
    """One of two torchruns is sent a signal, at its start or after a logged step; each that fails is started again, as the Job does."""
    command = pod_command(tmp_path, write_dataset(tmp_path / "data"), free_port())
    log, words, tries = tmp_path / "run/metrics.jsonl", tmp_path / "words", {0: 0, 1: 0}
    running: dict[int, subprocess.Popen[str]] = {}

    def pod(number: int) -> None:
        environment = {**os.environ, "JOB_COMPLETION_INDEX": str(number), "OMP_NUM_THREADS": "1"}
        with words.open("a") as file:
            running[number] = subprocess.Popen(["sh", "-c", command], env=environment, stdout=file, stderr=file, text=True)
        ended.append(running[number])
        tries[number] += 1

    for number in (0, 1):
        pod(number)
    if step is None:
        time.sleep(1)
    else:
        wait_until(lambda: log.exists() and any(f'"step": {reached},' in log.read_text() for reached in range(step, 201)), running[0], 120)
    if name == "TERM":
        running[index].send_signal(signal.SIGTERM)
    else:
        subprocess.run(["bash", "-c", f"{TASK}; tree {running[index].pid}"], timeout=60)
    until = time.monotonic() + 240
    while running:
        assert time.monotonic() < until, words.read_text()[-3000:]
        for number in [number for number in running if running[number].poll() is not None]:
            assert tries[number] < 5, words.read_text()[-3000:]
            if running.pop(number).returncode != 0:
                pod(number)
        time.sleep(0.5)
    assert tries[index] >= 2, "it came too late"
    assert (tmp_path / "run/checkpoints/last").read_text() == "step-00000200\n"
    assert '"finished"' in (tmp_path / "run/sessions.jsonl").read_text()
