"""Fetching a LeRobot dataset from the Hugging Face hub: one commit of it, every file checked, whole or not at all.

The only code of deftly that reaches the network. Names, sizes and digests are what the hub lists for the commit; a name that is no plain
relative path is refused before anything is fetched, a file of which more comes than is listed is broken off there, and one whose bytes are
not those is not kept. Only meta/, data/, videos/ and the card are fetched: never code.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, constants
from huggingface_hub.utils import tqdm

from deftly import storage
from deftly.data.metadata import sync_tree
from deftly.data.schema import INFO_PATH, VERSION, read_info
from deftly.data.tables_v2 import VERSIONS
from deftly.progress import Progress
from deftly.types import DataError, UsageError

FOLDERS = ("meta/", "data/", "videos/")
CARDS = ("README.md", "LICENSE", "LICENSE.md", "LICENSE.txt")
SOURCE_PATH = "meta/source.json"  # where the data came from
MAX_FILES = 2_000_000
MAX_PARTS = 12  # folders deep
THREADS = 8
REMEDY = "check the name and the network; a private dataset needs `hf auth login`"
T = TypeVar("T")


@dataclass(frozen=True)
class RemoteFile:
    """A file as the hub lists it. Large ones have a sha256, the others the sha1 that git gives to `blob SIZE` and their bytes."""

    name: str
    size: int
    sha256: str | None
    git: str | None

    def matches(self, path: Path) -> bool:
        """Whether a local file holds exactly these bytes."""
        if not path.is_file() or path.is_symlink() or path.stat().st_size != self.size:
            return False
        if self.sha256 is not None:
            return storage.sha256(path) == self.sha256
        with open(path, "rb") as file:
            digest = hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest() == self.git


@dataclass(frozen=True)
class PullReport:
    """What was fetched."""

    repo: str
    commit: str
    files: int
    num_bytes: int
    reused: int  # files that an interrupted pull had fetched
    left: int  # files of the repository that are no part of a dataset

    def lines(self) -> list[str]:
        """The report as text, one fact per line."""
        lines = [f"{self.repo} at commit {self.commit}: {self.files} files, {self.num_bytes / 1e6:.1f} MB, every one as the hub lists it"]
        lines += [f"{self.reused} of them were there from an interrupted pull"] if self.reused else []
        return lines + ([f"{self.left} other files of the repository were not fetched"] if self.left else [])


def pull(repo: str, target: Path, *, revision: str | None = None, endpoint: str | None = None) -> PullReport:
    """Fetch the dataset `repo` ("org/name") into the new folder `target`; interrupted, the same call goes on, with the same commit.

    `revision` is a branch, tag or commit, the main branch by default: which commit it means is asked once, and kept in meta/source.json.
    `endpoint` is the hub's address (HF_ENDPOINT, or huggingface.co).

    Raises `UsageError` when the dataset cannot be reached or does not fit on the disk, `DataError` when it holds names that are no plain
    paths, is no LeRobot dataset, or its bytes are not what the hub lists.
    """
    if not re.fullmatch(r"[\w-][\w.-]{0,95}/[\w-][\w.-]{0,95}", repo):
        raise UsageError(f"{repo!r} is not the name of a dataset on the hub, as in lerobot/pusht")
    target = Path(target)
    constants.HF_HUB_DISABLE_XET = True  # its transfers are not counted on the way; every file can be had over HTTP too
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target}: exists already; choose another folder, or remove it first")
    work = target.with_name(f".{target.name}.pull")
    with storage.lock(work / "lock", wait=False, who="pull", remedy="wait for it, or choose another folder"):
        report = _Pull(HfApi(endpoint=endpoint), repo, revision, work).run()
        if target.exists():
            target.rmdir()
        os.replace(work / "dataset", target)
        storage.sync_directory(target.parent)
        shutil.rmtree(work)
    return report


class _Pull:
    """A pull under way: `work` holds plan.json (the commit and its files), and the dataset as far as it is there."""

    def __init__(self, api: HfApi, repo: str, revision: str | None, work: Path) -> None:
        self._api, self._repo, self._revision = api, repo, revision
        self._plan, self._root = work / "plan.json", work / "dataset"
        self._reused = 0

    def run(self) -> PullReport:
        commit, files, left = self._listed()
        todo = [file for file in files if not file.matches(storage.inside(self._root, file.name))]
        self._reused = len(files) - len(todo)
        self._require_room(sum(file.size for file in todo))
        with Progress("pull", len(files), "files") as progress, ThreadPoolExecutor(THREADS) as threads:
            progress.advance(self._reused)
            for is_meta in (True, False):  # what says whether the rest is worth fetching comes first
                part = [file for file in todo if file.name.startswith("meta/") == is_meta]
                try:
                    for _ in threads.map(lambda file: self._fetch(commit, file), part):
                        progress.advance(1)
                except BaseException:
                    threads.shutdown(wait=True, cancel_futures=True)
                    raise
                if is_meta:
                    read_info(self._root / INFO_PATH, (VERSION, *VERSIONS))
        shutil.rmtree(self._root / ".cache", ignore_errors=True)  # the client's own notes
        self._require_nothing_else(files)
        source = {"repo": self._repo, "revision": self._revision, "commit": commit, "endpoint": self._api.endpoint}
        storage.write_json(self._root / SOURCE_PATH, source)
        sync_tree(self._root)
        return PullReport(self._repo, commit, len(files), sum(file.size for file in files), self._reused, left)

    def _listed(self) -> tuple[str, list[RemoteFile], int]:
        """(commit, files to fetch, number of other files): asked once, so that an interrupted pull goes on with the same commit."""
        asked = {"repo": self._repo, "revision": self._revision, "endpoint": self._api.endpoint}
        if self._plan.is_file():
            plan = storage.read_json(self._plan)
            if {name: plan.get(name) for name in asked} != asked:
                raise UsageError(f"{self._plan.parent}: an interrupted pull of something else; remove it, or choose another folder")
            return plan["commit"], [RemoteFile(**values) for values in plan["files"]], plan["left"]
        info = _asked(self._repo, lambda: self._api.dataset_info(self._repo, revision=self._revision, files_metadata=True))
        commit, siblings = str(info.sha), list(info.siblings or [])
        if not re.fullmatch(r"[0-9a-f]{40}", commit):  # guard: data.pull.commit
            raise DataError(f"{self._repo}: the hub names the commit {commit[:60]!r}, which is none")
        if len(siblings) > MAX_FILES:
            raise DataError(f"{self._repo}: lists {len(siblings)} files, more than {MAX_FILES}")
        for item in siblings:
            check_name(item.rfilename, self._repo)
        wanted = [item for item in siblings if item.rfilename.startswith(FOLDERS) or item.rfilename in CARDS]
        files = [_remote_file(item, self._repo) for item in wanted if item.rfilename != SOURCE_PATH]
        if INFO_PATH not in {file.name for file in files}:
            raise DataError(f"{self._repo}: holds no {INFO_PATH}, so it is not a LeRobot dataset")
        left = len(siblings) - len(files)
        storage.write_json(self._plan, {**asked, "commit": commit, "files": [asdict(file) for file in files], "left": left})
        return commit, files, left

    def _require_room(self, needed: int) -> None:
        free = shutil.disk_usage(self._plan.parent).free
        if needed > free * 0.95:  # guard: data.pull.room
            raise UsageError(f"{self._repo}: {needed / 1e9:.1f} GB are to be fetched, {free / 1e9:.1f} GB are free; choose another disk")

    def _fetch(self, commit: str, file: RemoteFile) -> RemoteFile:
        path = storage.inside(self._root, file.name)
        path.unlink(missing_ok=True)  # it is there, and it is not what it should be
        what = f"{self._repo}: {file.name} is not what the hub lists for commit {commit[:12]}"
        options: dict[str, Any] = {
            "repo_type": "dataset",
            "revision": commit,
            "local_dir": self._root,
            "tqdm_class": _counted(what, file.size),
        }
        _asked(f"{self._repo}: {file.name}", lambda: self._api.hf_hub_download(self._repo, file.name, **options))
        if not file.matches(storage.inside(self._root, file.name)):  # guard: data.pull.bytes
            path.unlink(missing_ok=True)
            raise DataError(f"{what}; pull again, or tell its owner")
        return file

    def _require_nothing_else(self, files: list[RemoteFile]) -> None:
        there = {path.relative_to(self._root).as_posix() for path in self._root.rglob("*") if not path.is_dir() or path.is_symlink()}
        extra = sorted(there - {file.name for file in files} - {SOURCE_PATH})
        if extra:
            raise DataError(f"{self._root}: holds {extra[0]!r}, which nobody fetched; remove this folder and pull again")


def _counted(what: str, size: int) -> type[tqdm]:
    """The client's progress bar, which is told of bytes before they are written: it lets no more than `size` of them pass."""

    class Counted(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self.received = int(options.get("initial") or 0)
            super().__init__(*arguments, **options)

        def update(self, n: float | None = 1) -> bool | None:
            self.received += int(n or 0)
            if self.received > size:  # guard: data.pull.size
                raise DataError(f"{what}: more than its {size} bytes came; pull again, or tell its owner")
            return super().update(n)

    return Counted


def check_name(name: Any, repo: str) -> None:
    """Raise `DataError` unless `name` is a plain relative path: it becomes a path of this machine."""
    parts = name.split("/") if isinstance(name, str) else []
    plain = all(0 < len(part) < 256 and part not in (".", "..") and not re.search(r"[\\:\x00-\x1f\x7f]", part) for part in parts)
    if not 0 < len(parts) <= MAX_PARTS or not plain:  # guard: data.pull.name
        raise DataError(f"{repo}: lists a file named {str(name)[:80]!r}, which cannot be a path in a folder; nothing was fetched")


def _remote_file(item: Any, repo: str) -> RemoteFile:
    sha256 = getattr(item.lfs, "sha256", None)
    digest = sha256 or item.blob_id
    if not isinstance(item.size, int) or item.size < 0 or not re.fullmatch(r"[0-9a-f]{64}" if sha256 else r"[0-9a-f]{40}", str(digest)):
        raise DataError(f"{repo}: the hub lists no size and digest for {item.rfilename}; it cannot be checked, so it is not fetched")
    return RemoteFile(item.rfilename, item.size, sha256, None if sha256 else digest)


def _asked(what: str, question: Callable[[], T]) -> T:
    """The client's answer; whatever it raises is one line. Its errors are those of the HTTP library that it happens to use."""
    try:
        return question()
    except UsageError:
        raise
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"{what}: the hub did not give it ({text[:200]}); {REMEDY}") from None
