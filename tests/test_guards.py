"""Guards and the tests that name them belong together; that each test fails without its guard is `make mutants`."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "scripts"))

import mutants  # noqa: E402

SOURCE = """
def f(x, y):
    if x < 0:  # guard: toy.sign
        raise ValueError("ä is not ASCII")
    elif x > 9 and (  # guard: toy.limit
        y
    ):
        raise ValueError
    if (
        x == 3
        and y == 3
    ):  # guard: toy.three
        raise ValueError
    return x
"""


def named_in_tests() -> set[str]:
    names = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        if path != Path(__file__).resolve():
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "guards":
                    names |= {ast.literal_eval(argument) for argument in node.args}
    return names


def test_every_guard_is_named_by_a_test_and_every_named_guard_exists():
    there = {guard.name for guard in mutants.find_guards()}
    assert sorted(there - named_in_tests()) == [], "no test names these guards"
    assert sorted(named_in_tests() - there) == [], "named by a test, but no guard"


def test_a_mutant_differs_in_one_condition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    original, copy = tmp_path / "src", tmp_path / "copy"
    for folder in (original, copy):
        folder.mkdir()
        (folder / "toy.py").write_text(SOURCE)
    monkeypatch.setattr(mutants, "SOURCE", original)
    conditions = {
        "toy.sign": "x < 0",
        "toy.limit": "x > 9 and (  # guard: toy.limit\n        y\n    )",
        "toy.three": "x == 3\n        and y == 3",
    }
    found = mutants.find_guards(original)
    assert {guard.name for guard in found} == set(conditions)
    for guard in found:
        guard.mutate(copy)
        assert (copy / "toy.py").read_text() == SOURCE.replace(conditions[guard.name], "False")
        ast.parse((copy / "toy.py").read_text())


@pytest.mark.parametrize(
    "source",
    ["x = 1  # guard: toy.a\n", "if x:  # guard: toy.a\n    pass\nif y:  # guard: toy.a\n    pass\n", "if x:\n    pass  # guard: toy.a\n"],
)
def test_marks_that_would_prove_nothing_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str):
    (tmp_path / "toy.py").write_text(source)
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    with pytest.raises(ValueError, match=r"toy\.a"):
        mutants.find_guards(tmp_path)
