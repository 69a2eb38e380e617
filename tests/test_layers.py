"""The layer rule of docs/architecture.md: imports point down, packages have no cycles, heavy libraries stay where they are used."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import deftly

ROOT = Path(deftly.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
RANKS = [
    {"types", "contract", "config", "randomness", "storage", "progress", "foreign", "own_code"},
    {"models", "sim"},
    {"data"},
    {"agent", "rollout"},
    {"objectives", "evaluation"},
    {"training"},
    {"run"},
    {"recipes", "compression", "search", "serving"},
    {"cli"},
    {"", "__main__"},  # deftly/__init__.py itself: the face of the library; and `python -m deftly`
]
BASE = RANKS[0]  # single files that count as one package: they may use each other, without cycles
# Heavy libraries, and the only places that may import them.
HEAVY = {
    "mujoco": ("sim/",),
    "av": ("data/containers.py", "data/cut.py", "data/video.py", "evaluation/videos.py"),
    "pyarrow": ("data/",),
    "h5py": ("data/importers/hdf5.py",),
    "huggingface_hub": ("data/pull.py",),
    "peft": ("training/lora.py",),
    "tensorboard": ("training/tensorboard.py",),
    "wandb": ("training/wandb.py",),
    "matplotlib": ("cli/play.py",),
    "ray": ("sim/cluster.py",),
}
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60


def rank(part: str) -> int:
    return next(place for place, parts in enumerate(RANKS) if part in parts)


def part_of(module: str) -> str:
    """The layer that a dotted name belongs to: `deftly.data.loader` -> `data`."""
    return module.partition(".")[2].partition(".")[0]


def module_of(path: Path) -> str:
    relative = path.relative_to(ROOT.parent).with_suffix("")
    return ".".join(relative.parts[:-1] if relative.name == "__init__" else relative.parts)


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything imported anywhere in a file, inside functions and `if TYPE_CHECKING` too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{base}.{alias.name}" if base else alias.name) for alias in node.names)


def resolve(name: str, modules: set[str]) -> str | None:
    """The module of ours that an imported dotted name means; None for other people's."""
    if name == "deftly.__version__":  # a constant that every layer may record
        return None
    while name == "deftly" or name.startswith("deftly."):
        if name in modules:
            return name
        name = name.rpartition(".")[0]
    return None


def upward(module: str, tree: ast.AST, modules: set[str]) -> list[str]:
    """Imports of `module` that break the rank rule, and relative ones."""
    mine = part_of(module)
    found = []
    for line, name in imports(tree):
        target = resolve(name, modules)
        if name.startswith("."):
            found.append(f"{module}:{line} imports {name} relatively; write the absolute name")
        elif target is not None and part_of(target) != mine and not {mine, part_of(target)} <= BASE and rank(part_of(target)) >= rank(mine):
            found.append(f"{module}:{line} (rank {rank(mine)}) imports {target} (rank {rank(part_of(target))})")
    return found


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """A cycle of the graph, or nothing."""
    done: set[str] = set()

    def visit(node: str, trail: list[str]) -> list[str]:
        if node in trail:
            return [*trail[trail.index(node) :], node]
        if node in done:
            return []
        for target in sorted(graph.get(node, ())):
            if found := visit(target, [*trail, node]):
                return found
        done.add(node)
        return []

    return next((found for node in sorted(graph) if (found := visit(node, []))), [])


TREES = {module_of(path): ast.parse(path.read_text(), str(path)) for path in FILES}
MODULES = set(TREES)


def test_every_part_has_a_rank():
    unknown = {part_of(module) for module in MODULES} - set().union(*RANKS)
    assert not unknown, f"give {unknown} a rank here and in docs/architecture.md"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_down(module: str):
    assert upward(module, TREES[module], MODULES) == []


def test_no_cycles():
    graph = {module: {t for _, name in imports(tree) if (t := resolve(name, MODULES))} - {module} for module, tree in TREES.items()}
    assert cycle(graph) == []


@pytest.mark.parametrize(
    ("module", "source", "breaks"),
    [
        ("deftly.data.loader", "from deftly.training import trainer", True),
        ("deftly.data.loader", "def f():\n    import deftly.run", True),
        ("deftly.data.loader", "from deftly import run", True),
        ("deftly.data.loader", "import deftly", True),
        ("deftly.models.heads", "from deftly.sim.robot import HOME", True),
        ("deftly.data.loader", "from .windows import x", True),
        ("deftly.data.loader", "from deftly import __version__, storage", False),
        ("deftly.data.loader", "from deftly.data import windows", False),
        ("deftly.contract", "from deftly.config import Config", False),
        ("deftly.config", "from deftly.models.policy import Policy", True),
        ("deftly.cli.train", "from deftly.run import train", False),
    ],
)
def test_the_rule_itself(module: str, source: str, breaks: bool):
    names = {"deftly", "deftly.run", "deftly.storage", "deftly.config", "deftly.training.trainer", "deftly.data.windows"}
    names |= {"deftly.sim.robot", "deftly.models.policy", "deftly.training", "deftly.data", "deftly.sim", "deftly.models"}
    assert bool(upward(module, ast.parse(source), names)) == breaks


def test_cycles_are_seen():
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


@pytest.mark.parametrize("library", sorted(HEAVY))
def test_heavy_libraries_stay_where_they_are_used(library: str):
    tree_of = {path.relative_to(ROOT).as_posix(): TREES[module_of(path)] for path in FILES}
    users = {file for file, tree in tree_of.items() for _, name in imports(tree) if name.split(".")[0] == library}
    assert users, f"{library} is a dependency that nothing imports"
    assert not {user for user in users if not user.startswith(HEAVY[library])}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_one_idea_per_file_and_function(path: Path):
    assert len(path.read_text().splitlines()) < MAX_FILE_LINES
    assert path.stem not in ("utils", "util", "helpers", "common", "misc")
    for node in ast.walk(TREES[module_of(path)]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno + 1 < MAX_FUNCTION_LINES, f"{node.name} at line {node.lineno}"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_every_module_says_what_it_is(module: str):
    tree = TREES[module]
    assert isinstance(tree, ast.Module)
    assert ast.get_docstring(tree), "a module starts with a docstring"


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120).stdout


def test_importing_deftly_is_quick():
    def seconds() -> float:
        start = time.perf_counter()
        loaded = python("import deftly, sys; print(*sorted({'torch', 'numpy', 'mujoco', 'av'} & set(sys.modules)))")
        assert loaded.split() == []
        return time.perf_counter() - start

    assert min(seconds() for _ in range(2)) < 2, "other processes may be busy: the better of two"


def test_everything_but_worlds_works_without_mujoco():
    """Training on real data must not need a simulator, whatever is installed."""
    parts = ("run", "recipes", "agent", "rollout", "data.source", "evaluation.offline", "training.trainer", "cli.train", "cli.main")
    lines = ["import sys, importlib", "sys.modules['mujoco'] = None", *(f"import deftly.{part}" for part in parts), "print('done')"]
    assert python("\n".join(lines)).split() == ["done"]
