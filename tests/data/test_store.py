import json
import multiprocessing
import os
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest

from deftly.data import store as module
from deftly.data.dataset import Dataset
from deftly.data.images import resize_with_pad
from deftly.data.store import FrameStore, default_cache, store_key
from deftly.types import DataError, UsageError
from small_data import FakeDataset, robot, write_dataset

CAMERAS = ("head", "wrist")


def prepare(dataset, cache: Path, size: int = 16, **more) -> FrameStore:
    return FrameStore.prepare(dataset, CAMERAS, size, cache, **more)


def home(cache: Path, camera: str = "head", size: int = 16) -> Path:
    return cache / "frames" / store_key("fake", camera, size)


def test_the_store_holds_every_decoded_frame_resized_row_for_row(tmp_path):
    dataset = FakeDataset(embodiment=robot(24, 32))
    store = prepare(dataset, tmp_path)
    for camera in CAMERAS:
        for episode in range(dataset.num_episodes):
            for i, image in enumerate(dataset.frames(episode, camera)):
                row = int(dataset.episode_start[episode]) + i
                assert np.array_equal(store.frames[camera][row], resize_with_pad(image, 16))
    assert store.num_bytes == 2 * dataset.num_frames * 16 * 16 * 3


def test_a_second_opening_decodes_nothing(tmp_path):
    dataset = FakeDataset()
    prepare(dataset, tmp_path)
    decoded = dataset.decoded
    prepare(dataset, tmp_path)
    assert dataset.decoded == decoded
    prepare(dataset, tmp_path, size=8)
    assert dataset.decoded == 2 * decoded, "another size is another store"


def test_other_data_is_another_directory(tmp_path):
    one, two = FakeDataset(), FakeDataset(hash="other")
    prepare(one, tmp_path)
    prepare(two, tmp_path)
    assert two.decoded == one.decoded


@pytest.mark.parametrize("damage", ["truncate", "manifest", "gone", "garbage", "leftover"])
def test_a_damaged_store_is_built_again(tmp_path, damage, capsys):
    dataset = FakeDataset()
    good = prepare(dataset, tmp_path).frames["head"].copy()
    frames, manifest = home(tmp_path) / "frames.bin", home(tmp_path) / "manifest.json"
    if damage == "truncate":
        os.truncate(frames, frames.stat().st_size - 1)
    elif damage == "manifest":
        manifest.unlink()
    elif damage == "gone":
        frames.unlink()
    elif damage == "garbage":
        manifest.write_text("[")
    else:
        frames.unlink()
        (home(tmp_path).parent / f".{home(tmp_path).name}.1234.tmp").mkdir()
    assert np.array_equal(prepare(dataset, tmp_path).frames["head"], good)
    assert "decoding head at 16 px" in capsys.readouterr().err, "the size is said first, and only what is missing is decoded"
    assert [path.name for path in home(tmp_path).parent.glob(".*.tmp")] == []


def test_two_builders_at_once_decode_once(tmp_path):
    dataset = FakeDataset(lengths=(40, 40))
    threads = [threading.Thread(target=prepare, args=(dataset, tmp_path)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert dataset.decoded == 2 * 80


def prepare_elsewhere(root: Path, cache: Path, ready, results) -> None:
    """What another process does: wait for the others, prepare, report the bytes."""
    dataset = Dataset.open(root)
    ready.wait()
    store = FrameStore.prepare(dataset, CAMERAS, 16, cache)
    results.put({camera: frames.tobytes() for camera, frames in store.frames.items()})


def test_two_processes_at_once_fill_one_store(tmp_path, capfd):
    root, cache = write_dataset(tmp_path / "data"), tmp_path / "cache"
    context = multiprocessing.get_context("spawn")
    ready, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=prepare_elsewhere, args=(root, cache, ready, results)) for _ in range(2)]
    for process in processes:
        process.start()
    one, two = (results.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    assert one == two
    assert capfd.readouterr().err.count("decoding head, wrist") == 1
    assert one["head"] == prepare(Dataset.open(root), tmp_path / "other").frames["head"].tobytes()


def test_a_failed_build_leaves_nothing_behind(tmp_path):
    class Broken(FakeDataset):
        def frames(self, episode, camera, indices=None):
            images = super().frames(episode, camera, indices)
            return images[:-1] if episode == 1 else images

    with pytest.raises(DataError, match=r"episode 1, camera 'head': 4 frames where 5 .*data check"):
        prepare(Broken(), tmp_path)
    assert [path.name for path in (tmp_path / "frames").iterdir()] == [".lock"]


def test_a_store_larger_than_its_share_of_the_disk_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(UsageError, match=r"need 0\.0 MiB, more than 0% of .* smaller image_size"):
        prepare(FakeDataset(), tmp_path, share=1e-12)


def test_long_episodes_are_decoded_in_pieces(tmp_path, monkeypatch):
    whole = prepare(FakeDataset(), tmp_path / "a").frames["head"].copy()
    monkeypatch.setattr(module, "DECODED_AT_ONCE", 2)
    assert np.array_equal(prepare(FakeDataset(), tmp_path / "b").frames["head"], whole)


def test_it_pickles_as_paths(tmp_path):
    store = prepare(FakeDataset(), tmp_path)
    data = pickle.dumps(store)
    assert len(data) < 1000
    assert np.array_equal(pickle.loads(data).frames["wrist"], store.frames["wrist"])


def test_an_empty_dataset_has_an_empty_store(tmp_path):
    assert prepare(FakeDataset(lengths=(0,)), tmp_path).frames["head"].shape == (0, 16, 16, 3)


def test_a_real_video_decodes_to_the_same_frames_in_worker_processes(tmp_path, monkeypatch):
    dataset = Dataset.open(write_dataset(tmp_path / "data"))
    here = prepare(dataset, tmp_path / "a")
    assert np.array_equal(here.frames["head"][8], resize_with_pad(dataset.frames(1, "head")[1], 16)), "row 8 is frame 1 of episode 1"

    def run(make, jobs, *, workers, name):  # what crosses into a spawned process, without starting one
        assert workers == 2
        return map(pickle.loads(pickle.dumps(make))(), pickle.loads(pickle.dumps(jobs)))

    monkeypatch.setattr(module.processes, "run", run)
    there = prepare(dataset, tmp_path / "b", workers=2)
    for camera in CAMERAS:
        assert np.array_equal(here.frames[camera], there.frames[camera])


@pytest.mark.slow
def test_spawned_workers_fill_the_same_file(tmp_path):
    dataset = Dataset.open(write_dataset(tmp_path / "data"))
    here, there = prepare(dataset, tmp_path / "a"), prepare(dataset, tmp_path / "b", workers=2)
    for camera in CAMERAS:
        assert np.array_equal(here.frames[camera], there.frames[camera])


def test_a_complete_store_opens_where_nothing_can_be_written(tmp_path):
    prepare(FakeDataset(), tmp_path)
    (tmp_path / "frames" / ".lock").unlink()
    prepare(FakeDataset(), tmp_path)
    assert not (tmp_path / "frames" / ".lock").exists(), "reading takes no lock"


def test_the_cache_stands_beside_the_data_unless_told_otherwise(tmp_path, monkeypatch):
    monkeypatch.delenv("DEFTLY_CACHE", raising=False)
    assert default_cache(tmp_path) == tmp_path / ".cache"
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert default_cache(tmp_path / "not there") == Path("/elsewhere/deftly")
    monkeypatch.setenv("DEFTLY_CACHE", "/named")
    assert default_cache(tmp_path) == Path("/named")


def test_the_manifest_says_what_the_bytes_are(tmp_path):
    prepare(FakeDataset(), tmp_path)
    values = json.loads((home(tmp_path) / "manifest.json").read_text())
    assert values["frames"] == 21
    assert (values["dataset_hash"], values["camera"], values["image_size"], values["bytes"]) == ("fake", "head", 16, 21 * 16 * 16 * 3)
