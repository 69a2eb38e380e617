"""The loader's ledger: a process is killed at random points and started again from the position it saved, over three epochs. Every (epoch,
window) is shown exactly once, and every batch has the bits that it has without any kill, whatever the number of workers."""

import collections
import hashlib
import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from deftly import storage
from deftly.contract import Window
from deftly.data.augment import AugmentConfig
from deftly.data.direct import VideoFrames
from deftly.data.language.augment import LanguageConfig
from deftly.data.loader import Loader
from deftly.data.windows import Selection, Windows
from deftly.types import Batch
from small_data import FakeDataset, build_windows

LENGTHS = (17, 9, 0, 30, 14)
SAMPLES, EPOCHS, BATCH = sum(LENGTHS), 3, 8
STEPS = -(-EPOCHS * SAMPLES // BATCH)
SAVE_EVERY = 3


def windows_of(cache: Path, mode: str) -> Windows:
    """Two frames and past actions, larger stored frames, other words: everything that a batch is made of."""
    dataset = FakeDataset(lengths=LENGTHS)
    windows = build_windows(dataset, cache, Window(frames=2, chunk=4, past_actions=True), stored=20)
    augmenter = LanguageConfig(probability=0.5, typos=0).build(dataset.tasks, 8)
    frames = VideoFrames(dataset, windows.encoder.contract, 24) if mode == "video" else windows.frames  # type: ignore[arg-type]
    return Windows(windows.columns, frames, windows.encoder, dataset.tasks, augmenter)


def loader_of(cache: Path, mode: str, workers: int) -> Loader:
    windows = windows_of(cache, mode)
    augmentation = AugmentConfig(noise=0.01, crop_scale=(0.7, 1.0), rotation_degrees=5)
    selection = Selection(windows.frames.episode_start, np.arange(len(LENGTHS)))
    return Loader(windows, selection, seed=5, batch_size=BATCH, workers=workers, augmentation=augmentation)


def digest(batch: Batch) -> str:
    """Of every bit of a batch."""
    found = hashlib.sha256()
    batch.map(lambda tensor: found.update(tensor.contiguous().numpy().tobytes()) or tensor)
    return found.hexdigest()


def entry(at: int, batch: Batch) -> dict:
    shown = [f"{episode}/{frame}" for episode, frame in zip(batch.episode.tolist(), batch.frame.tolist(), strict=True)]
    return {"at": at, "shown": shown, "digest": digest(batch)}


def train(cache: Path, mode: str, workers: int, home: Path, progress: int) -> None:
    """What the process does that is killed: go on from the saved position, write every batch into the ledger, save every third one."""
    torch.set_num_threads(1)
    stream = loader_of(cache, mode, workers)
    if (home / "state.json").exists():
        stream.load_state(storage.read_json(home / "state.json"))
    while (at := stream.state()["consumed"]) < STEPS * BATCH:
        storage.append_line(home / "ledger.jsonl", entry(at, stream.next()), durable=False)
        if (at // BATCH) % SAVE_EVERY == 0:
            storage.write_json(home / "state.json", stream.state())
        os.write(progress, b".")
    stream.close()
    storage.write_json(home / "done.json", True)


def run_until_killed(cache: Path, mode: str, workers: int, home: Path, batches: int, wait_s: float) -> None:
    """One life of the process: it is killed `wait_s` after its `batches`-th batch, somewhere in the next one."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(read)
            train(cache, mode, workers, home, write)
        finally:
            os._exit(0)
    os.close(write)
    seen = 0
    while seen < batches and (got := os.read(read, batches - seen)):  # nothing more comes from a process that has finished
        seen += len(got)
    time.sleep(wait_s)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(read)


def check_ledger(home: Path, reference: list[dict]) -> None:
    """Every batch that was ever written is the reference's, and together they are complete."""
    storage.mend_lines(home / "ledger.jsonl")
    lines = list(storage.read_lines(home / "ledger.jsonl"))
    wanted = {line["at"]: line for line in reference}
    for line in lines:
        assert line == wanted[line["at"]]
    assert {line["at"] for line in lines} == set(wanted)


@pytest.fixture(scope="module", params=["store", "video"])
def reference(request, tmp_path_factory):
    """(cache, mode, ledger) of a run that nothing disturbed, with no workers."""
    cache = tmp_path_factory.mktemp("cache")
    stream, ledger = loader_of(cache, request.param, 0), []
    for _ in range(STEPS):
        at = stream.state()["consumed"]
        ledger.append(json.loads(json.dumps(entry(at, stream.next()))))
    return cache, request.param, ledger


def test_every_window_once_per_epoch(reference):
    shown = [place for line in reference[2] for place in line["shown"]]
    windows = {f"{episode}/{frame}" for episode, length in enumerate(LENGTHS) for frame in range(length)}
    for epoch in range(EPOCHS):
        assert collections.Counter(shown[epoch * SAMPLES : (epoch + 1) * SAMPLES]) == collections.Counter(windows)


def survive(reference, workers: int, home: Path, seed: int, longest: int) -> None:
    cache, mode, ledger = reference
    draw, lives = np.random.default_rng(seed), 0
    while not (home / "done.json").exists():
        lives += 1
        assert lives < 100
        run_until_killed(cache, mode, workers, home, int(draw.integers(1, longest)), float(draw.uniform(0, 0.004)))
    assert lives > 1, "it was never killed"
    check_ledger(home, ledger)


@pytest.mark.parametrize("workers", [0, 2])
def test_kills_change_nothing(reference, workers, tmp_path):
    survive(reference, workers, tmp_path, seed=workers, longest=20)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_many_kills_change_nothing(reference, workers, seed, tmp_path):
    survive(reference, workers, tmp_path, seed=10 + seed, longest=9)
