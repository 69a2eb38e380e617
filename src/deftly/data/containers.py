"""mp4 files that are read: opened defensively, kept open, and decoded forward from the nearest key frame.

Opening a file and making its decoder costs as much as decoding several frames, so each thread keeps the last files open. A reader goes on
from where it stands when the next frames asked for lie close ahead. What does not belong here: which frames are wanted (`video.py`).
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8

from deftly.data.schema import MAX_PIXELS
from deftly.types import DataError

MAX_OPEN = 16  # per thread: a decoder holds some megabytes, an index 24 bytes per frame
SEEK_GAP = 12  # frames apart at which seeking is cheaper than decoding on
_BACK = (0.5, 32.0, 256.0)  # frames before the first one wanted at which decoding is tried to begin
_SAME = 0.01  # of a frame: what rounding may do to a time on the grid
# A decoder that hides what it cannot read shows an earlier frame in its place; this one says so.
_DECODER = {"err_detect": "explode", "max_pixels": str(MAX_PIXELS)}

Frame = tuple[float, av.VideoFrame]
"""A decoded frame and its time in the file, in seconds."""


def open_video(path: Path) -> Any:
    """An mp4 file for reading; a one-line `DataError` when it is missing or not one."""
    if not path.is_file():
        raise DataError(f"{path}: missing video file")
    try:
        # mp4 alone: a playlist or a concat script under this name could make ffmpeg read other files.
        return av.open(str(path), "r", format="mp4", metadata_errors="replace")
    except (FFmpegError, ValueError, OverflowError) as error:
        raise broken(path, error) from None


def video_stream(container: Any, path: Path) -> Any:
    """Its first video stream."""
    if not container.streams.video:
        raise DataError(f"{path}: holds no video stream")
    return container.streams.video[0]


def broken(path: Path, error: Exception | str) -> DataError:
    """What went wrong with a file; its path comes once, whole, and not as the decoder repeats it."""
    reason = error.strerror if isinstance(error, FFmpegError) and error.strerror else error
    return DataError(f"{path}: cannot be decoded ({' '.join(str(reason).split())}); the file is truncated or corrupt")


class Reader:
    """One open file. Use `reading`, which keeps readers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._container = open_video(path)
        try:
            self._stream = video_stream(self._container, path)
            if not self._stream.time_base or self._stream.codec_context is None:
                raise broken(path, "no time base, or an unknown codec")
            self._base = float(self._stream.time_base)
            self._stream.thread_type = "NONE"  # who decodes much does so in many processes
            self._stream.codec_context.options = _DECODER
            self.height, self.width = self._stream.codec_context.height, self._stream.codec_context.width
        except BaseException:
            self._container.close()
            raise
        self._reformatter = VideoReformatter()
        self._decoded: Iterator[Any] | None = None
        self._last: Frame | None = None

    def frames(self, first_s: float, frame_s: float) -> Iterator[Frame]:
        """Frames in order of time, from `first_s` or before it, to the end; `frame_s` is the time between two. Some may come twice."""
        if self._last is not None and -_SAME * frame_s <= first_s - self._last[0] <= SEEK_GAP * frame_s:
            yield self._last
            yield from self._rest()
            return
        # Where frames are shown in another order than they are decoded, what follows a key frame can need frames before it.
        for back in _BACK:
            target_s = max(0.0, first_s - back * frame_s)
            is_last = back == _BACK[-1] or target_s == 0
            try:
                self._seek(target_s)
                if self._last is not None and self._last[0] > first_s + _SAME * frame_s and not is_last:
                    continue
                if self._last is not None:
                    yield self._last
                    yield from self._rest()
                return
            except DataError:
                if is_last:
                    raise

    def _rest(self) -> Iterator[Frame]:
        while (frame := self._next()) is not None:
            yield frame

    def _seek(self, target_s: float) -> None:
        """Decode the first frame after the key frame before a time."""
        try:
            self._container.seek(int(target_s / self._base), stream=self._stream, backward=True)
        except FFmpegError as error:
            raise broken(self.path, error) from None
        self._decoded = iter(self._container.decode(self._stream))
        self._next()

    def _next(self) -> Frame | None:
        """The next frame in order of time; None at the end, after which whatever comes begins with a seek."""
        assert self._decoded is not None
        self._last = None
        try:
            frame = next((frame for frame in self._decoded if frame.pts is not None), None)
        except FFmpegError as error:
            raise broken(self.path, error) from None
        if frame is None:
            return None
        if frame.is_corrupt:
            raise broken(self.path, f"damaged at {frame.pts * self._base:.3f} s")
        self._last = frame.pts * self._base, frame
        return self._last

    def pixels(self, frame: av.VideoFrame, height: int, width: int, where: str) -> UInt8[np.ndarray, "h w 3"]:
        """RGB of a frame, refused when it has another size."""
        if (frame.height, frame.width) != (height, width):
            raise DataError(f"{where}: frames are {frame.height} x {frame.width}, info.json says {height} x {width}")
        return self._reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()

    def close(self) -> None:
        self._decoded, self._last = None, None
        self._container.close()


class _Open(threading.local):
    """The readers of this thread, least recently used first."""

    def __init__(self) -> None:
        self.readers: OrderedDict[tuple[str, int, int], Reader] = OrderedDict()


_open = _Open()


@contextmanager
def reading(path: Path) -> Iterator[Reader]:
    """A reader of a file as it is now, opened or still open. One that failed is not kept."""
    try:
        found = path.stat()
    except OSError:
        raise DataError(f"{path}: missing video file") from None
    key = (str(path), found.st_mtime_ns, found.st_size)
    reader = _open.readers.pop(key, None) or Reader(path)
    try:
        yield reader
    except BaseException:
        reader.close()
        raise
    _open.readers[key] = reader
    while len(_open.readers) > MAX_OPEN:
        _open.readers.popitem(last=False)[1].close()


# A forked process shares the position in every open file with its parent: it must open its own.
os.register_at_fork(after_in_child=lambda: _open.readers.clear())
