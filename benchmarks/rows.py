"""The rows: what each side does, how often, and what shows that both did the same.

Rounds are interleaved (ours, peer, ours, peer ...). A row's figure is the median over its rounds, its ratio that of the medians; the
smallest and the largest ratio of a single round stand beside it. Rates are compared where a row repeats something, times where it does one
thing.
"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from process import Process

Measured = dict[str, Any]
FPS = 10  # of the generated demonstrations
CAMERAS = ("observation.images.head", "observation.images.wrist")
QUANTILES = ("q01", "q10", "q50", "q90", "q99")


@dataclass(frozen=True)
class Bench:
    """The sides and how much they do. `peers` are processes of lerobot by decoder, the first of them its PyAV; `start` makes one more."""

    ours: Process
    peers: Mapping[str, Process]
    start: Callable[[str], Process]
    work: Path
    real: Path | None
    """Where real recordings are, for figures that stand beside a row's own."""
    rounds: int
    quick: bool

    @property
    def peer(self) -> Process:
        return self.peers["pyav"]

    def size(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    def fixture(self, name: str, **sizes: int) -> str:
        """The folder of a dataset, made by our side where it is not there yet."""
        root = str(self.work / "-".join(map(str, (name, *sizes.values()))))
        self.ours.call("fixture", name=name, root=root, sizes=sizes)
        return root

    def demonstrations(self) -> str:
        return self.fixture("demonstrations", episodes=self.size(40, 20), workers=0)

    def numbers(self) -> str:
        return self.fixture("numbers", episodes=self.size(500, 100), length=200)

    def interleave(self, ours: Callable[[], Any], peer: Callable[[Process, str], Any], backends: bool = True) -> dict[str, list[Any]]:
        """What each side answered in each round, the peer once per decoder where decoders matter."""
        sides = {"ours": ours} | {
            name: lambda name=name: peer(self.peers[name], name) for name in (self.peers if backends else [next(iter(self.peers))])
        }
        found: dict[str, list[Any]] = {name: [] for name in sides}
        for _ in range(self.rounds):
            for name, measure in sides.items():
                found[name].append(measure())
        return found


def summary(rounds: Mapping[str, list[Mapping[str, float]]], unit: str) -> Measured:
    """Of rates samples / seconds where the unit is `.../s`, of seconds else."""
    is_rate = unit.endswith("/s")
    values = {name: [r["samples"] / r["seconds"] if is_rate else r["seconds"] for r in found] for name, found in rounds.items()}
    median = {name: statistics.median(found) for name, found in values.items()}
    ours, (first, *others) = median.pop("ours"), list(median)

    def ratio(one: float, other: float) -> float:
        return one / other if is_rate else other / one

    each = [ratio(a, b) for a, b in zip(values["ours"], values[first], strict=True)]
    row: Measured = {"ratio": ratio(ours, median[first]), "ours": ours, "peer": median[first], "unit": unit}
    row |= {"ratio_min": min(each), "ratio_max": max(each), "rounds": len(each)}
    for name in others:
        row |= {f"peer_{name}": median[name], f"ratio_{name}": ratio(ours, median[name])}
    return row


def compare_samples(bench: Bench, names: tuple[str, ...]) -> Measured:
    """One batch of ours beside the same samples of the peer's: pixels and padding exactly, numbers to float32 after (un)normalising."""
    ours, peer = bench.work / "ours.npz", bench.work / "peer.npz"
    rows = bench.ours.call("sample", out=str(ours))
    bench.peer.call("items", rows=rows, out=str(peer))
    found, expected = np.load(ours, allow_pickle=False), np.load(peer, allow_pickle=False)
    differences = {}
    for name in names:
        there, here = expected[name], found[name]
        there = (there * 255).round().transpose(0, 2, 3, 1)[:, None] if "images" in name else there
        differences[name] = float(np.abs(here.astype(np.float64).reshape(there.shape) - there).max())
    limit = {name: 1e-5 * (1 + float(np.abs(expected[name]).max())) if name in ("observation.state", "action") else 0.0 for name in names}
    return {"equal": all(differences[name] <= limit[name] for name in names), "largest_difference": differences, "compared": len(rows)}


def store(bench: Bench) -> Measured:
    """Random windows from the prepared store beside random windows from the mp4: what each side's training reads."""
    root, chunk, size = bench.demonstrations(), 16, 32
    cache = bench.work / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    built = bench.ours.call("prepare", root=root, cache=str(cache), image_size=128, chunk=chunk, batch_size=size, frames="store")
    deltas = {**{key: [0.0] for key in (*CAMERAS, "observation.state")}, "action": [i / FPS for i in range(chunk)]}
    for backend, peer in bench.peers.items():
        peer.call("loader", root=root, deltas=deltas, batch_size=size, backend=backend, shuffle=True)
    same = compare_samples(bench, (*CAMERAS, "observation.state", "action", "action_is_pad"))
    rounds = bench.interleave(
        lambda: bench.ours.call("next", count=bench.size(100, 20)),
        lambda peer, _: peer.call("next", count=bench.size(4, 1)),
    )
    settings = f"batches of {size}, shuffled; 1 frame of 2 cameras at 128 px, state, chunk of {chunk} actions; 1 process each"
    return {**summary(rounds, "windows/s"), **same, "build_s": built["seconds"], "store_bytes": built["bytes"], "settings": settings}


def video_windows(bench: Bench, root: str, keys: tuple[str, ...], count: int, seed: int) -> list[list[Any]]:
    """Random windows of 8 frames, their ends anywhere in an episode, clamped to its beginning."""
    draw, windows = np.random.default_rng(seed), []
    lengths = bench.ours.call("lengths", root=root)
    for _ in range(count):
        episode = int(draw.integers(len(lengths)))
        end = int(draw.integers(lengths[episode]))
        windows.append([episode, keys[int(draw.integers(len(keys)))], [max(0, end + i) for i in range(-7, 1)]])
    return windows


def same_pixels(bench: Bench, root: str, windows: list[list[Any]]) -> Measured:
    """The decoded pixels of some windows, ours beside its PyAV's, which must be the same; beside torchcodec's for information."""
    path = bench.work / "ours.npz"
    bench.ours.call("windows", root=root, windows=windows, out=str(path))
    ours, largest = np.load(path, allow_pickle=False), {}
    for backend, peer in bench.peers.items():
        peer.call("windows", root=root, windows=windows, backend=backend, out=str(bench.work / "peer.npz"))
        theirs = np.load(bench.work / "peer.npz", allow_pickle=False)
        largest[backend] = max(int(np.abs(ours[name].astype(int) - theirs[name].astype(int)).max()) for name in ours.files)
    return {"equal": largest["pyav"] == 0, "largest_difference": largest, "compared": sum(ours[name].size for name in ours.files)}


def video_of(bench: Bench, root: str, keys: tuple[str, ...], count: int) -> Measured:
    same = same_pixels(bench, root, video_windows(bench, root, keys, 8, seed=1))
    windows = iter([video_windows(bench, root, keys, count, seed=seed) for seed in range(2, 2 + bench.rounds)])
    current: list[list[Any]] = []

    def ours() -> Any:
        current[:] = next(windows)
        return bench.ours.call("windows", root=root, windows=current, out=None)

    rounds = bench.interleave(ours, lambda peer, backend: peer.call("windows", root=root, windows=current, backend=backend, out=None))
    return {**summary(rounds, "windows/s"), **same}


def video(bench: Bench) -> Measured:
    """Decoder beside decoder, no loader around either: the same windows on both sides; beside it on a real camera's video."""
    row = video_of(bench, bench.demonstrations(), CAMERAS, bench.size(100, 20))
    row["settings"] = (
        "random windows of 8 consecutive frames of one camera, h264 at 128 px, a key frame every 2; decoders alone, ours into uint8, the "
        "peer's into float32; 1 process each"
    )
    if bench.real is not None and (bench.real / "g1_sample").is_dir():
        root = str(bench.work / "humanoid")
        bench.ours.call("humanoid", source=str(bench.real / "g1_sample"), root=root)
        real = video_of(bench, root, ("observation.images.cam_high",), bench.size(20, 5))
        row |= {"real": {**real, "settings": "a humanoid's head camera, AV1 at 480 x 640"}, "equal": row["equal"] and real["equal"]}
    return row


def sequential(bench: Bench) -> Measured:
    """An epoch straight from the mp4: our loader shuffles in blocks and decodes forward, the peer's reads frame after frame, unshuffled."""
    root, chunk, size = bench.demonstrations(), 16, 32
    cache = str(bench.work / "cache")
    windows = bench.ours.call("prepare", root=root, cache=cache, image_size=128, chunk=chunk, batch_size=size, frames="video")["windows"]
    deltas = {**{key: [0.0] for key in (*CAMERAS, "observation.state")}, "action": [i / FPS for i in range(chunk)]}
    for backend, peer in bench.peers.items():
        peer.call("loader", root=root, deltas=deltas, batch_size=size, backend=backend, shuffle=False)
    same = compare_samples(bench, (*CAMERAS, "observation.state", "action", "action_is_pad"))
    rounds = bench.interleave(
        lambda: bench.ours.call("next", count=windows // size),
        lambda peer, _: peer.call("next", count=bench.size(10, 2)),
    )
    settings = (
        f"an epoch in batches of {size}; 1 frame of 2 cameras at 128 px, state, chunk of {chunk}; the peer in the order of the file, its "
    )
    return {**summary(rounds, "windows/s"), **same, "settings": settings + "cheapest; 1 process each"}


def state_action(bench: Bench) -> Measured:
    """State and a chunk of 50 actions; the dataset has no camera, as lerobot would decode it whether asked for or not."""
    root, chunk, size = bench.numbers(), 50, 64
    bench.ours.call("numbers", root=root, cache=str(bench.work / "cache"), chunk=chunk, batch_size=size)
    deltas = {"observation.state": [0.0], "action": [i / 30 for i in range(chunk)]}
    bench.peer.call("loader", root=root, deltas=deltas, batch_size=size, backend="pyav", shuffle=True)
    same = compare_samples(bench, ("observation.state", "action", "action_is_pad"))
    rounds = bench.interleave(
        lambda: bench.ours.call("next", count=bench.size(300, 50)),
        lambda peer, _: peer.call("next", count=bench.size(10, 2)),
        backends=False,
    )
    settings = (
        f"batches of {size}, shuffled; 14 + 14 dimensions, chunk of {chunk}, padding masks, a dataset without cameras; 1 process each"
    )
    return {**summary(rounds, "windows/s"), **same, "settings": settings}


def open_(bench: Bench) -> Measured:
    """From a path to a dataset that can be read from; the peer's caches are warm."""
    episodes = bench.size(100_000, 5_000)
    root = bench.fixture("many_episodes", episodes=episodes)
    bench.ours.call("open", root=root)  # warm: pages, and the tables that the peer converts once
    bench.peer.call("open", root=root)
    rounds = bench.interleave(lambda: bench.ours.call("open", root=root), lambda peer, _: peer.call("open", root=root), backends=False)
    private = {}
    for side in ("ours", "peer"):
        process = bench.start(side)
        process.call("open", root=bench.numbers())  # whatever the first opening of anything loads
        private[side] = process.call("open", root=root)["private_bytes"] / 2**20
    return {
        **summary(rounds, "s"),
        "equal": all(r["episodes"] == episodes for side in rounds.values() for r in side),
        "bytes_per_episode": bench.ours.call("index_bytes", root=root) / episodes,
        "private_mib_ours": private["ours"],
        "private_mib_peer": private["peer"],
        "settings": f"{episodes} episodes of 8 frames, 3 cameras, statistics of every feature beside every episode; caches warm",
    }


def statistics_(bench: Bench) -> Measured:
    """mean, std, min, max and quantiles of every numeric column. Theirs averages the quantiles of episodes; ours are the true ones."""
    root = bench.numbers()
    files = {side: bench.work / f"{side}.npz" for side in ("ours", "peer", "true")}
    bench.ours.call("statistics", root=root, out=str(files["ours"]))
    bench.peer.call("statistics", root=root, out=str(files["peer"]))
    bench.peer.call("numpy_statistics", root=root, out=str(files["true"]))
    ours, theirs, true = (np.load(path, allow_pickle=False) for path in files.values())
    scale = {name: float(true[f"{name}/std"].max()) for name in {key.rpartition("/")[0] for key in true.files}}

    def largest(found: Any, wanted: Any, quantiles: bool) -> float:
        names = [key for key in true.files if (key.rpartition("/")[2] in QUANTILES) == quantiles and not key.endswith("count")]
        return max(float(np.abs(found[key].reshape(-1) - wanted[key].reshape(-1)).max()) / scale[key.rpartition("/")[0]] for key in names)

    differences = {
        "numpy": largest(ours, true, False),
        "numpy quantiles": largest(ours, true, True),
        "peer": largest(ours, theirs, False),
        "peer quantiles": largest(ours, theirs, True),
    }
    rounds = bench.interleave(
        lambda: bench.ours.call("statistics", root=root, out=None),
        lambda peer, _: peer.call("statistics", root=root, out=None),
        backends=False,
    )
    return {
        **summary(rounds, "frames/s"),
        "equal": differences["numpy"] < 1e-6 and differences["numpy quantiles"] < 1e-6,
        "largest_difference": differences,
        "settings": "33 numeric dimensions; differences in units of a feature's spread; 1 process each",
    }


GOALS: dict[str, tuple[Callable[[Bench], Measured], float]] = {
    "store": (store, 30),
    "video": (video, 2),
    "sequential": (sequential, 4),
    "state_action": (state_action, 50),
    "open": (open_, 100),
    "statistics": (statistics_, 20),
}
"""Row -> (how it is measured, the least ratio that it should reach)."""
