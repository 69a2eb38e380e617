"""One episode out of an mp4 that holds several, as an mp4 of its own that begins at time 0. No pixel changes.

Packets are copied where the episode can be decoded without what stands before it. Where it cannot, because it begins between key frames,
its frames are encoded anew without loss (h264 with quantiser 0), which costs bytes instead of pixels.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.error import FFmpegError
from av.video.frame import PictureType

from deftly.data.containers import broken, open_video, video_stream
from deftly.data.video import TOLERANCE_S
from deftly.types import DataError

LOSSLESS = {"qp": "0", "preset": "veryfast", "g": "2", "bf": "0"}
PLANAR = ("yuv420p", "yuvj420p", "yuv422p", "yuv444p")  # what the encoder takes as it is


def cut(source: Path, start_s: float, fps: int, length: int, target: Path, where: str) -> bool:
    """Write the `length` frames from `start_s` on to the file `target`; True when packets were copied, False when frames were encoded.

    Raises a one-line `DataError` when the frames are not there at start_s + i / fps.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open_video(source) as container:
            stream = video_stream(container, source)
            stream.thread_type = "NONE"
            packets = _packets(container, stream, start_s, fps, length)
            if packets is not None:
                _copy(packets, stream, target)
                return True
            _encode(container, stream, start_s, fps, length, target, where)
            return False
    except FFmpegError as error:
        if isinstance(error, OSError):
            raise  # the disk, not the video
        raise DataError(f"{where}: {broken(source, error)}") from None


def _place(pts: int, stream: Any, start_s: float, fps: int) -> int | None:
    """Which frame of the episode a time stamp is; None for none."""
    time = float(pts * stream.time_base)
    index = round((time - start_s) * fps)
    return index if abs(time - start_s - index / fps) <= TOLERANCE_S else None


def _seek(container: Any, stream: Any, start_s: float, fps: int) -> None:
    container.seek(max(0, int((start_s - 0.5 / fps) / stream.time_base)), stream=stream, backward=True)


def _packets(container: Any, stream: Any, start_s: float, fps: int, length: int) -> list[Any] | None:
    """The packets of the episode in the order of the file; None when they need others before, after or between them to be decoded."""
    _seek(container, stream, start_s, fps)
    found: list[Any] = []
    places: set[int] = set()
    for packet in container.demux(stream):
        if not packet.size or packet.pts is None or packet.dts is None:
            continue
        place = _place(packet.pts, stream, start_s, fps)
        if place is not None and 0 <= place < length:
            found.append(packet)
            places.add(place)
        elif found and len(places) < length:
            return None  # somebody else's packet stands between ours
        if len(places) == length:
            break
    whole = len(found) == length and len(places) == length
    starts = whole and found[0].is_keyframe and _place(found[0].pts, stream, start_s, fps) == 0
    return found if starts else None


def _copy(packets: list[Any], stream: Any, target: Path) -> None:
    with av.open(str(target), "w", format="mp4") as output:
        copied = output.add_stream_from_template(stream, opaque=True)
        first = packets[0].pts
        for packet in packets:
            packet.pts, packet.dts = packet.pts - first, packet.dts - first
            packet.stream = copied
            output.mux(packet)


def _encode(container: Any, stream: Any, start_s: float, fps: int, length: int, target: Path, where: str) -> None:
    if stream.codec_context.pix_fmt not in PLANAR:
        raise DataError(f"{where}: cannot be cut without loss from {stream.codec_context.pix_fmt}; import the dataset with images first")
    _seek(container, stream, start_s, fps)
    with av.open(str(target), "w", format="mp4") as output:
        encoder = output.add_stream("libx264", rate=fps, options=LOSSLESS)
        context = stream.codec_context
        encoder.width, encoder.height, encoder.pix_fmt = context.width, context.height, context.pix_fmt
        for name in ("color_range", "colorspace", "color_primaries", "color_trc"):  # or the same numbers would be other colours
            setattr(encoder.codec_context, name, getattr(context, name))
        encoder.codec_context.time_base = Fraction(1, fps)
        encoder.codec_context.thread_count = 1
        count = 0
        for frame in container.decode(stream):
            place = None if frame.pts is None else _place(frame.pts, stream, start_s, fps)
            if place is None or place != count:
                continue
            frame.pts, frame.time_base, frame.pict_type = count, Fraction(1, fps), PictureType.NONE
            output.mux(encoder.encode(frame))
            count += 1
            if count == length:
                break
        if count != length:
            found = f"{where}: has {count} of {length} frames from {start_s:.4f} s on"
            raise DataError(f"{found}; the video is truncated, or its frames are not at frame / fps")
        output.mux(encoder.encode(None))
