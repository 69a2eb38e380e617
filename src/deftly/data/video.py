"""Frames into mp4 files and back, through PyAV. A frame's time is its place in the file / fps, exactly.

Encoding is h264 with one thread and a fixed preset: the same frames give the same bytes on one machine. Clips that somebody else encoded
are copied packet by packet where their times lie on the frame grid, which loses nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import numpy as np
from av.error import FFmpegError

from deftly.data.containers import SEEK_GAP, Reader, broken, open_video, reading, video_stream
from deftly.types import DataError

# crf 18 is visually lossless; the fastest preset costs bytes, not quality. Key frames are two apart, so that a random frame costs at
# most two decodes. No B-frames: packets leave the encoder in the order of their times.
ENCODER_OPTIONS = {"crf": "18", "preset": "ultrafast", "g": "2", "bf": "0"}
TOLERANCE_S = 1e-4  # between the time asked for and the time of the frame
_SAMPLE_BYTES = 64 << 10  # of an episode's first packet, for its digest


@dataclass(frozen=True, slots=True)
class VideoClip:
    """One episode of one camera in a file of its own, from time 0."""

    path: Path


@dataclass(frozen=True, slots=True)
class ClipInfo:
    """What decides whether clips can share a file, and whether their packets can be copied at all."""

    codec: str
    extradata: bytes
    height: int
    width: int
    pix_fmt: str
    time_base: Fraction
    num_frames: int
    on_grid: bool  # frame i is at exactly i / fps and the first one is a key frame

    def fits(self, other: ClipInfo) -> bool:
        """Whether the packets of both can follow each other in one stream."""
        names = ("codec", "extradata", "height", "width", "pix_fmt", "time_base")
        return all(getattr(self, name) == getattr(other, name) for name in names)


def probe(path: Path, fps: float) -> ClipInfo:
    """Read a clip's parameters and packet times without decoding it; a `DataError` when it is no video or holds no frames."""
    with open_video(path) as container:
        stream = video_stream(container, path)
        context = stream.codec_context
        times, keys = [], []
        try:
            for packet in container.demux(stream):
                if packet.size and packet.pts is not None:
                    times.append(packet.pts)
                    keys.append(packet.is_keyframe)
        except FFmpegError as error:
            raise broken(path, error) from None
        if not times or stream.time_base is None:
            raise DataError(f"{path}: the video holds no frames; the file is truncated or not a video")
        tick = 1 / (Fraction(fps).limit_denominator(100_000) * stream.time_base)
        grid = keys[0] and tick.denominator == 1 and sorted(times) == [i * tick.numerator for i in range(len(times))]
        # The decoder is an implementation (libdav1d); the name that belongs into metadata is the format's.
        name = {"libdav1d": "av1", "libaom-av1": "av1"}.get(context.name, str(context.codec.canonical_name))
        return ClipInfo(
            codec=name,
            extradata=bytes(context.extradata or b""),
            height=context.height,
            width=context.width,
            pix_fmt=str(context.pix_fmt),
            time_base=stream.time_base,
            num_frames=len(times),
            on_grid=grid,
        )


def packet_times(path: Path) -> np.ndarray:
    """The times in seconds of all frames of a file, float64, sorted, without decoding any; a `DataError` when it is no whole video."""
    with open_video(path) as container:
        stream = video_stream(container, path)
        try:
            times = [packet.pts for packet in container.demux(stream) if packet.size and packet.pts is not None and not packet.is_corrupt]
        except FFmpegError as error:
            raise broken(path, error) from None
        if not times or stream.time_base is None:
            raise DataError(f"{path}: the video holds no frames; the file is truncated or not a video")
        return np.sort(np.array(times, dtype=np.float64)) * float(stream.time_base)


def packet_digests(path: Path, first: np.ndarray, length: np.ndarray) -> list[bytes]:
    """One sha256 per stretch of packets first..first + length: their sizes by the file's index, the key frames, the first one's bytes."""
    with open_video(path) as container:
        entries = video_stream(container, path).index_entries  # memory of the container: copied before it goes
        packets = np.array([(entry.size, entry.is_keyframe, entry.pos) for entry in entries], np.int64).reshape(-1, 3)
    found = []
    with open(path, "rb") as file:
        for begin, count in zip(first.tolist(), length.tolist(), strict=True):
            digest = hashlib.sha256(packets[begin : begin + count, :2].tobytes())
            if begin < len(packets):
                file.seek(int(packets[begin, 2]))
                digest.update(file.read(min(int(packets[begin, 0]), _SAMPLE_BYTES)))
            found.append(digest.digest())
    return found


class VideoWriter:
    """One mp4 file, either of frames that are encoded here or of copied clips; episodes follow each other on the frame grid.

    `with VideoWriter(path, fps, 96, 96) as video: start = video.add_frames(frames)`.
    """

    def __init__(self, path: Path, fps: int, height: int, width: int, like: VideoClip | None = None) -> None:
        """`like` makes it a file of copied packets with that clip's parameters."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.fps, self.height, self.width = path, fps, height, width
        self.num_frames = 0
        self.info = None if like is None else probe(like.path, fps)
        self._container: Any = av.open(str(path), "w", format="mp4")
        if like is None:
            self._stream = self._container.add_stream("libx264", rate=fps, options=ENCODER_OPTIONS)
            self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
            self._stream.codec_context.time_base = Fraction(1, fps)
            self._stream.codec_context.thread_count = 1
        else:
            with open_video(like.path) as source:
                self._stream = self._container.add_stream_from_template(video_stream(source, like.path), opaque=True)

    def add_frames(self, frames: Iterable[np.ndarray]) -> int:
        """Append frames uint8 [h w 3], or an array [n h w 3] of them; returns the place in the file of the first one."""
        if self.info is not None:
            raise ValueError("this file holds copied packets: frames cannot follow them")
        start = self.num_frames
        for pixels in frames:
            if pixels.dtype != np.uint8 or pixels.shape != (self.height, self.width, 3):
                expected = f"uint8 frames of {self.height} x {self.width} x 3"
                raise ValueError(f"{self.path}: expected {expected}, got {pixels.dtype} {list(pixels.shape)}")
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = self.num_frames, Fraction(1, self.fps)
            self._container.mux(self._stream.encode(frame))
            self.num_frames += 1
        return start

    def add_clip(self, clip: VideoClip) -> int:
        """Append the packets of a clip unchanged; returns the place in the file of its first frame."""
        info = probe(clip.path, self.fps)
        if self.info is None or not info.on_grid or not info.fits(self.info):
            raise ValueError(f"{clip.path}: its packets cannot be copied into this file")
        start = self.num_frames
        shift = int(start / (self.fps * info.time_base))
        with open_video(clip.path) as source:
            for packet in source.demux(video_stream(source, clip.path)):
                if packet.size == 0 or packet.pts is None or packet.dts is None:
                    continue
                packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                packet.stream = self._stream
                self._container.mux(packet)
        self.num_frames += info.num_frames
        return start

    @property
    def num_bytes(self) -> int:
        """Bytes on disk so far."""
        return self.path.stat().st_size if self.path.exists() else 0

    def describe(self) -> dict[str, Any]:
        """The `info` of a video feature."""
        return {
            "video.height": self.height,
            "video.width": self.width,
            "video.codec": "h264" if self.info is None else self.info.codec,
            "video.pix_fmt": "yuv420p" if self.info is None else self.info.pix_fmt,
            "video.is_depth_map": False,
            "video.fps": self.fps,
            "video.channels": 3,
            "has_audio": False,
        }

    def close(self) -> None:
        """Flush the encoder and write the index without which the file cannot be read."""
        if self.info is None:
            self._container.mux(self._stream.encode(None))
        self._container.close()

    def abort(self) -> None:
        """Let go of a file that is of no use any more. The only call that is safe after a failed write: on another one, ffmpeg, which was
        refused its header, would end the process by a signal."""
        with contextlib.suppress(FFmpegError):
            self._container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


def decode(path: Path, start_s: float, fps: float, indices: np.ndarray, height: int, width: int, where: str = "") -> np.ndarray:
    """The frames nearest to the times `start_s + index / fps`, uint8 [n h w 3] in the order of `indices`, which may repeat.

    The file stays open for the next call, which decodes on where it is close ahead. Raises a one-line `DataError` when the file is broken,
    holds other sizes, or has no frame within half a frame of a time.
    """
    wanted, place = np.unique(np.asarray(indices, dtype=np.int64), return_inverse=True)
    frames = np.empty((len(wanted), height, width, 3), dtype=np.uint8)
    label = where or str(path)
    with reading(path) as reader:
        for run in _runs(wanted):
            found = _decode_run(reader, start_s, fps, wanted[run], frames[run], label)
            if found != run.stop - run.start:
                times = f"{start_s + wanted[run.start] / fps:.4f}..{start_s + wanted[run.stop - 1] / fps:.4f} s"
                raise DataError(
                    f"{label}: {path} has frames for {found} of {run.stop - run.start} times in {times} (each within half a frame); "
                    "the video is truncated or its frames are not at frame / fps"
                )
    return frames if np.array_equal(place, np.arange(len(wanted))) else frames[place]


def _decode_run(reader: Reader, start_s: float, fps: float, wanted: np.ndarray, out: np.ndarray, where: str) -> int:
    """Decode once through some ascending indices, each into its row of `out`; returns how many were found."""
    places = {index: i for i, index in enumerate(wanted.tolist())}
    error_s: dict[int, float] = {}
    last_s = start_s + wanted[-1] / fps
    # At exactly half a frame it is not decided which index a frame belongs to.
    limit_s = max(0.25 / fps, 0.5 / fps - TOLERANCE_S)
    for time, frame in reader.frames(start_s + wanted[0] / fps, 1 / fps):
        index = round((time - start_s) * fps)
        off_s = abs(time - start_s - index / fps)
        if index in places and off_s < error_s.get(index, limit_s):
            out[places[index]] = reader.pixels(frame, out.shape[1], out.shape[2], where)
            error_s[index] = off_s
        # Frames off the grid may come twice to an index: the second can be the nearer one.
        if time >= last_s + (-TOLERANCE_S if off_s <= TOLERANCE_S else 0.5 / fps):
            break
    return len(error_s)


def _runs(wanted: np.ndarray) -> list[slice]:
    """Stretches of indices that are decoded after one seek."""
    if not len(wanted):
        return []
    cuts = np.flatnonzero(np.diff(wanted) > SEEK_GAP) + 1
    edges = [0, *cuts.tolist(), len(wanted)]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]


def stream(path: Path, height: int, width: int, start_s: float = 0.0, where: str = "") -> Iterator[tuple[float, np.ndarray]]:
    """(time in seconds, uint8 [h w 3]) for every frame of a file from `start_s` on, in order, each decoded once: an epoch in sequence.

    Raises a one-line `DataError` when the file is broken or holds other sizes.
    """
    reader = Reader(path)
    try:
        for time, frame in reader.frames(start_s, 2 * TOLERANCE_S):
            if time >= start_s - TOLERANCE_S:
                yield time, reader.pixels(frame, height, width, where or str(path))
    finally:
        reader.close()


def sample(clip: VideoClip, fps: float, indices: np.ndarray, height: int, width: int, where: str) -> np.ndarray:
    """The frames of a clip at `indices`, counted from its beginning, uint8 [n h w 3], wherever its frames are in time."""
    if probe(clip.path, fps).on_grid:
        return decode(clip.path, 0.0, fps, indices, height, width, where)
    wanted = set(indices.tolist())
    frames = [frame for i, frame in enumerate(decode_all(clip.path, height, width, int(indices.max()) + 1)) if i in wanted]
    if len(frames) != len(wanted):
        raise DataError(f"{where}: {clip.path} holds {len(frames)} of {len(wanted)} sampled frames; it is truncated")
    return np.stack(frames)


def decode_all(path: Path, height: int, width: int, limit: int) -> Iterator[np.ndarray]:
    """Every frame of a clip in order as uint8 [h w 3], at most `limit` of them, whatever their times."""
    for _, pixels in itertools.islice(stream(path, height, width), limit):
        yield pixels
