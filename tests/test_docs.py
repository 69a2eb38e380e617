"""The documents are true: the file tree, the examples, the commands, the dependencies."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch

import deftly
from batches import build_policy, random_batch
from deftly.cli import data
from deftly.cli.main import COMMANDS
from deftly.data.tables_v2 import VERSIONS
from deftly.models.policy import PolicyConfig
from deftly.recipes import RECIPES
from deftly.rollout import rollout
from deftly.types import Clock, Observation, World

REPOSITORY = Path(__file__).parent.parent
SOURCE = Path(deftly.__file__).parent
PAGES = [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
KINDS = set(get_args(get_args(get_type_hints(data.import_, include_extras=True)["kind"])[0]))
IMPORT_NAMES = {"pillow": "PIL"}


def tree_of(text: str) -> set[str]:
    """Paths of the indented listing below `src/deftly/`."""
    lines = text[text.index("\nsrc/deftly/\n") + 1 :].split("```")[0].splitlines()[1:]
    folders: list[str] = []
    paths = set()
    for line in lines:
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2 - 1
        del folders[depth:]
        if name.endswith("/"):
            folders.append(name)
        else:
            assert len(line.split()) > 1, f"{name} has no description"
            paths.add("".join([*folders, name]))
    return paths


def test_the_tree_in_the_readme_is_the_tree():
    listed = tree_of((REPOSITORY / "README.md").read_text())
    there = {path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert sorted(listed - there) == [], "listed, but not there"
    assert sorted(there - listed) == [], "there, but not listed"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_recipes_exist(page: Path):
    text = page.read_text()
    words = set(re.findall(r"\bdeftly ([a-z]+)\b(?=[^a-z]*[A-Z`\n]|  )", text)) & set(re.findall(r"`deftly ([a-z]+)", text))
    assert words <= set(COMMANDS)
    assert set(re.findall(r"deftly data[ \n]([a-z]+)\b", text)) <= set(data.COMMANDS)
    assert set(re.findall(r"deftly data import ([a-z][a-z0-9.-]*)", text)) <= KINDS
    assert set(re.findall(r"deftly train ([a-z]+)\b(?![./])", text)) <= {*RECIPES, "my"}
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in re.findall(r"`?\bmake (demo|check|test|proof|clean|setup)\b", text):
        assert f"\n{target}:" in makefile


def test_the_readme_names_every_command():
    text = (REPOSITORY / "README.md").read_text()
    listing = text.split("## Commands")[1].split("```")[1]
    assert set(re.findall(r"^deftly ([a-z]+)", listing, re.M)) == set(COMMANDS)
    assert {word for group in re.findall(r"^deftly data ([a-z|]+)", listing, re.M) for word in group.split("|")} == set(data.COMMANDS)
    assert set(re.search(r"^deftly train ([a-z0-9|]+)", listing, re.M)[1].split("|")) == set(RECIPES)  # type: ignore[index]
    own = text.split("## Your own robot's data")[1].split("## Commands")[0]
    assert [kind for kind in KINDS if f"`{kind}`" not in own] == []
    assert [version for version in ("v3.0", *VERSIONS) if version not in own] == []


def imported() -> set[str]:
    names = set()
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add((node.module or "").split(".")[0])
    return names - set(sys.stdlib_module_names) - {"deftly"}


def test_every_dependency_is_used_declared_and_justified():
    extras = [item for name, items in PROJECT["optional-dependencies"].items() if name != "dev" for item in items]
    assert set(extras) <= set(PROJECT["optional-dependencies"]["dev"]), "the tests need what an extra brings"
    declared = {re.split(r"[<>=\[]", item)[0] for item in [*PROJECT["dependencies"], *extras]}
    assert {IMPORT_NAMES.get(name, name) for name in declared} == imported()
    page = (REPOSITORY / "docs/architecture.md").read_text()
    assert set(re.findall(r"^\| ([a-z0-9_]+) \|", page.split("## Dependencies")[1], re.M)) - {"library"} == declared


def test_the_readme_states_the_tested_torch():
    (wanted,) = [item for item in PROJECT["dependencies"] if item.startswith("torch")]
    assert f'"{wanted}"' in (REPOSITORY / "README.md").read_text()


def examples(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.S)


def module_of(source: str, path: Path) -> ModuleType:
    """An example as a module of its own, so that annotations can be resolved in it."""
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def example(tmp_path: Path):
    def load(page: str, number: int) -> ModuleType:
        return module_of(examples(REPOSITORY / page)[number], tmp_path / f"{page.lower().split('.')[0]}_{number}.py")

    yield load
    for name in [name for name in sys.modules if re.fullmatch(r"(readme|contributing)_\d", name)]:
        del sys.modules[name]


def test_the_new_head_learns_and_ignores_padding(example):
    head = example("CONTRIBUTING.md", 0).HuberConfig().build(features=8, chunk=6, action_dim=3)
    batch, pooled = random_batch(4), torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    batch.action_is_pad[:, 4:] = True
    optimizer = torch.optim.Adam(head.parameters(), 0.05)
    losses = []
    for step in range(60):
        loss = (head.loss(pooled, batch, Clock(step, 60)) * batch.valid_actions()).sum() / batch.valid_actions().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert head.sample(pooled, batch.key).shape == (4, 6, 3)


def test_the_new_objective_adds_up_over_micro_batches(example):
    """Exactly, although its two terms count different elements: what `counts` is for."""
    policy = build_policy(PolicyConfig(width=16)).double()
    objective = example("CONTRIBUTING.md", 1).SmoothImitationConfig().build(policy)
    batch = random_batch(4).map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
    batch.action_is_pad[0, 1:] = True
    counts = objective.counts(batch)
    whole = objective(batch, Clock(0, 1), counts)
    parts = [objective(part, Clock(0, 1), counts) for part in batch.split(2)]
    for name, term in whole.items():
        assert torch.allclose(term.value, sum(part[name].value for part in parts), rtol=1e-9)
    assert whole["change"].weight == 0.01


class Carriage:
    """Goes where the sentence says."""

    clipped = 0

    def reset(self, key: int) -> None:
        pass

    def act(self, observation: Observation) -> np.ndarray:
        return np.array([1.0 if "right" in observation["instruction"] else -1.0], np.float32)


def test_the_new_world_can_be_judged_in(example):
    world = example("CONTRIBUTING.md", 2).RailConfig().build()
    assert isinstance(world, World)
    own = [rollout(Carriage(), world, seed) for seed in range(8)]
    assert {episode.outcome for episode in own} == {"success"}
    assert len({episode.state_hash for episode in own}) == 8
    assert replace(rollout(Carriage(), world, 3), wall_s=0) == replace(own[3], wall_s=0), "a function of the seed"
    deaf = [rollout(Carriage(), world, seed, sentence="swapped") for seed in range(8)]
    assert {episode.outcome for episode in deaf} == {"wrong_end"}

    class Still(Carriage):
        def act(self, observation: Observation) -> np.ndarray:
            return world.idle_action()

    assert rollout(Still(), world, 0).outcome == "timeout"


def test_the_readme_example_uses_what_there_is(monkeypatch, tmp_path):
    """Run as it stands, with an agent that only looks at how it is called."""
    (source,) = examples(REPOSITORY / "README.md")
    assert len([line for line in source.splitlines() if line.strip()]) == 5, "the API in five lines"
    from deftly.agent import Agent

    calls = []

    class FakeAgent:
        contract = embodiment = None

        def __getattr__(self, name: str):
            assert hasattr(Agent, name)
            return lambda *arguments, **keywords: calls.append((name, arguments, keywords))

    class Anything:
        def __getattr__(self, name: str) -> Anything:
            return self

    FakeAgent.contract = FakeAgent.embodiment = Anything()
    monkeypatch.setattr(deftly, "load", lambda path: FakeAgent())
    inputs = "head = wrist = state = None\n"
    module_of(inputs + source, tmp_path / "readme_0.py")
    assert [name for name, _, _ in calls] == ["reset", "act"]
    assert set(calls[1][1][0]) == Observation.__required_keys__
