"""Can every frame and distance be decoded, and does each camera show anything? This is the part of a check that takes time."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8

from deftly.data.check.findings import Finding
from deftly.data.check.pictures import check_pictures, thumbnail
from deftly.data.check.rows import REPAIR
from deftly.data.dataset import Dataset
from deftly.data.images import ImageTooLarge, image_size
from deftly.data.rows import rows_of_episode
from deftly.data.tables import image_bytes
from deftly.progress import Progress
from deftly.types import DataError, EpisodeError

AT_ONCE = 256  # frames in memory
DARK = 3  # of 255: no pixel of the episode is brighter
FROZEN_S = 2.0  # an episode shorter than this may well show one picture
# One picture, encoded with loss again and again, comes out a little different until the encoder has settled, and then the same. Of 75
# equal frames (h264 as we and as x264's defaults encode, AV1 as LeRobot does) at least 89 % repeated the one before exactly, and the others
# were up to 21 away in a pixel and 6.3 in the mean of 8 x 8. A live camera at a still scene has noise, so that new key frames differ: at
# most 69 % repeat. Where an encoder removes all noise (x265 at crf 28), its video is one picture, and is called so.
REPEATED = 0.88
CODING, CODING_BLOCK = 32, 8.0  # of 255, away from the first picture
BLOCK = 8


def check_pixels(dataset: Dataset, episodes: np.ndarray) -> list[Finding]:
    """Decode every frame of `episodes`, colours and distances."""
    bombs = [finding for episode in episodes.tolist() for finding in _too_large(dataset, episode)]
    if bombs:  # guard: data.check.image_pixels
        return bombs
    broken: list[Finding] = []
    first_sight: dict[int, np.ndarray] = {}
    dull: dict[tuple[str, str], list[int]] = {}
    if not dataset.cameras:
        return _measure(dataset, episodes)
    with Progress("check", len(episodes) * len(dataset.cameras), "videos") as progress:
        for episode in episodes.tolist():
            for camera in dataset.cameras:
                try:
                    sight, picture = _look(dataset, episode, camera)
                except DataError as error:
                    broken.append(_broken(dataset, episode, camera, error))
                else:
                    if camera == dataset.cameras[0]:
                        first_sight[episode] = thumbnail(picture)
                    if sight is not None:
                        dull.setdefault((camera, sight), []).append(episode)
                progress.advance()
    dulls = [_dull(camera, sight, found, len(episodes)) for (camera, sight), found in dull.items()]
    return [*broken, *dulls, *check_pictures(dataset, first_sight), *_measure(dataset, episodes)]


def _measure(dataset: Dataset, episodes: np.ndarray) -> list[Finding]:
    """Decode every distance; a depth camera that nobody can read as it is declared is said once, and not an episode's fault."""
    found = []
    for camera in dataset.depth_cameras:
        for episode in episodes.tolist():
            length = int(dataset.episode_length[episode])
            try:
                for begin in range(0, length, AT_ONCE):
                    dataset.depth(episode, camera, np.arange(begin, min(begin + AT_ONCE, length)))
            except EpisodeError as error:
                found.append(_broken(dataset, episode, camera, error))
            except DataError as error:
                message = str(error).removeprefix(f"{dataset.root}: ").removeprefix(f"episode {episode}, depth {camera!r}: ")
                found.append(Finding(code="depth_unread", verdict="warn", field=camera, message=f"depth that is not read: {message}"))
                break
    return found


def _too_large(dataset: Dataset, episode: int) -> list[Finding]:
    """Embedded images whose header promises more pixels than any camera has."""
    found = []
    path = dataset.data_path(episode)
    file = path.relative_to(dataset.root).as_posix()
    keys = [*dataset.info.cameras().values(), *dataset.info.cameras(depth=True).values()]
    for key in [key for key in keys if dataset.features[key].dtype == "image"]:
        for frame, value in enumerate(rows_of_episode(path, episode, [key]).column(key)):
            try:
                image_size(image_bytes(value) or b"", "the image")
            except ImageTooLarge as error:
                place = {"file": file, "episode": episode, "frame": frame, "field": key}
                found.append(Finding(code="image_too_large", verdict="refuse", message=str(error), **place))
            except DataError:
                continue  # what is no image at all is found by decoding
    return found


def _look(dataset: Dataset, episode: int, camera: str) -> tuple[str | None, np.ndarray]:
    """Decode one episode: `dark` when it is black throughout, `frozen` when a long one shows one picture, None when it is fine; and its
    first picture."""
    length = int(dataset.episode_length[episode])
    lossy = dataset.features[dataset.info.cameras()[camera]].dtype == "video"
    brightest, still = 0, _Still(length, lossy, length >= FROZEN_S * dataset.fps)
    for begin in range(0, length, AT_ONCE):
        frames = dataset.frames(episode, camera, np.arange(begin, min(begin + AT_ONCE, length)))
        brightest = max(brightest, int(frames.max(initial=0)))
        still.add(frames)
    assert still.first is not None
    return "dark" if brightest <= DARK else "frozen" if still.holds else None, still.first


class _Still:
    """Whether the frames of an episode, given one after the other, are one picture and what an encoder made of it."""

    def __init__(self, length: int, lossy: bool, holds: bool) -> None:
        self.holds = holds
        self.first: np.ndarray | None = None
        self._last: np.ndarray | None = None
        self._changes = int((1 - REPEATED) * (length - 1)) if lossy else 0  # that may still come

    def add(self, frames: UInt8[np.ndarray, "n h w 3"]) -> None:
        first = frames[0].copy() if self.first is None else self.first  # not a view, which would keep all of them
        last = first if self._last is None else self._last
        self.first = first
        for frame in frames if self.holds else ():
            if np.array_equal(frame, last):
                continue
            self._changes -= 1
            if self._changes < 0 or not _is_coding(frame, first):
                self.holds = False
                return
            last = frame
        self._last = frames[-1].copy()


def _is_coding(frame: UInt8[np.ndarray, "h w 3"], first: UInt8[np.ndarray, "h w 3"]) -> bool:
    """Whether two frames are so near that an encoder may have made both from one picture; something that moved is not."""
    away = frame.astype(np.int16) - first
    if np.abs(away).max() > CODING:
        return False
    down, across = (size // BLOCK for size in away.shape[:2])
    blocks = away[: down * BLOCK, : across * BLOCK].reshape(down, BLOCK, across, BLOCK, 3).mean((1, 3))
    return bool(np.abs(blocks).max(initial=0) <= CODING_BLOCK)


def _broken(dataset: Dataset, episode: int, camera: str, error: DataError) -> Finding:
    message = str(error).replace(f"{dataset.root}/", "")
    return Finding(code="broken_frame", verdict="quarantine", episode=episode, field=camera, message=message, remedy=REPAIR)


def _dull(camera: str, sight: str, episodes: list[int], total: int) -> Finding:
    """One line for all episodes in which a camera shows nothing."""
    what = "is black" if sight == "dark" else "shows one unmoving picture"
    message = f"the camera {what} in {len(episodes)} of {total} episodes"
    remedy = "leave the camera out (data.cameras), or drop the episodes"
    return Finding(
        code=f"{sight}_camera", verdict="warn", episode=episodes[0], field=camera, message=message, remedy=remedy, count=len(episodes)
    )
