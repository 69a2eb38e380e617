#!/usr/bin/env python3
"""Does every refusal matter to a test? Disables one guard at a time and runs the tests that name it; each must fail.

A guard is an `if` or `elif` whose line ends in `# guard: NAME`; a test names it by `@guards("NAME")` (tests/guards.py).

    scripts/mutants.py                   all guards, on two cores at a time
    scripts/mutants.py data.tables       those whose name begins so
    scripts/mutants.py --list            guards, where they stand, and how many tests name them

The source is copied for every mutant, so the working tree is never touched. Exit code 1 when a guard survives, is named by no test, or when
a test names a guard that does not exist.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src"
COMMENT = re.compile(r"#\s*guard:\s*([a-z0-9_.]+)\s*$")
LISTING = "DEFTLY_GUARD_LISTING"  # where the collecting pytest writes its findings
TIME_LIMIT_S = 300  # a mutant that hangs is a mutant that was noticed


@dataclass(frozen=True)
class Guard:
    """One condition: characters `begin:end` of a file."""

    name: str
    path: Path
    line: int
    begin: int
    end: int

    @property
    def where(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"

    def mutate(self, source: Path) -> None:
        """Write `False` in the place of the condition, in a copy of the source."""
        path = source / self.path.relative_to(SOURCE)
        text = self.path.read_bytes()
        path.write_bytes(text[: self.begin] + b"False" + text[self.end :])


def find_guards(source: Path = SOURCE) -> list[Guard]:
    """Every guard of the source; raises ValueError for a mark that stands on no `if`, and for a name that is used twice."""
    guards: dict[str, Guard] = {}
    for path in sorted(source.rglob("*.py")):
        text = path.read_text()
        marks = {number: match[1] for number, line in enumerate(text.splitlines(), 1) if (match := COMMENT.search(line))}
        if not marks:
            continue
        for guard in _conditions(path, text, marks):
            if guard.name in guards:
                raise ValueError(f"{guard.where}: the guard {guard.name!r} stands at {guards[guard.name].where} already; name each its own")
            guards[guard.name] = guard
        lost = set(marks.values()) - {guard.name for guard in guards.values() if guard.path == path}
        if lost:
            raise ValueError(f"{path}: the mark `# guard: {min(lost)}` is not on the line of an `if` or `elif`")
    return list(guards.values())


def _conditions(path: Path, text: str, marks: dict[int, str]) -> list[Guard]:
    starts = [0]
    for line in text.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.If):
            test = node.test
            for line in range(node.lineno, max(node.body[0].lineno, node.lineno + 1)):  # a long condition has several lines
                if line in marks:
                    begin = starts[test.lineno - 1] + test.col_offset
                    end = starts[(test.end_lineno or 0) - 1] + (test.end_col_offset or 0)
                    found.append(Guard(marks[line], path, line, begin, end))
    return found


def pytest_collection_finish(session) -> None:  # type: ignore[no-untyped-def]
    """This file is also the pytest plugin that writes down which test names which guard."""
    listing: dict[str, list[str]] = {}
    for item in session.items:
        for mark in item.iter_markers("guards"):
            for name in mark.args:
                listing.setdefault(name, []).append(item.nodeid)
    Path(os.environ[LISTING]).write_text(json.dumps(listing))


def pytest(
    source: Path, arguments: list[str], scratch: Path, limit_s: float | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """pytest against one copy of the source."""
    words = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", f"--basetemp={scratch / 'tmp'}", *arguments]
    path = os.pathsep.join([str(source), str(ROOT / "scripts")])
    surroundings = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(words, cwd=ROOT, env=surroundings, capture_output=True, text=True, timeout=limit_s, check=False)


def tests_of_guards() -> dict[str, list[str]]:
    """Guard name -> ids of the tests that name it."""
    files = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "guards(" in path.read_text()]
    if not files:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        listing = Path(folder) / "guards.json"
        run = pytest(SOURCE, ["--collect-only", "-p", "mutants", *files], Path(folder), **{LISTING: str(listing)})
        if run.returncode:
            raise SystemExit(f"the tests cannot be collected:\n{run.stdout[-2000:]}{run.stderr[-2000:]}")
        return json.loads(listing.read_text())


def survives(guard: Guard | None, tests: list[str]) -> bool:
    """Whether the tests pass with this guard disabled (None: with every guard in place)."""
    with tempfile.TemporaryDirectory(prefix="deftly-mutant-") as folder:
        source = Path(folder) / "src"
        shutil.copytree(SOURCE, source, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        if guard is not None:
            guard.mutate(source)
        try:
            run = pytest(source, ["-x", *tests], Path(folder), None if guard is None else TIME_LIMIT_S)
        except subprocess.TimeoutExpired:
            return False
        if run.returncode not in (0, 1):  # 1: a test failed, which is what we want to see; the rest is a mistake of ours
            raise SystemExit(
                f"{guard.name if guard else 'unmutated'}: pytest ended with {run.returncode}\n{run.stdout[-2000:]}{run.stderr[-2000:]}"
            )
        if guard is None and run.returncode:
            print(run.stdout[-2000:])
        return run.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Disable each guard and see its test fail.")
    parser.add_argument("prefix", nargs="*", help="only guards whose name begins so")
    parser.add_argument("--list", action="store_true", help="list guards and tests, run nothing")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
    options = parser.parse_args()
    guards, tests = find_guards(), tests_of_guards()
    unknown = sorted(set(tests) - {guard.name for guard in guards})
    guards = [guard for guard in guards if not options.prefix or guard.name.startswith(tuple(options.prefix))]
    bare = [guard for guard in guards if guard.name not in tests]
    for name in unknown:
        print(f"UNKNOWN   {name}  (named by {tests[name][0]})")
    for guard in bare:
        print(f"UNTESTED  {guard.name}  ({guard.where})")
    guards = [guard for guard in guards if guard.name in tests]
    if options.list:
        for guard in guards:
            print(f"{len(tests[guard.name]):4d} tests  {guard.name}  ({guard.where})")
        return int(bool(unknown or bare))
    if guards and not survives(None, sorted({test for guard in guards for test in tests[guard.name]})):
        print("the guarding tests fail without any mutation: mend them first")
        return 1
    survivors = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        for guard, alive in zip(guards, pool.map(lambda guard: survives(guard, tests[guard.name]), guards), strict=True):
            survivors += alive
            print(f"{'SURVIVES' if alive else 'killed'}  {guard.name}  ({guard.where})", flush=True)
    print(f"{len(guards) - survivors} of {len(guards)} mutants killed; {len(bare)} guards without a test, {len(unknown)} unknown names")
    return int(bool(survivors or unknown or bare))


if __name__ == "__main__":
    sys.exit(main())
