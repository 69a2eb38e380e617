"""docs/training/cluster.md: its scripts are valid, and every option in them exists."""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.run import get_args_parser

from deftly.cli import data, evaluate, train
from deftly.recipes import RECIPES

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
