"""What a disk may hold after the machine died: every prefix of the operations of a real run, with every legal loss of what was not synced.

After "All File Systems Are Not Created Equal" (Pillai et al., OSDI 2014), with POSIX's promises and none of any particular file system:

- The contents of a file are durable once it was fsynced. What was written since may be there up to any earlier write, cut in half, as
  zeros of the right length, or with zeros in its first half only (blocks reach the disk in any order).
- A name (create, mkdir, rename, unlink, rmdir) is durable once its directory was fsynced; fsync of the file itself does not help. Of the
  names that changed since, every subset may be there, in any order, but for changes of one and the same name, which come in order.
- A rename within a directory happens whole or not at all. Renames between directories do not occur here (`Recorder` refuses them).
- What lies below a name that was lost is lost with it.

Where several ranks write, each is a machine of its own with a file system that all share: names are the file server's, and contents that a
rank wrote are durable once that rank has synced them, whoever else does. Between two of their meetings ranks do not wait for each other.

`Recorder` watches the calls of `os` that change names or sync, lets them happen (fsync excepted), and finds what was written between two
of them by looking at the files, so that writers in other languages are seen too. `states` then goes through all prefixes. At each, the
product of all choices is complete, with one exception: below names that match `unread`, which recovery is to delete whatever is in them.
There a directory has the first or the last of its changes, for every number of them, and of the product there is: everything kept,
everything lost, and every single file or directory that differs from either. The whole product would be millions of states that differ
only in what is deleted.
"""

from __future__ import annotations

import itertools
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

Tree = tuple[tuple[str, bytes | None], ...]  # path -> contents, None for a directory; sorted


@dataclass(eq=False)
class File:
    durable: bytes = b""
    pending: list[bytes] = field(default_factory=list)  # its contents after each write since
    writer: int = 0  # the rank whose writes they are

    @property
    def newest(self) -> bytes:
        return self.pending[-1] if self.pending else self.durable

    def choices(self, all_of_them: bool = True) -> list[bytes]:
        """What it may hold."""
        if not self.pending:
            return [self.durable]
        before, after = [self.durable, *self.pending][-2:]
        start = len(before) if after.startswith(before) else 0
        middle = (start + len(after)) // 2
        torn = [
            after[:middle],
            after[:start] + bytes(len(after) - start),
            after[:start] + bytes(middle - start) + after[middle:],
        ]
        return list(dict.fromkeys([self.durable, *self.pending, *torn]))


@dataclass(eq=False)
class Folder:
    durable: dict[str, Node] = field(default_factory=dict)
    pending: list[dict[str, Node | None]] = field(default_factory=list)  # changes of names since; None: the name went

    @property
    def newest(self) -> dict[str, Node]:
        return after_changes(self.durable, self.pending)

    def choices(self, all_of_them: bool = True) -> list[dict[str, Node]]:
        """The names that it may hold; not `all_of_them`: after the first or the last of the changes only."""
        numbers = range(len(self.pending))
        ends = [kept for at in range(len(self.pending) + 1) for kept in (numbers[:at], numbers[at:])]
        found: dict[frozenset[tuple[str, int]], dict[str, Node]] = {}
        for kept in self._subsets() if all_of_them else ends:
            names, lost = self.durable, set[str]()
            for number, change in enumerate(self.pending):
                if number not in kept or lost & change.keys():
                    lost |= change.keys()  # what came later to the same name did not come either
                else:
                    names = after_changes(names, [change])
            found.setdefault(frozenset((name, id(node)) for name, node in names.items()), names)
        return list(found.values())

    def _subsets(self) -> Iterator[tuple[int, ...]]:
        numbers = range(len(self.pending))
        return itertools.chain.from_iterable(itertools.combinations(numbers, size) for size in range(len(numbers) + 1))


def after_changes(names: dict[str, Node], changes: Sequence[dict[str, Node | None]]) -> dict[str, Node]:
    for change in changes:
        names = {name: node for name, node in {**names, **change}.items() if node is not None}
    return names


Node = File | Folder


class Recorder:
    """Records what happens below `root` while it is entered; everything that is there already is durable."""

    def __init__(self, root: Path) -> None:
        self.root = os.path.realpath(root)
        self.steps: list[tuple[str, Callable[[], Any]]] = []  # what happened, and how it changes the disk
        self.labels: list[tuple[int, int]] = []  # of each step: how many meetings of the ranks were before it, and whose it is
        self.stage = self.rank = 0
        self.marks: dict[int, list[tuple[str, Any]]] = {}
        self.top = Folder()
        self.made: list[Node] = []
        self.seen: dict[str, tuple[Node, bytes | None]] = {"": (self.top, None)}
        self.busy = threading.RLock()

    def mark(self, name: str, value: Any) -> None:
        """`name` is `value` from here on."""
        with self.busy:
            self._notice()
            self.marks.setdefault(len(self.steps), []).append((name, value))

    def turn(self, rank: int, stage: int) -> None:
        """What follows is done by `rank`, after `stage` meetings."""
        with self.busy:
            self._notice()
            self.rank, self.stage = rank, stage

    def orders(self) -> Iterator[tuple[list[int], set[int]]]:
        """Orders in which the steps may have happened, each with the moments at which it differs from those before it.

        Ranks write different files, so what a disk may hold depends on how far each of them is, and on nothing else. These orders are all
        pairs of that: the other ranks' steps of a stage come after every number of rank 0's.
        """
        stages = [list(steps) for _, steps in itertools.groupby(range(len(self.steps)), key=lambda number: self.labels[number][0])]
        parts = [([n for n in steps if not self.labels[n][1]], [n for n in steps if self.labels[n][1]]) for steps in stages]
        longest = max((len(first) for first, others in parts if others), default=0)
        for cut in range(longest + 1):
            order, moments = [], set[int]()
            for first, others in parts:
                start = len(order)
                order += [*first[:cut], *others, *first[cut:]]
                if not cut or (others and cut <= len(first)):
                    moments.update(range(start, len(order) + 1))
            yield order, moments

    def rewind(self) -> None:
        """The disk as it was when recording began."""
        for node in self.made:
            node.pending = []
            node.durable = self.begin.get(id(node), b"" if isinstance(node, File) else {})  # type: ignore[assignment]

    def __enter__(self) -> Recorder:
        self._notice()
        for _, apply in self.steps:
            apply()
        for node, _ in self.seen.values():
            settle(node)
        self.steps, self.labels = [], []
        self.made = [node for node, _ in self.seen.values()]
        self.begin = {id(node): node.durable for node in self.made}
        self.patch = pytest.MonkeyPatch()
        for name in ("mkdir", "replace", "rename", "unlink", "remove", "rmdir", "fsync"):
            self.patch.setattr(os, name, self._watched(name, getattr(os, name)))
        return self

    def __exit__(self, *error: object) -> None:
        self.patch.undo()
        self._notice()

    def _watched(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            with self.busy:
                self._notice()
                if name == "fsync":
                    return self._synced(os.readlink(f"/proc/self/fd/{arguments[0]}"))
                base = keywords.get("dir_fd")
                base = os.readlink(f"/proc/self/fd/{base}") if base is not None else os.getcwd()
                paths = [self._inside(os.path.join(base, os.fspath(path))) for path in arguments[: 2 if "re" in name[:2] else 1]]
                real(*arguments, **keywords)
                if paths[0] is not None:
                    self._named("rename" if name in ("replace", "rename") else name, [path for path in paths if path is not None])

        return call

    def _inside(self, path: str) -> str | None:
        parent = os.path.realpath(os.path.dirname(path))
        whole = os.path.join(parent, os.path.basename(path))
        return os.path.relpath(whole, self.root) if whole.startswith(self.root + os.sep) else None

    def _synced(self, path: str) -> None:
        if path == self.root or path.startswith(self.root + os.sep):
            relative = os.path.relpath(path, self.root)
            node, _ = self.seen["" if relative == "." else relative]
            rank = self.rank
            self._step(f"fsync {relative}", lambda: settle(node) if isinstance(node, Folder) or node.writer == rank else None)

    def _step(self, what: str, apply: Callable[[], Any]) -> None:
        self.steps.append((what, apply))
        self.labels.append((self.stage, self.rank))

    def _named(self, name: str, paths: list[str]) -> None:
        (place, old), changes = os.path.split(paths[0]), {}
        if name == "mkdir":
            self.seen[paths[0]] = Folder(), None
            self.made.append(self.seen[paths[0]][0])
            changes = {old: self.seen[paths[0]][0]}
        elif name == "rename":
            assert os.path.dirname(paths[1]) == place, "a rename between directories is not part of the model"
            for path in [path for path in self.seen if path == paths[1] or path.startswith(paths[1] + os.sep)]:
                del self.seen[path]
            changes = {old: None, os.path.basename(paths[1]): self.seen[paths[0]][0]}
            for path in [path for path in self.seen if path == paths[0] or path.startswith(paths[0] + os.sep)]:
                self.seen[paths[1] + path[len(paths[0]) :]] = self.seen.pop(path)
        else:
            del self.seen[paths[0]]
            changes = {old: None}
        self._change(f"{name} {' '.join(paths)}", place, changes)

    def _change(self, what: str, place: str, changes: dict[str, Node | None]) -> None:
        folder = self.seen[place][0]
        assert isinstance(folder, Folder)
        self._step(what, lambda: folder.pending.append(changes))

    def _notice(self) -> None:
        """What was written since the last call."""
        found = tree(self.root)
        gone = self.seen.keys() - found.keys() - {""}
        assert not gone, f"{sorted(gone)} went away by no call that is watched"
        for path, data in sorted(found.items()):
            if path not in self.seen:
                self.seen[path] = (Folder(), None) if data is None else (File(writer=self.rank), b"")
                self.made.append(self.seen[path][0])
                self._change(f"create {path}", os.path.dirname(path), {os.path.basename(path): self.seen[path][0]})
            node, before = self.seen[path]
            if data != before and isinstance(node, File) and data is not None:
                self.seen[path] = node, data
                self._step(f"write {path}", lambda node=node, data=data: node.pending.append(data))


def settle(node: Node) -> None:
    """What is pending is durable."""
    node.durable = node.newest  # type: ignore[assignment]
    node.pending = []


def tree(root: str) -> dict[str, bytes | None]:
    found: dict[str, bytes | None] = {}
    stack = [root]
    while stack:
        with os.scandir(stack.pop()) as entries:
            for entry in entries:
                is_folder = entry.is_dir(follow_symlinks=False)
                found[os.path.relpath(entry.path, root)] = None if is_folder else Path(entry.path).read_bytes()
                stack += [entry.path] if is_folder else []
    return found


def states(
    recorder: Recorder, unread: str = "$^", *, quick: bool = False, wanted: Callable[[dict[str, Any]], bool] = lambda marks: True
) -> Iterator[tuple[str, dict[str, Any], Tree]]:
    """(the last operation, the marks by then, what the disk holds) of every state at a moment whose marks are `wanted`.

    A state of another moment may be the same. `quick` treats every name as `unread` ones are treated, and takes two orders of ranks: enough
    to find most mistakes.
    """
    pattern = re.compile(unread)
    orders = list(recorder.orders())
    for order, moments in (orders[0], orders[-1])[: len(orders)] if quick else orders:
        recorder.rewind()
        marks: dict[str, Any] = {}
        for number in range(len(order) + 1):
            what = "nothing"
            if number:
                what, apply = recorder.steps[order[number - 1]]
                apply()
            marks = {**marks, **dict(recorder.marks.get(number, []))}
            if number in moments and wanted(marks):
                for held in _at_once(recorder.top, pattern, quick):
                    yield what, marks, held


def _at_once(top: Folder, unread: re.Pattern[str], quick: bool) -> Iterator[Tree]:
    """Every state of the disk at one moment."""
    plain: dict[int, Node] = {}
    hidden: dict[int, Node] = {}

    def visit(node: Node, below_unread: bool) -> None:
        if id(node) in plain or (below_unread and id(node) in hidden):
            return
        hidden.pop(id(node), None)  # it can also be reached where it is read
        (hidden if below_unread else plain)[id(node)] = node
        if isinstance(node, Folder):
            for name, child in _children(node):
                visit(child, below_unread or bool(unread.fullmatch(name)))

    visit(top, quick)
    seen: set[Tree] = set()
    for choice in _products(plain, hidden):
        held = tuple(sorted(_laid_out(top, choice)))
        if held not in seen:
            seen.add(held)
            yield held


def _children(folder: Folder) -> list[tuple[str, Node]]:
    changes = [folder.durable, *folder.pending]
    return list(dict.fromkeys((name, node) for change in changes for name, node in change.items() if node is not None))


def _products(plain: dict[int, Node], hidden: dict[int, Node]) -> Iterator[dict[int, Any]]:
    """A choice for each node."""
    kept, lost = {at: node.newest for at, node in hidden.items()}, {at: node.durable for at, node in hidden.items()}
    for values in itertools.product(*(node.choices() for node in plain.values())):
        choice = dict(zip(plain, values, strict=True))
        yield {**choice, **kept}
        yield {**choice, **lost}
    several = {at: node.choices(all_of_them=False) for at, node in hidden.items() if node.pending}
    outside = {at: node.newest for at, node in plain.items()}  # what is lost there hides it
    for base, at in itertools.product((kept, lost), several):
        for value in several[at]:
            yield {**outside, **base, at: value}


def _laid_out(folder: Folder, choice: dict[int, Any], place: str = "") -> Iterator[tuple[str, bytes | None]]:
    for name, node in choice[id(folder)].items():
        path = os.path.join(place, name)
        if isinstance(node, File):
            yield path, choice[id(node)]
        else:
            yield path, None
            yield from _laid_out(node, choice, path)


def lay_out(held: Tree, root: Path) -> None:
    """Put a state onto a real disk."""
    for path, data in held:  # sorted: a directory comes before what is in it
        if data is None:
            os.mkdir(os.path.join(root, path))
        else:
            with open(os.path.join(root, path), "wb") as file:
                file.write(data)
