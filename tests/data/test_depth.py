"""Depth: the same places as the image's, never a value that was not measured, the same in training and in action."""

import io
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

import deftly
from deftly import storage
from deftly.contract import Camera, Embodiment, Mirror, Vector, Window
from deftly.data.augment import OFF, AugmentConfig
from deftly.data.check.findings import CheckConfig
from deftly.data.check.run import check
from deftly.data.dataset import Dataset
from deftly.data.depth import FILE, DepthStore, depth_cameras, fit, in_metres, millimetres, warp_depth
from deftly.data.export import export_v21
from deftly.data.images import resize_with_pad
from deftly.data.importers.lerobot_v21 import import_lerobot_v21
from deftly.data.loader import Loader
from deftly.data.mirror import draw_mirrored
from deftly.data.prepared import TrainingData
from deftly.data.repair import repair
from deftly.data.schema import Feature
from deftly.data.show import show
from deftly.data.source import DataConfig
from deftly.data.stored import Frames
from deftly.data.warp import draw_maps, warp
from deftly.data.windows import locate, maps_of
from deftly.data.writer import DatasetWriter, EpisodeData
from deftly.models.policy import VLAPolicy
from deftly.recipes import RECIPES
from deftly.run import Run, train
from deftly.training.step import check_batch
from deftly.types import DataError, Observation, UsageError

LENGTHS = (5, 4, 6)
HEIGHT, WIDTH, SIZE = 24, 32, 16
INFO = {"video.is_depth_map": True, "depth_unit": "mm"}
AXES = ("height", "width", "channels")
ROBOT = Embodiment(
    name="two arms",
    rate_hz=10,
    cameras=(Camera(name="left", height=HEIGHT, width=WIDTH), Camera(name="right", height=HEIGHT, width=WIDTH)),
    state=Vector(names=("a", "b"), units=("rad",) * 2),
    action=Vector(names=("a", "b"), units=("rad",) * 2),
    mirror=Mirror(
        state_order=(1, 0), state_sign=(1, 1), action_order=(1, 0), action_sign=(1, 1), cameras={"left": "right", "right": "left"}
    ),
)
CROPPED = AugmentConfig(crop_scale=(0.6, 1.0), shift_pixels=0, rotation_degrees=10)


def measured(episode: int, name: str) -> np.ndarray:
    draw = np.random.default_rng([episode, len(name)])
    depth = draw.integers(300, 9000, (LENGTHS[episode], HEIGHT, WIDTH)).astype(np.uint16)
    depth[draw.random(depth.shape) < 0.1] = 0
    return depth


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("depth") / "data"
    names = ("left_depth", "right_depth", "floor_depth")
    extra = {f"observation.images.{name}": Feature("image", (HEIGHT, WIDTH, 1), AXES, INFO) for name in names}
    with DatasetWriter(root, ROBOT, extra=extra) as writer:
        for episode, length in enumerate(LENGTHS):
            draw = np.random.default_rng(episode)
            images = {name: draw.integers(0, 255, (length, HEIGHT, WIDTH, 3)).astype(np.uint8) for name in ("left", "right")}
            numbers = draw.normal(size=(length, 2)).astype(np.float32)
            depth = {f"observation.images.{name}": measured(episode, name) for name in names}
            writer.add(EpisodeData(images=images, state=numbers, action=numbers, task="lift the cup", extra_frame=depth))
        writer.finish()
    return root


def build(root, **changes) -> TrainingData:
    given = {"image_size": SIZE, "batch_size": 4, "validation_fraction": 0, "window": Window(frames=2, chunk=3), "augmentation": OFF}
    config = DataConfig(path=root, **{**given, "depth": ("left_depth", "right_depth"), **changes})
    return config.build(seed=0, device="cpu", executed_steps=2)


def loader_of(data: TrainingData) -> Loader:
    assert isinstance(data.train, Loader)
    return data.train


def frames_of(data: TrainingData) -> DepthStore:
    frames = loader_of(data).windows.frames
    assert isinstance(frames, Frames)
    assert frames.depth is not None
    return frames.depth


sizes = st.integers(1, 40)


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, sizes, st.integers(0, 2**32 - 1))
def test_fitting_keeps_measured_values_and_the_place_of_the_image(height, width, size, seed):
    depth = np.random.default_rng(seed).integers(1, 65536, (2, height, width)).astype(np.uint16)
    fitted = fit(depth, size)
    assert set(np.unique(fitted)) <= {0, *np.unique(depth)}
    inside = resize_with_pad(np.full((height, width, 3), 255, np.uint8), size)[:, :, 0] > 0
    assert ((fitted > 0) == inside).all()
    assert height != width or height != size or np.array_equal(fitted, depth)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**62), st.integers(4, 24), st.integers(4, 24), st.sampled_from([OFF, CROPPED, AugmentConfig(shift_pixels=3)]))
def test_every_pixel_is_the_measured_one_that_is_nearest_to_where_the_map_points(key, size, stored, config):
    keys = torch.tensor([key, key + 1])
    (maps,) = draw_maps(keys, ["left"], ["scene"], config, size, stored)
    y, x = np.mgrid[:stored, :stored]
    frames = (1 + y * stored + x)[None].astype(np.uint16)  # each pixel says where it was
    found = warp_depth(frames, np.zeros((2, 1), np.int64), maps, size)[:, 0].astype(np.int64) - 1
    corners = np.stack(np.broadcast_arrays(np.arange(size)[None, :], np.arange(size)[:, None], 1)).astype(np.float64)
    wanted = np.clip(np.einsum("bij,jyx->biyx", maps.astype(np.float64), corners), 0, stored - 1)
    gap = np.abs(np.stack([found % stored, found // stored], 1) - wanted)
    assert gap.max() <= 0.5 + 1e-4


@pytest.mark.parametrize("mirror", [0.0, 0.5])
def test_a_shift_moves_depth_exactly_as_it_moves_the_image(mirror):
    draw, key = np.random.default_rng(0), torch.arange(30) * 7919
    grey = draw.integers(1, 256, (3, SIZE, SIZE)).astype(np.uint8)
    maps = draw_maps(key, ["left"], ["scene"], AugmentConfig(shift_pixels=5, mirror=mirror), SIZE, SIZE)[0]
    rows = draw.integers(0, 3, (30, 2))
    assert draw_mirrored(key, mirror).any() == bool(mirror)
    image = warp(np.stack([grey] * 3, -1), rows, maps, SIZE)[..., 0]
    assert np.array_equal(warp_depth(grey.astype(np.uint16), rows, maps, SIZE), image)


def test_metres_and_millimetres():
    every = np.arange(65536).astype(np.uint16)
    assert np.array_equal(millimetres(in_metres(every)), every)
    assert millimetres(np.array([65.5351, 65.536, 1e9, 0, 0.0004], np.float32)).tolist() == [65535, 0, 0, 0, 0]


@pytest.mark.parametrize("augmentation", [OFF, CROPPED, CROPPED.replace(mirror=0.5)], ids=["still", "cropped", "mirrored"])
def test_a_batch_holds_the_depth_of_its_frames_under_the_maps_of_their_image(root, augmentation):
    data = build(root, augmentation=augmentation)
    depth_store = frames_of(data)
    dataset, contract, start = data.dataset, data.contract, data.dataset.episode_start
    whole = {
        name: np.concatenate([fit(measured(e, name), contract.frame_size) for e in range(len(LENGTHS))])
        for name in ("left_depth", "right_depth")
    }
    assert all(np.array_equal(depth_store.frames[name], depth) for name, depth in whole.items())
    assert contract.frame_size == (SIZE if augmentation is OFF else 19)
    for _ in range(6):
        batch = data.train.next()
        now = start[batch.episode.numpy()] + batch.frame.numpy()
        rows = locate(dataset.episode_start, now, contract.window)[1].observation
        maps = dict(zip(contract.cameras, maps_of(batch.key, augmentation, contract), strict=True))
        mirrored = draw_mirrored(batch.key, augmentation.mirror)
        assert list(batch.depth) == ["left_depth", "right_depth"]
        for camera, other in (("left", "right"), ("right", "left")):
            depth = batch.depth[f"{camera}_depth"]
            assert depth.dtype == torch.float32
            assert depth.shape == (4, 2, 1, SIZE, SIZE)
            for i in range(4):
                source = whole[f"{other if mirrored[i] else camera}_depth"]
                wanted = warp_depth(source, rows[i : i + 1], maps[camera][i : i + 1], SIZE)[0]
                assert np.array_equal(depth[i, :, 0].numpy(), in_metres(wanted))
    data.close()


def test_workers_and_a_resumed_run_change_no_depth(root):
    here, there = build(root, augmentation=CROPPED), build(root, augmentation=CROPPED, workers=1)
    wanted = [here.train.next() for _ in range(6)]
    there.train.load_state({**here.train.state(), "consumed": 8})
    for batch in wanted[2:]:
        found = there.train.next()
        assert all(torch.equal(found.depth[name], batch.depth[name]) for name in batch.depth)
    here.close()
    there.close()


@pytest.mark.parametrize("augmentation", [OFF, CROPPED], ids=["no margin", "margin"])
def test_the_robot_sees_what_validation_sees(root, augmentation):
    data = build(root, augmentation=augmentation)
    dataset = data.dataset
    batch = next(loader_of(data).batches())
    for i in range(4):
        episode, frame = int(batch.episode[i]), int(batch.frame[i])
        observations: list[Observation] = [
            {
                "images": {name: dataset.frames(episode, name, np.array([at]))[0] for name in ("left", "right")},
                "depth": {name: dataset.depth(episode, name, np.array([at]))[0] for name in ("left_depth", "right_depth")},
                "state": dataset.state[dataset.episode_start[episode] + at],
                "instruction": "lift the cup",
            }
            for at in range(max(0, frame - 1), frame + 1)
        ]
        acting = data.encoder.encode(observations, [None] * len(observations), key=1)
        for name, depth in acting.depth.items():
            assert torch.equal(depth[0], batch.depth[name][i])
    data.close()


def test_an_observation_without_the_depth_of_the_contract_is_refused(root):
    data = build(root)
    given = {name: np.ones((HEIGHT, WIDTH), np.float32) for name in ("left_depth", "right_depth")}
    blank = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    observation: Observation = {"images": {"left": blank, "right": blank}, "state": np.zeros(2, np.float32), "instruction": "lift the cup"}
    with pytest.raises(DataError, match=r"depth camera 'left_depth' is missing; it has none"):
        data.encoder.encode([observation], [None], 0)
    for value, message in (
        (np.ones((WIDTH, HEIGHT), np.float32), r"is float32 \[32, 24\], the policy was trained on float32 \[24, 32\]"),
        (np.ones((HEIGHT, WIDTH), np.uint16), "is uint16"),
        (np.full((HEIGHT, WIDTH), np.nan, np.float32), "not finite"),
        (np.full((HEIGHT, WIDTH), -1, np.float32), "negative"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            data.encoder.encode([{**observation, "depth": {**given, "right_depth": value}}], [None], 0)
        assert "\n" not in str(caught.value)
    assert data.encoder.encode([{**observation, "depth": given}], [None], 0).depth["left_depth"].max() == 1
    data.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": ("nose_depth",)}, "no depth camera 'nose_depth'; it has left_depth, right_depth, floor_depth"),
        ({"depth": ("floor_depth",)}, "depth camera 'floor_depth' belongs to none of the policy's cameras left, right"),
        ({"depth": ("left_depth", "left_depth")}, "name each depth camera once"),
        ({"frames": "video"}, "depth is read from a store, of a single dataset"),
        ({"depth": ("left_depth",), "augmentation": OFF.replace(mirror=0.5)}, "'left_depth' has no partner among `depth`"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(root, changes, message):
    with pytest.raises(UsageError, match=message) as caught:
        build(root, **changes)
    assert "\n" not in str(caught.value)


def test_without_depth_nothing_is_there(root):
    data = build(root, depth=())
    assert data.contract.depth == ()
    assert data.train.next().depth == {}
    data.close()


def test_the_store_is_kept_and_a_truncated_one_is_built_again(root, monkeypatch):
    store = frames_of(data := build(root))
    path, before = store.homes["left_depth"] / FILE, store.frames["left_depth"].copy()
    data.close()
    with monkeypatch.context() as patch:
        patch.setattr(Dataset, "depth", lambda *_: 1 / 0)
        build(root).close()
    path.write_bytes(path.read_bytes()[:-2])
    shutil.copytree(path.parent, killed := path.parent.with_name(f".{path.parent.name}.1234.tmp"))
    build(root).close()
    assert np.array_equal(np.fromfile(path, np.uint16).reshape(before.shape), before)
    assert not killed.exists()
    with pytest.raises(UsageError, match="more than 0%"):
        build(root, image_size=24, disk_share=1e-9)


def damaged(root: Path, target: Path) -> Path:
    """A copy in which one distance picture of episode 1 lost its end, and one of episode 2 has another size."""
    shutil.copytree(root, target, ignore=shutil.ignore_patterns(".cache"))
    column = "observation.images.left_depth"
    short, small = io.BytesIO(), io.BytesIO()
    Image.fromarray(np.ones((HEIGHT, WIDTH), np.uint16)).save(short, "PNG")
    Image.fromarray(np.ones((8, 8), np.uint16)).save(small, "PNG")
    for path in sorted(target.glob("data/*/*.parquet")):
        table = pq.read_table(path)
        values = table.column(column).to_pylist()
        keys = zip(table["episode_index"].to_pylist(), table["frame_index"].to_pylist(), strict=True)
        for row, key in enumerate(keys):
            data = {(1, 2): short.getvalue()[:20], (2, 0): small.getvalue()}.get(key, values[row]["bytes"])
            values[row] = {**values[row], "bytes": data}
        field = table.schema.field(column)
        pq.write_table(table.set_column(table.schema.get_field_index(column), field, pa.array(values, field.type)), path)
    return target


def test_a_check_decodes_distances_and_repair_leaves_out_what_is_broken(root, tmp_path):
    copy = damaged(root, tmp_path / "damaged")
    found = {item.episode: item for item in check(copy).of("quarantine")}
    assert {episode: item.code for episode, item in found.items()} == {1: "broken_frame", 2: "broken_frame"}
    assert {item.field for item in found.values()} == {"left_depth"}
    assert "frame 0: is 8 x 8, expected 24 x 32" in found[2].message
    assert check(copy, CheckConfig(budget=0.9)).quarantined.tolist() == [], "only decoding tells"
    with pytest.raises(DataError, match="deftly data check"):
        build(copy)
    data = build(copy, check=CheckConfig(full=True, budget=0.9))
    assert data.dataset.num_episodes == 1
    data.close()
    repair(copy, tmp_path / "mended")
    mended = Dataset.open(tmp_path / "mended")
    assert np.array_equal(millimetres(mended.depth(0, "right_depth")), measured(0, "right_depth"))
    assert check(tmp_path / "mended").quarantined.tolist() == []


@pytest.mark.parametrize(
    ("change", "message"),
    [({"info": {"is_depth_map": True}}, "depth_unit is None"), ({"shape": [HEIGHT, WIDTH, 3]}, "depth has one channel")],
)
def test_depth_that_nobody_can_read_is_said_once_and_is_no_episode_s_fault(root, tmp_path, change, message):
    shutil.copytree(root, tmp_path / "data", ignore=shutil.ignore_patterns(".cache"))
    path = tmp_path / "data/meta/info.json"
    values = storage.read_json(path)
    values["features"]["observation.images.left_depth"].update(change)
    storage.write_json(path, values)
    report = check(tmp_path / "data")
    (found,) = [item for item in report.findings if item.code == "depth_unread"]
    assert report.quarantined.tolist() == []
    assert (found.verdict, found.field) == ("warn", "left_depth")
    assert message in found.message
    assert not found.message.count("episode")
    shown = "left_depth 24x32x1 (image, no depth_unit)" if "info" in change else "left_depth 24x32x3 (image, mm)"
    assert shown in printed(tmp_path / "data")
    with pytest.raises(DataError, match=message) as caught:
        build(tmp_path / "data")
    assert "\n" not in str(caught.value)


def printed(root: Path) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    show(Dataset.open(root), console=console)
    return console.export_text()


def test_show_names_the_depth_cameras(root):
    assert "left_depth 24x32x1 (image, mm), right_depth 24x32x1 (image, mm), floor_depth 24x32x1 (image, mm)" in printed(root)


def test_an_export_and_its_import_keep_every_distance(root, tmp_path):
    export_v21(Dataset.open(root), tmp_path / "v21")
    import_lerobot_v21(tmp_path / "v21", tmp_path / "v30")
    for path in (tmp_path / "v21", tmp_path / "v30"):
        dataset = Dataset.open(path)
        for episode in range(len(LENGTHS)):
            assert np.array_equal(millimetres(dataset.depth(episode, "floor_depth")), measured(episode, "floor_depth"))


def imitate(root: Path) -> Run:
    run = RECIPES["imitate"](True)
    return run.replace(data=run.data.replace(path=root, image_size=SIZE, depth=("left_depth",), validation_fraction=0, batch_size=2))


def test_depth_that_nothing_reads_is_refused_before_the_first_step(root, tmp_path):
    with pytest.raises(UsageError, match="neither VLAPolicy nor Imitation reads depth") as caught:
        train(imitate(root), tmp_path / "run", device="cpu")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run/checkpoints").exists()


def test_a_policy_that_reads_depth_is_trained_saved_and_acts_with_it(root, tmp_path, monkeypatch):
    encode, seen = VLAPolicy.encode, []
    monkeypatch.setattr(VLAPolicy, "reads_depth", True)
    monkeypatch.setattr(VLAPolicy, "encode", lambda self, batch: (seen.append(dict(batch.depth)), encode(self, batch))[1])
    run = imitate(root)
    with pytest.raises(UsageError, match="VLAPolicy reads depth: name its depth cameras"):
        train(run.replace(data=run.data.replace(depth=())), tmp_path / "blind", device="cpu")
    train(run.replace(training=run.training.replace(steps=2)), tmp_path / "run", device="cpu")
    assert seen
    assert {name: tuple(depth.shape) for name, depth in seen[0].items()} == {"left_depth": (2, 1, 1, SIZE, SIZE)}
    agent, dataset = deftly.load(tmp_path / "run"), Dataset.open(root)
    observation: Observation = {
        "images": {name: dataset.frames(0, name, np.array([0]))[0] for name in ("left", "right")},
        "state": dataset.state[0],
        "instruction": "lift the cup",
    }
    agent.reset(key=0)
    with pytest.raises(DataError, match="depth camera 'left_depth' is missing"):
        agent.act(observation)
    seen.clear()
    agent.reset(key=0)
    assert agent.act({**observation, "depth": {"left_depth": dataset.depth(0, "left_depth", np.array([0]))[0]}}).shape == (2,)
    assert seen[0]["left_depth"].max() > 0


def test_an_objective_that_reads_depth_needs_some(root):
    data = build(root, depth=())
    with pytest.raises(UsageError, match="reads 'depth', which the data does not give"):
        check_batch(SimpleNamespace(reads=("depth",)), data.train.next(), 1)  # type: ignore[arg-type]
    data.close()


def test_one_camera_with_one_depth_needs_no_name_for_it():
    feature = Feature("image", (HEIGHT, WIDTH, 1), AXES, INFO)
    info = SimpleNamespace(cameras=lambda depth: {"depth": "depth"})
    dataset = SimpleNamespace(root="here", info=info, features={"depth": feature}, depth_cameras=("depth",))
    assert depth_cameras(dataset, ["depth"], ["head"], None)[0].camera == "head"  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="belongs to none"):
        depth_cameras(dataset, ["depth"], ["head", "wrist"], None)  # type: ignore[arg-type]
