"""HDF5 files become datasets: every value, nothing from outside of the file, and nothing at all when something is wrong."""

import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from deftly.data.dataset import Dataset
from deftly.data.depth import depth_cameras
from deftly.data.importers import hdf5
from deftly.data.importers.hdf5 import import_hdf5, task_of_name
from deftly.types import DataError, UsageError
from guards import guards
from hdf5_files import LIBERO_NAME, demo, pixels, write_file


def test_every_value_arrives(tmp_path):
    write_file(tmp_path / "src" / LIBERO_NAME, [demo(0), demo(1, 7)])
    write_file(tmp_path / "src/deep" / "STUDY_SCENE1_pick_up_the_book_demo.hdf5", [demo(2)])
    report = import_hdf5(tmp_path / "src", tmp_path / "out", images="image")
    dataset = Dataset.open(tmp_path / "out")
    assert (report.episodes, report.frames, report.broken) == (3, 17, [])
    assert report.left_out == ["states"]
    assert (dataset.fps, dataset.robot_type) == (20, "Panda")
    assert sorted(dataset.tasks) == ["pick up the book", "turn on the stove"]
    assert {camera.name: camera.role for camera in dataset.embodiment.cameras} == {"agentview": "scene", "eye_in_hand": "wrist"}
    assert dataset.embodiment.state.names == (*(f"ee_states_{i}" for i in range(6)), "gripper_states_0", "gripper_states_1")
    numbers = {name: i for i, name in enumerate(dataset.extra("source"))}
    for number, length, source in (
        (0, 5, f"{LIBERO_NAME}/demo_0"),
        (1, 7, f"{LIBERO_NAME}/demo_1"),
        (2, 5, "STUDY_SCENE1_pick_up_the_book_demo.hdf5/demo_0"),
    ):
        episode, given = numbers[source], demo(number, length)
        rows = slice(*dataset.episode_start[episode : episode + 2])
        state = np.concatenate([given["obs"]["ee_states"], given["obs"]["gripper_states"]], axis=1)
        assert np.array_equal(dataset.action[rows], given["actions"].astype(np.float32))
        assert np.array_equal(dataset.state[rows], state.astype(np.float32))
        assert np.array_equal(dataset.column("observation.joint_states")[rows], given["obs"]["joint_states"].astype(np.float32))
        assert np.array_equal(dataset.column("observation.environment_state")[rows], given["obs"]["object"].astype(np.float32))
        assert dataset.column("next.reward")[rows].ravel().tolist() == given["rewards"].tolist()
        assert dataset.column("next.done")[rows].ravel().tolist() == given["dones"].tolist()
        assert np.array_equal(dataset.frames(episode, "agentview"), pixels(number, "head", length))
        assert np.array_equal(dataset.frames(episode, "eye_in_hand"), pixels(number, "wrist", length))


def test_images_become_video_unless_told(tmp_path):
    write_file(tmp_path / LIBERO_NAME, [demo(0)])
    report = import_hdf5(tmp_path / LIBERO_NAME, tmp_path / "out")
    dataset = Dataset.open(tmp_path / "out")
    assert dataset.features["observation.images.agentview"].dtype == "video"
    assert np.abs(dataset.frames(0, "agentview").astype(int) - pixels(0, "head", 5)).mean() < 4
    assert any("--images image keeps every pixel" in line for line in report.lines())


def test_state_task_and_rate_may_be_told(tmp_path):
    path = write_file(tmp_path / "low_dim.hdf5", [demo(0)], rate=7.3)
    with pytest.raises(UsageError, match="--fps 20"):
        import_hdf5(path, tmp_path / "out", task="lift")
    with pytest.raises(DataError, match="--task 'lift the cube'"):
        import_hdf5(path, tmp_path / "out", rate_hz=10)
    with pytest.raises(UsageError, match="no observation 'elbow'; its vectors are ee_states, gripper_states, joint_states, object"):
        import_hdf5(path, tmp_path / "out", rate_hz=10, task="lift", state=("elbow",))
    import_hdf5(path, tmp_path / "out", rate_hz=10, task="lift", state=("joint_states",))
    dataset = Dataset.open(tmp_path / "out")
    assert (dataset.fps, dataset.tasks) == (10, ("lift",))
    assert np.array_equal(dataset.state, demo(0)["obs"]["joint_states"].astype(np.float32))
    assert "observation.ee_states" in dataset.features


@pytest.mark.parametrize(
    ("about", "task"),
    [
        ({"problem_info": json.dumps({"language_instruction": '"close the drawer"'})}, "close the drawer"),
        ({"problem_info": json.dumps({"language_instruction": ["close the drawer"]})}, "close the drawer"),
        ({"language_instruction": "open it"}, "open it"),
        ({"language_instruction": np.bytes_(b"open it")}, "open it"),
        ({}, "turn on the stove"),
    ],
)
def test_the_instruction_is_found(tmp_path, about, task):
    import_hdf5(write_file(tmp_path / LIBERO_NAME, [demo(0)], about), tmp_path / "out")
    assert Dataset.open(tmp_path / "out").tasks == (task,)


def test_names_of_files_hold_instructions():
    assert task_of_name("KITCHEN_SCENE10_put_the_black_bowl_on_the_plate_demo") == "put the black bowl on the plate"
    assert task_of_name("LIVING_ROOM_SCENE2_pick_up_the_milk_demo") == "pick up the milk"
    assert task_of_name("open_the_top_drawer_demo") == "open the top drawer"
    assert task_of_name("image_v15") is None


def test_splits_are_kept(tmp_path):
    path = write_file(tmp_path / LIBERO_NAME, [demo(0), demo(1)])
    with h5py.File(path, "a") as file:
        file["mask/train"] = np.array([b"demo_0"])
        file["mask/20_percent"] = np.array([b"demo_0", b"demo_1"])
    import_hdf5(path, tmp_path / "out")
    assert Dataset.open(tmp_path / "out").extra("split") == ["20_percent,train", "20_percent"]


def test_one_broken_episode_is_left_out_as_if_it_had_never_been_there(tmp_path):
    bad = demo(1)
    bad["actions"][2, 3] = np.nan
    path = write_file(tmp_path / "a" / LIBERO_NAME, [demo(0), bad, demo(2)])
    with pytest.raises(
        DataError, match=r"demo_1 frame 2: action\[3\] is nan; 1 of 3 episodes are broken, the budget is 1%: .*--budget 0.34"
    ):
        import_hdf5(path, tmp_path / "out")
    report = import_hdf5(path, tmp_path / "out", budget=0.34, images="image")
    assert (report.episodes, len(report.broken)) == (2, 1)
    assert any(line.startswith("1 broken episodes left out:") and "demo_1 frame 2" in line for line in report.lines())
    assert json.loads((tmp_path / "out/meta/deftly.json").read_text())["import"]["broken_left_out"] == report.broken
    whole = write_file(tmp_path / "b" / LIBERO_NAME, [demo(0), demo(2)])
    import_hdf5(whole, tmp_path / "plain", images="image")
    left, plain = Dataset.open(tmp_path / "out"), Dataset.open(tmp_path / "plain")
    assert np.array_equal(left.action, plain.action)
    assert left.hash == plain.hash or left.extra("source") != plain.extra("source")
    with pytest.raises(DataError, match="no episode would be left"):
        import_hdf5(write_file(tmp_path / "c" / LIBERO_NAME, [bad]), tmp_path / "none", budget=0.9)


def with_depth(number: int, length: int = 5, dtype: str = "float32") -> dict:
    """A demonstration with distances of 0.3 to 2.1 m, as robomimic stores them, or in another type."""
    item = demo(number, length)
    metres = np.random.default_rng(number).uniform(0.3, 2.1, (length, 16, 24, 1))
    item["obs"]["agentview_depth"] = (metres * (1000 if dtype.startswith(("u", "i")) else 1)).astype(dtype)
    return item


@pytest.mark.parametrize(("dtype", "unit"), [("float32", "metres"), ("float64", "metres"), ("uint16", "millimetres")])
def test_depth_becomes_depth(tmp_path, dtype, unit):
    path = write_file(tmp_path / LIBERO_NAME, [with_depth(0, dtype=dtype), with_depth(1, 7, dtype)])
    report = import_hdf5(path, tmp_path / "out")
    assert report.left_out == ["states"]
    assert any(
        line.startswith(f"obs/agentview_depth: read as {unit}, 0.30") and "kept as whole millimetres" in line for line in report.lines()
    )
    dataset = Dataset.open(tmp_path / "out")
    assert (dataset.cameras, dataset.depth_cameras) == (("agentview", "eye_in_hand"), ("agentview_depth",))
    assert depth_cameras(dataset, ["agentview_depth"], ["agentview"], None)[0].camera == "agentview"
    for number, length in enumerate((5, 7)):
        given = with_depth(number, length, dtype)["obs"]["agentview_depth"][..., 0].astype(np.float64) / (1 if unit == "metres" else 1000)
        assert np.abs(dataset.depth(number, "agentview_depth") - given).max() < 0.000501


def test_what_is_no_distance_becomes_not_measured_and_is_counted(tmp_path):
    item = with_depth(0)
    item["obs"]["agentview_depth"][0, 0, :4, 0] = (np.nan, np.inf, 70.0, 0.0)
    report = import_hdf5(write_file(tmp_path / LIBERO_NAME, [item]), tmp_path / "out")
    assert Dataset.open(tmp_path / "out").depth(0, "agentview_depth")[0, 0, :4].tolist() == [0, 0, 0, 0]
    assert any("3 values that are no distance" in line for line in report.lines())


def test_a_depth_buffer_is_pointed_out(tmp_path):
    item = with_depth(0)
    item["obs"]["agentview_depth"] /= 3
    report = import_hdf5(write_file(tmp_path / LIBERO_NAME, [item]), tmp_path / "out")
    assert any("if these are values of a depth buffer" in line for line in report.lines())


def test_depth_below_zero_is_a_broken_episode(tmp_path):
    item = with_depth(1)
    item["obs"]["agentview_depth"][2, 3, 4] = -0.5
    path = write_file(tmp_path / LIBERO_NAME, [with_depth(0), item])
    with pytest.raises(DataError, match=r"demo_1: obs/agentview_depth holds distances below 0, down to -0\.5"):
        import_hdf5(path, tmp_path / "out")


@pytest.mark.parametrize("dtype", ["uint8", "int32"])
def test_depth_of_which_nobody_knows_the_unit_is_left_out_by_name(tmp_path, dtype):
    report = import_hdf5(write_file(tmp_path / LIBERO_NAME, [with_depth(0, dtype=dtype)]), tmp_path / "out")
    assert report.left_out == ["obs/agentview_depth", "states"]
    assert Dataset.open(tmp_path / "out").depth_cameras == ()


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, "{"])
def test_an_attribute_that_is_no_json_is_one_line(tmp_path, text):
    path = tmp_path / LIBERO_NAME
    write_file(path, [demo(0)], {"problem_info": text[:60_000]})
    with pytest.raises(DataError, match="problem_info is not valid JSON"):
        import_hdf5(path, tmp_path / "out")


def test_half_a_character_in_json_is_an_instruction_that_a_file_can_hold(tmp_path):
    path = write_file(tmp_path / LIBERO_NAME, [demo(0)], {"problem_info": '{"language_instruction": "open \\ud800 it"}'})
    import_hdf5(path, tmp_path / "out")
    assert Dataset.open(tmp_path / "out").tasks == ("open \ufffd it",)


def test_text_that_is_not_utf_8_is_refused_in_one_line(tmp_path):
    path = write_file(tmp_path / LIBERO_NAME, [demo(0)])
    with h5py.File(path, "a") as file:
        file["data"].attrs.create("language_instruction", b"open \xff it", dtype=h5py.string_dtype())
    with pytest.raises(DataError, match="the attribute language_instruction cannot be read"):
        import_hdf5(path, tmp_path / "out")
    path = write_file(tmp_path / "b" / LIBERO_NAME, [demo(0)])
    with h5py.File(path, "a") as file:
        file.create_dataset(b"data/demo_0/obs/caf\xe9", data=np.zeros(5))
    with pytest.raises(DataError, match="an entry whose name is not UTF-8"):
        import_hdf5(path, tmp_path / "other")


def edit(change: Callable[[h5py.Group, Path], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        with h5py.File(path, "a") as file:
            change(file["data/demo_0"], path)

    return damage


def replace(name: str, value: object) -> Callable[[Path], None]:
    def change(group: h5py.Group, path: Path) -> None:
        del group[name]
        if value is not None:
            group[name] = value

    return edit(change)


def external_storage(group: h5py.Group, path: Path) -> None:
    (path.parent / "secret.bin").write_bytes(bytes(5 * 7 * 8))
    del group["actions"]
    group.create_dataset("actions", (5, 7), "f8", external=[(str(path.parent / "secret.bin"), 0, 5 * 7 * 8)])


def virtual(group: h5py.Group, path: Path) -> None:
    other = write_file(path.parent / "elsewhere" / "other.h5", [demo(9)])
    layout = h5py.VirtualLayout((5, 7), "f8")
    layout[:] = h5py.VirtualSource(str(other), "data/demo_0/actions", (5, 7))
    del group["actions"]
    group.create_virtual_dataset("actions", layout)


def external_link(group: h5py.Group, path: Path) -> None:
    other = write_file(path.parent / "elsewhere" / "other.h5", [demo(9)])
    del group["actions"]
    group["actions"] = h5py.ExternalLink(str(other), "/data/demo_0/actions")


def soft_link(group: h5py.Group, path: Path) -> None:
    del group["actions"]
    group["actions"] = h5py.SoftLink("/data/demo_1/actions")


def giant(group: h5py.Group, path: Path) -> None:
    del group["actions"]
    group.create_dataset("actions", (1 << 40, 7), "f8", chunks=(1024, 7))


def hollow(group: h5py.Group, path: Path) -> None:
    del group["actions"]
    group.create_dataset("actions", (1_000_000, 7), "f8", chunks=(1024, 7))


def many(group: h5py.Group, path: Path) -> None:
    for i in range(12):
        group[f"obs/k{i}"] = np.zeros(5)


DAMAGE = {
    "external storage": (edit(external_storage), "kept in another file"),
    "virtual": (edit(virtual), "kept in another file"),
    "external link": (edit(external_link), "'actions' is a ExternalLink"),
    "soft link": (edit(soft_link), "'actions' is a SoftLink"),
    "giant": (edit(giant), "bytes, more than 4294967296"),
    "hollow": (edit(hollow), "claims 56000000 bytes, of which the file holds 0"),
    "many": (edit(many), "entries, more than 10"),
    "objects": (replace("actions", np.array(["a", "b"], dtype=object)), "has no actions"),
    "no actions": (replace("actions", None), "has no actions"),
    "flat actions": (replace("actions", np.zeros(5)), "has no actions"),
    "no obs": (replace("obs", None), "has no group 'obs'"),
    "count": (edit(lambda group, _: group.attrs.modify("num_samples", 6)), "holds 5 actions, its num_samples is 6"),
    "images": (replace("obs/agentview_rgb", np.zeros((5, 16, 24, 3), np.float32)), "is float32"),
    "rows": (replace("obs/ee_states", np.zeros((4, 6))), r"ee_states has shape \[4, 6\], expected \[5, 6\]"),
    "json": (lambda path: write_file(path, [demo(0)], {"problem_info": "[" * 100_000}), "problem_info is not valid JSON"),
    "instruction": (
        lambda path: write_file(path, [demo(0)], {"language_instruction": np.bytes_(b"\xff\xfe")}),
        "language_instruction cannot be read",
    ),
    "nothing": (lambda path: write_file(path, []), "holds no demonstrations"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:3000]), "not an HDF5 file, or a damaged one"),
    "another kind": (lambda path: path.write_bytes(b"PK\3\4" + bytes(99)), "not an HDF5 file"),
}


@guards("data.hdf5.external", "data.hdf5.link", "data.hdf5.size", "data.hdf5.ratio", "data.hdf5.names", "data.importers.budget")
@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_broken_or_a_trap_is_named_and_leaves_nothing(tmp_path, monkeypatch, damage):
    monkeypatch.setattr(hdf5, "MAX_NAMES", 10)
    change, message = DAMAGE[damage]
    path = write_file(tmp_path / "src" / LIBERO_NAME, [demo(0), demo(1)])
    change(path)
    with pytest.raises(DataError, match=message) as caught:
        import_hdf5(path, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert [item.name for item in tmp_path.iterdir()] == ["src"]


def test_links_out_of_the_folder_are_not_followed(tmp_path):
    write_file(tmp_path / "elsewhere" / LIBERO_NAME, [demo(0)])
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / LIBERO_NAME).symlink_to(tmp_path / "elsewhere" / LIBERO_NAME)
    with pytest.raises(DataError, match="leads outside"):
        import_hdf5(tmp_path / "src", tmp_path / "out")
    for empty in ("nothing", "elsewhere/none"):
        with pytest.raises(DataError, match="no such file or folder"):
            import_hdf5(tmp_path / empty, tmp_path / "out")


CANARY = """
import os, pickle, sys
class Trap:
    def __reduce__(self):
        return os.mkdir, (sys.argv[2],)
with open(sys.argv[1], "wb") as file:
    pickle.dump(Trap(), file)
"""


def disguised(tmp_path: Path, kind: str) -> Path:
    """A file that is something else than its name says: a pickle, an archive that leaves its folder, an array of objects."""
    path = tmp_path / "src" / "x.hdf5"
    path.parent.mkdir()
    trap = tmp_path / "trap"
    subprocess.run([sys.executable, "-c", CANARY, str(trap), str(tmp_path / "canary")], check=True)
    if kind == "pickle":
        trap.rename(path)
    elif kind == "tar":
        with tarfile.open(path, "w") as archive:
            archive.add(trap, arcname="../canary")
    else:
        header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }" + b" " * 20 + b"\n"
        path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + trap.read_bytes())
    return path


@pytest.mark.parametrize("kind", ["pickle", "tar", "npy"])
def test_disguised_files_run_nothing(tmp_path, kind):
    path = disguised(tmp_path, kind)
    for source in (path, path.parent):
        with pytest.raises(DataError, match="not an HDF5 file"):
            import_hdf5(source, tmp_path / "out")
    assert not (tmp_path / "canary").exists()
    assert not (tmp_path / "out").exists()
