"""What our reader finds in a dataset, and whether lerobot finds the same. Run by judge_lerobot.sh, each half in its own environment:
lerobot 0.4.4 for v3.0, 0.3.3 for v2.1.

export DATASET FOLDER    (ours)     every numeric column, and windows of history, chunk and pixels at chosen rows
compare DATASET FOLDER   (judge's)  opens DATASET with lerobot and compares, exactly
record DATASET FOLDER    (judge's)  records DATASET with lerobot, and reads it back with lerobot
reread DATASET FOLDER    (ours)     opens that DATASET with our reader and compares, exactly
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

STATE_STEPS = (-1, 0)
ACTION_STEPS = tuple(range(-1, 15))
CAMERA_STEPS = (-1, 0)
EPISODES = 6  # whose first, middle and last rows are read as windows


def export(root: Path, folder: Path) -> None:
    from deftly.data.dataset import Dataset

    dataset = Dataset.open(root)
    folder.mkdir(exist_ok=True)
    names = [name for name, item in dataset.features.items() if item.is_numeric]
    arrays = {f"column/{name}": dataset.column(name) for name in names}
    rows = []
    for episode in np.unique(np.linspace(0, dataset.num_episodes - 1, EPISODES).round().astype(int)):
        start, end = (int(i) for i in dataset.episode_start[episode : episode + 2])
        rows += sorted({start, (start + end) // 2, end - 1})
    for row in rows:
        episode = int(np.searchsorted(dataset.episode_start, row, side="right")) - 1
        start, end = (int(i) for i in dataset.episode_start[episode : episode + 2])
        for name, steps, values in (("observation.state", STATE_STEPS, dataset.state), ("action", ACTION_STEPS, dataset.action)):
            wanted = row + np.array(steps)
            arrays[f"window/{row}/{name}"] = values[np.clip(wanted, start, end - 1)]
            arrays[f"window/{row}/{name}_is_pad"] = (wanted < start) | (wanted >= end)
        for camera, key in dataset.info.cameras().items():
            wanted = np.clip(row + np.array(CAMERA_STEPS), start, end - 1) - start
            arrays[f"window/{row}/{key}"] = dataset.frames(episode, camera, wanted)
    np.savez(folder / "arrays.npz", allow_pickle=False, **arrays)
    facts = {
        "fps": dataset.fps,
        "robot_type": dataset.robot_type,
        "episodes": dataset.num_episodes,
        "frames": dataset.num_frames,
        "tasks": list(dataset.tasks),
        "episode_start": dataset.episode_start.tolist(),
        "names": names,
        "rows": rows,
        "cameras": list(dataset.info.cameras().values()),
        "has_state": "observation.state" in names,
        "extra": {name: dataset.extra(name) for name in dataset.extra_names},
    }
    (folder / "facts.json").write_text(json.dumps(facts))


class Judgement:
    """Counts what was compared, remembers what differed."""

    def __init__(self) -> None:
        self.compared: dict[str, int] = {}
        self.differences: list[str] = []

    def same(self, kind: str, where: str, expected: Any, found: Any) -> None:
        expected, found = np.asarray(expected), np.asarray(found)
        self.compared[kind] = self.compared.get(kind, 0) + expected.size
        if expected.shape != found.shape:
            self.differences.append(f"{kind}: {where}: shape {expected.shape} here, {found.shape} there")
        elif not np.array_equal(expected, found):
            detail = ""
            if expected.dtype.kind in "fiu":
                detail = f", largest difference {np.abs(expected.astype(float) - found.astype(float)).max():g}"
            self.differences.append(f"{kind}: {where}: {int((expected != found).sum())} of {expected.size} values differ{detail}")

    def report(self, title: str) -> int:
        """Print the evidence; 1 when anything differed."""
        print(title)
        for kind, count in self.compared.items():
            bad = [line for line in self.differences if line.startswith(f"{kind}: ")]
            print(f"  {kind:<22} {count:>12,} compared   {f'{len(bad)} DIFFER' if bad else 'equal'}")
        for line in self.differences[:20]:
            print(f"  DIFFERENT {line}")
        return 1 if self.differences else 0


def compare(root: Path, folder: Path) -> int:
    from importlib.metadata import version

    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    facts = json.loads((folder / "facts.json").read_text())
    arrays = np.load(folder / "arrays.npz", allow_pickle=False)
    fps = facts["fps"]
    deltas = {"action": [step / fps for step in ACTION_STEPS]}
    deltas |= {key: [step / fps for step in CAMERA_STEPS] for key in facts["cameras"]}
    if facts["has_state"]:
        deltas["observation.state"] = [step / fps for step in STATE_STEPS]
    dataset = LeRobotDataset("judge/dataset", root=root, video_backend="pyav", delta_timestamps=deltas)
    judgement = Judgement()
    compare_meta(judgement, dataset, facts)
    compare_columns(judgement, dataset, facts, arrays)
    for row in facts["rows"]:
        compare_window(judgement, dataset[row], row, facts, arrays)
    versions = ", ".join(f"{name} {version(name)}" for name in ("av", "datasets"))
    return judgement.report(f"{root}: read by lerobot {version('lerobot')} ({versions})")


def is_v21(dataset: Any) -> bool:
    """Whether this is lerobot 0.3, whose metadata are dictionaries of what stood in json lines."""
    return isinstance(dataset.meta.tasks, dict)


def compare_meta(judgement: Judgement, dataset: Any, facts: dict[str, Any]) -> None:
    meta = dataset.meta
    if is_v21(dataset):
        tasks, numbers = list(meta.tasks.values()), list(meta.tasks)
        first, last = dataset.episode_data_index["from"].numpy(), dataset.episode_data_index["to"].numpy()
        provenance = {name: [meta.episodes[i].get(name) for i in range(meta.total_episodes)] for name in facts["extra"]}
        statistics = {"min", "max", "mean", "std", "count"}
    else:
        tasks, numbers = [meta.tasks.iloc[i].name for i in range(meta.total_tasks)], meta.tasks["task_index"].tolist()
        first, last = meta.episodes["dataset_from_index"], meta.episodes["dataset_to_index"]
        provenance = {name: meta.episodes[name] for name in facts["extra"]}
        statistics = {"min", "max", "mean", "std", "count", "q01", "q10", "q50", "q90", "q99"}
    for name, expected, found in (
        ("fps", facts["fps"], meta.fps),
        ("robot_type", str(facts["robot_type"]), str(meta.robot_type)),
        ("episodes", facts["episodes"], meta.total_episodes),
        ("frames", facts["frames"], len(dataset)),
        ("cameras", facts["cameras"], meta.camera_keys),
        ("tasks", facts["tasks"], tasks),
        ("task numbers", list(range(len(facts["tasks"]))), numbers),
        ("task lookup", list(range(len(facts["tasks"]))), [meta.get_task_index(task) for task in facts["tasks"]]),
        ("first rows", facts["episode_start"][:-1], first),
        ("last rows", facts["episode_start"][1:], last),
    ):
        judgement.same("metadata", name, expected, found)
    for name, expected in facts["extra"].items():
        judgement.same("provenance", name, [str(value) for value in expected], [str(value) for value in provenance[name]])
    for name in [*facts["names"], *facts["cameras"]]:
        judgement.same("statistics there", name, True, statistics <= set(meta.stats[name]))


def compare_columns(judgement: Judgement, dataset: Any, facts: dict[str, Any], arrays: Any) -> None:
    table = dataset.hf_dataset.with_format("numpy", columns=facts["names"])
    rows = table[:]
    for name in facts["names"]:
        expected = arrays[f"column/{name}"]
        judgement.same("column values", name, expected, np.asarray(rows[name]).reshape(expected.shape))
        values, stats = expected.reshape(len(expected), -1).astype(np.float32), dataset.meta.stats[name]
        found = np.float32([stats["min"], stats["max"]])  # other recorders took them before they rounded their columns to float32
        judgement.same("statistics min max", name, [values.min(0), values.max(0)], found)


def compare_window(judgement: Judgement, item: dict[str, Any], row: int, facts: dict[str, Any], arrays: Any) -> None:
    for name in ("observation.state", "action"):
        if name in item:
            expected = arrays[f"window/{row}/{name}"]
            judgement.same("window values", f"row {row} {name}", expected, item[name].numpy().reshape(expected.shape))
            judgement.same("window padding", f"row {row} {name}", arrays[f"window/{row}/{name}_is_pad"], item[f"{name}_is_pad"].numpy())
    for key in facts["cameras"]:
        pixels = item[key].numpy() * 255  # their images are float32 in [0, 1], channels first
        judgement.same(
            "window pixels", f"row {row} {key}", arrays[f"window/{row}/{key}"], pixels.round().astype(np.uint8).transpose(0, 2, 3, 1)
        )
    expected = arrays["column/task_index"][row]
    judgement.same("instruction", f"row {row}", facts["tasks"][int(expected)], item["task"])
    for name in ("timestamp", "frame_index", "episode_index", "index"):
        judgement.same("keys", f"row {row} {name}", arrays[f"column/{name}"][row].reshape(()), item[name].numpy())


RECORDED = (9, 14, 5)  # frames of each episode that lerobot records


def record(root: Path, folder: Path) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    draw = np.random.default_rng(0)
    features = {
        "observation.images.front": {"dtype": "video", "shape": (48, 64, 3), "names": ["height", "width", "channels"]},
        "observation.images.wrist": {"dtype": "image", "shape": (48, 64, 3), "names": ["height", "width", "channels"]},
        "observation.state": {"dtype": "float32", "shape": (3,), "names": ["a", "b", "c"]},
        "action": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
        "next.reward": {"dtype": "float32", "shape": (1,), "names": None},
    }
    dataset = LeRobotDataset.create("judge/recorded", fps=30, features=features, root=root, robot_type="arm", use_videos=True)
    y, x = np.mgrid[:48, :64]
    for episode, length in enumerate(RECORDED):
        for i in range(length):
            image = np.stack([x * 3, y * 4, 0 * x + 40 * episode + 5 * i], axis=-1).astype(np.uint8)
            frame = {"observation.images.front": image, "observation.images.wrist": image[::-1].copy()}
            frame |= {"observation.state": draw.normal(size=3).astype(np.float32), "action": draw.normal(size=2).astype(np.float32)}
            frame, task = {**frame, "next.reward": np.float32([i])}, f"task {episode % 2}"
            if is_v21(dataset):
                dataset.add_frame(frame, task)
            else:
                dataset.add_frame({**frame, "task": task})
        dataset.save_episode()
    if not is_v21(dataset):
        dataset.finalize()
    read = LeRobotDataset("judge/recorded", root=root, video_backend="pyav")
    folder.mkdir(exist_ok=True)
    items = [read[i] for i in range(len(read))]
    arrays = {name: np.stack([np.asarray(item[name]) for item in items]) for name in items[0] if name != "task"}
    np.savez(folder / "recorded.npz", allow_pickle=False, tasks=np.array([item["task"] for item in items]), **arrays)


def reread(root: Path, folder: Path) -> int:
    from deftly.data.dataset import Dataset

    dataset, expected, judgement = Dataset.open(root), np.load(folder / "recorded.npz", allow_pickle=False), Judgement()
    judgement.same("metadata", "lengths", RECORDED, dataset.episode_length)
    judgement.same("metadata", "robot", "arm", dataset.robot_type)
    for name in ("observation.state", "action", "next.reward", "timestamp", "frame_index", "episode_index", "index", "task_index"):
        judgement.same("column values", name, expected[name].reshape(dataset.column(name).shape), dataset.column(name))
    judgement.same("instruction", "all", expected["tasks"], [dataset.tasks[i] for i in dataset.task_of_frame])
    for camera, key in dataset.info.cameras().items():
        found = np.concatenate([dataset.frames(e, camera) for e in range(dataset.num_episodes)])
        judgement.same("pixels", key, (expected[key] * 255).round().astype(np.uint8).transpose(0, 2, 3, 1), found)
    return judgement.report(f"{root}: recorded by lerobot, read by us")


def main() -> int:
    action, root, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    if action == "export":
        export(root, folder)
    elif action == "record":
        record(root, folder)
    else:
        return compare(root, folder) if action == "compare" else reread(root, folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
