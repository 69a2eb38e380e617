"""`deftly data`: from the words on the command line to files, lines and exit codes."""

import json
from pathlib import Path

import pytest

from deftly.cli.data import main
from deftly.cli.main import main as deftly
from deftly.data.dataset import Dataset
from deftly.types import DataError, UsageError
from hdf5_files import demo, write_file
from recordings import write
from rlds_files import trajectory, write_rlds


def test_help_lists_the_commands(capsys):
    for words in ([], ["--help"]):
        main(words)
        shown = capsys.readouterr().out
        assert all(name in shown for name in ("generate", "import", "show"))


@pytest.mark.parametrize("command", ["generate", "import", "show"])
def test_every_command_explains_its_flags(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert f"deftly data {command}" in capsys.readouterr().out


def test_generate_makes_a_dataset_and_says_how_fast(tmp_path, capsys):
    words = ["generate", "--episodes", "1", "--out", str(tmp_path / "data"), "--image-size", "32", "--no-boxes", "--seed", "5"]
    main(words)
    shown = capsys.readouterr().out
    assert "1 episodes" in shown
    assert "frames/s" in shown
    dataset = Dataset.open(tmp_path / "data")
    assert dataset.embodiment.cameras[0].width == 32
    assert not [name for name in dataset.features if "boxes" in name]
    main(words)
    assert "nothing was left to make" in capsys.readouterr().out


def test_import_reports_what_it_did(tmp_path, capsys):
    source = write_rlds(tmp_path / "src", {"train": [[trajectory(0)]], "val": [[trajectory(0)]]})
    main(["import", "rlds", str(source), str(tmp_path / "out"), "--fps", "5"])
    shown = capsys.readouterr().out
    assert "1 episodes, 4 frames imported" in shown
    assert "1 duplicated trajectories" in shown
    with pytest.raises(UsageError, match=r"--fps means nothing for lerobot-v2\.1"):
        main(["import", "lerobot-v2.1", str(source), str(tmp_path / "other"), "--fps", "5"])
    with pytest.raises(DataError, match=r"info\.json: missing"):
        main(["import", "lerobot-v2.1", str(source), str(tmp_path / "other")])


def test_hdf5_is_imported_with_what_it_does_not_say(tmp_path, monkeypatch, capsys):
    path = write_file(tmp_path / "src" / "image.hdf5", [demo(0)])
    main(["import", "hdf5", str(path), str(tmp_path / "out"), "--task", "lift it", "--state", "joint_states", "--images", "image"])
    assert "1 episodes, 5 frames imported" in capsys.readouterr().out
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"needs h5py: pip install 'deftly\[hdf5\]'"):
        main(["import", "hdf5", str(path), str(tmp_path / "other")])


def test_export_writes_what_older_readers_know(tmp_path, capsys):
    root = write(tmp_path / "data", (3, 4))
    main(["export", str(root), str(tmp_path / "old"), "--action-parts", "arm=0:3", "gripper=3:4"])
    assert "2 episodes, 7 frames exported as LeRobot v2.1" in capsys.readouterr().out
    described = json.loads((tmp_path / "old/meta/modality.json").read_text())
    assert described["action"] == {"arm": {"start": 0, "end": 3}, "gripper": {"start": 3, "end": 4}}


def test_show_prints_the_table_and_writes_the_sheet(tmp_path, capsys):
    root = write(tmp_path / "data", (3, 4))
    main(["show", str(root), "--out", str(tmp_path / "sheet.png")])
    assert "episodes" in capsys.readouterr().out
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["data", "shwo"], 2, "did you mean 'show'?"),
        (["data", "frobnicate"], 2, "there are: generate, pull, import"),
        (["data", "show", "nowhere"], 65, "no such dataset folder"),
        (["data", "check", "nowhere"], 65, "deftly: nowhere: no such dataset folder; check the path"),
        (["data", "check", "."], 65, "deftly: .: holds no meta/info.json, so it is not a LeRobot dataset; `deftly data import`"),
        (["data", "check", __file__], 65, f"deftly: {__file__}: a file, and a dataset is a folder; check the path"),
        (["data", "generate", "--episodes", "0", "--out", "x"], 2, "must be 1 or more"),
        (["data", "generate", "--episodes", "1", "--out", "x", "--image-size", "3"], 2, "image_size"),
    ],
)
def test_mistakes_are_one_line_and_an_exit_code(words, code, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        deftly(words)
    assert caught.value.code == code
    printed, shown = capsys.readouterr()
    assert printed == ""
    assert message in shown
    assert len(shown.strip().splitlines()) == 1
    assert list(Path(tmp_path).iterdir()) == []


def test_what_was_left_out_is_kept_with_the_dataset(tmp_path):
    source = write_rlds(tmp_path / "src", {"train": [[trajectory(0)]]})
    main(["import", "rlds", str(source), str(tmp_path / "out"), "--fps", "5"])
    assert json.loads((tmp_path / "out/meta/deftly.json").read_text())["import"]["features_left_out"] == ["language_embedding"]
