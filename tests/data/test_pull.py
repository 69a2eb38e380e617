"""A pulled dataset is one commit, byte for byte as it is listed, or nothing; and no name of a stranger becomes a path of ours."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import deftly
from deftly.data import pull as module
from deftly.data.dataset import Dataset
from deftly.data.pull import check_name, pull
from deftly.types import DataError, UsageError
from guards import guards
from hub import COMMITS, FOREVER, LARGE, Hub, files_of, serve
from recordings import write


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, bytes]:
    found = files_of(write(tmp_path_factory.mktemp("hub") / "data", (5, 3)))
    assert min(map(len, found.values())) < LARGE < max(map(len, found.values()))
    return {**found, "README.md": b"# Mugs", "train.py": b"print('code')", ".gitattributes": b""}


@pytest.fixture
def hub(files):
    with serve(Hub(dict(files))) as running:
        yield running


def test_a_pulled_dataset_is_the_listed_bytes(hub, files, tmp_path):
    report = pull("lab/mugs", tmp_path / "mugs", endpoint=hub.endpoint)
    there = files_of(tmp_path / "mugs")
    source = json.loads(there.pop("meta/source.json"))
    assert there == {name: data for name, data in files.items() if name not in ("train.py", ".gitattributes")}
    assert source == {"repo": "lab/mugs", "revision": None, "commit": COMMITS["main"], "endpoint": hub.endpoint}
    assert (report.commit, report.files, report.reused, report.left) == (COMMITS["main"], len(there), 0, 2)
    assert all(name.startswith("meta/") for name in hub.downloads[:5])
    assert Dataset.open(tmp_path / "mugs").num_episodes == 2
    assert [path.name for path in tmp_path.iterdir()] == ["mugs"]
    with pytest.raises(UsageError, match="exists already"):
        pull("lab/mugs", tmp_path / "mugs", endpoint=hub.endpoint)


def test_a_revision_is_asked_once(hub, tmp_path):
    assert pull("lab/mugs", tmp_path / "mugs", revision="v1", endpoint=hub.endpoint).commit == COMMITS["v1"]
    assert hub.questions == ["v1"]


def test_an_interrupted_pull_goes_on_with_the_same_commit(hub, files, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "THREADS", 1)
    hub.gone_after = 3
    with pytest.raises(UsageError, match="the hub did not give it"):
        pull("lab/mugs", tmp_path / "mugs", endpoint=hub.endpoint)
    assert not (tmp_path / "mugs").exists()
    hub.gone_after, hub.sha["main"] = None, "c" * 40  # somebody pushed meanwhile
    with pytest.raises(UsageError, match="interrupted pull of something else"):
        pull("lab/mugs", tmp_path / "mugs", revision="v1", endpoint=hub.endpoint)
    report = pull("lab/mugs", tmp_path / "mugs", endpoint=hub.endpoint)
    assert (report.commit, report.reused) == (COMMITS["main"], 3)
    assert len(hub.downloads) == len(set(hub.downloads)) == report.files, "no file twice"


@guards("data.pull.bytes")
@pytest.mark.parametrize("name", ["meta/info.json", "videos/observation.images.head/chunk-000/file-000.mp4"])
@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: bytes([data[0] ^ 1]) + data[1:], lambda data: data + b"x"])
def test_other_bytes_than_listed_are_not_kept(hub, files, tmp_path, name, damage):
    hub.served[name] = damage(files[name])
    with pytest.raises(UsageError) as caught:
        pull("lab/mugs", tmp_path / "mugs", endpoint=hub.endpoint)
    assert "is not what the hub lists for commit aaaaaaaaaaaa" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "mugs").exists()
    hub.served.clear()
    pull("lab/mugs", tmp_path / "mugs", endpoint=hub.endpoint)
    assert (tmp_path / "mugs" / name).read_bytes() == files[name]


@guards("data.pull.size")
@pytest.mark.parametrize("name", ["meta/info.json", "videos/observation.images.head/chunk-000/file-000.mp4"])
def test_a_file_that_does_not_end_is_broken_off_at_its_listed_size(hub, tmp_path, name):
    hub.endless = name
    message = f"{re.escape(name)} is not what the hub lists for commit a{{12}}: more than its {len(hub.files[name])} bytes came"
    with pytest.raises(DataError, match=message) as caught:
        pull("lab/mugs", tmp_path / "mugs", endpoint=hub.endpoint)
    assert "\n" not in str(caught.value)
    assert hub.sent < FOREVER / 2
    assert not (tmp_path / "mugs").exists()
    assert not (tmp_path / ".mugs.pull/dataset" / name).exists()
    assert not list((tmp_path / ".mugs.pull").rglob("*.incomplete"))
    hub.endless = None
    assert pull("lab/mugs", tmp_path / "mugs", endpoint=hub.endpoint).commit == COMMITS["main"]


NAMES = [
    "../x",
    "/etc/passwd",
    "meta/../../x",
    "meta//x",
    "meta/./x",
    "data\\..\\x",
    "C:x",
    "meta/a\0b",
    "meta/a\nb",
    "",
    "a/" * 20 + "b",
    "x" * 300,
]


@guards("data.pull.name")
@pytest.mark.parametrize("name", NAMES)
def test_names_that_are_no_plain_paths_are_refused_before_anything_is_fetched(hub, tmp_path, name):
    hub.listed = [{"rfilename": name, "size": 1, "blobId": "d" * 40}]
    with pytest.raises(DataError, match="cannot be a path in a folder; nothing was fetched") as caught:
        pull("lab/mugs", tmp_path / "mugs", endpoint=hub.endpoint)
    assert "\n" not in str(caught.value)
    assert hub.downloads == []
    assert not (tmp_path / "mugs").exists()
    with pytest.raises(DataError, match="cannot be a path"):
        check_name(None, "lab/mugs")


def test_what_is_no_dataset_is_known_before_its_videos_are_fetched(hub, tmp_path):
    hub.files["meta/info.json"] = b'{"codebase_version": "v9"}'
    with pytest.raises(DataError, match="codebase_version is 'v9'"):
        pull("lab/mugs", tmp_path / "mugs", endpoint=hub.endpoint)
    assert all(name.startswith("meta/") for name in hub.downloads)


@guards("data.pull.commit", "data.pull.room")
def test_what_cannot_be_pulled_is_said(hub, tmp_path, monkeypatch):
    for repo in ("mugs", "lab/mugs/x", "../mugs", "lab/..", "-/\n"):
        with pytest.raises(UsageError, match="is not the name of a dataset"):
            pull(repo, tmp_path / "mugs", endpoint=hub.endpoint)
    with pytest.raises(UsageError, match="the hub did not give it"):
        pull("lab/cups", tmp_path / "a", endpoint=hub.endpoint)
    with pytest.raises(UsageError, match="the hub did not give it"):
        pull("lab/mugs", tmp_path / "b", revision="v9", endpoint=hub.endpoint)
    hub.sha["main"] = "../" + "a" * 37
    with pytest.raises(DataError, match="which is none"):
        pull("lab/mugs", tmp_path / "c", endpoint=hub.endpoint)
    hub.sha["main"] = COMMITS["main"]
    hub.listed = [{"rfilename": "data/huge.parquet", "size": 1 << 60, "blobId": "d" * 40}]
    with pytest.raises(UsageError, match="GB are free; choose another disk"):
        pull("lab/mugs", tmp_path / "d", endpoint=hub.endpoint)
    hub.listed = [{"rfilename": "data/unknown.parquet"}]
    with pytest.raises(DataError, match=r"lists no size and digest for data/unknown\.parquet"):
        pull("lab/mugs", tmp_path / "e", endpoint=hub.endpoint)
    hub.listed = []
    del hub.files["meta/info.json"]
    with pytest.raises(DataError, match="is not a LeRobot dataset"):
        pull("lab/mugs", tmp_path / "f", endpoint=hub.endpoint)
    assert hub.downloads == []


def test_a_file_that_nobody_fetched_is_not_taken_over(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "THREADS", 1)
    hub.gone_after = 1
    with pytest.raises(UsageError, match="the hub did not give it"):
        pull("lab/mugs", tmp_path / "mugs", endpoint=hub.endpoint)
    hub.gone_after = None
    (tmp_path / ".mugs.pull/dataset/meta/deftly.json").unlink(missing_ok=True)
    (tmp_path / ".mugs.pull/dataset/meta/extra").symlink_to("/etc")
    with pytest.raises(DataError, match="which nobody fetched"):
        pull("lab/mugs", tmp_path / "mugs", endpoint=hub.endpoint)


def test_the_command_asks_the_hub_that_the_environment_names(hub, tmp_path):
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "home"),
        "PYTHONPATH": str(Path(deftly.__file__).parents[1]),
    }
    words = [sys.executable, "-m", "deftly.cli.main", "data", "pull", "lab/mugs", str(tmp_path / "mugs")]
    result = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert f"lab/mugs at commit {COMMITS['main']}" in result.stdout
    assert Dataset.open(tmp_path / "mugs").num_frames == 8
    result = subprocess.run(
        [*words[:-1], str(tmp_path / "cups"), "--revision", "v9"], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1
