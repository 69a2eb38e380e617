"""How much damage in the middle of a video decoding notices: the figures of docs/data/check.md."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from deftly.data import video
from deftly.data.video import VideoWriter
from deftly.types import DataError

SIDE, FRAMES, TRIES = 128, 24, 100


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A moving pattern with sensor noise."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    draw = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE]
    with VideoWriter(path, 10, SIDE, SIDE) as writer:
        for i in range(FRAMES):
            pattern = np.stack([(2 * x + 5 * i) % 256, (2 * y + 3 * i) % 256, (x + y + i) % 256], axis=-1)
            writer.add_frames([np.clip(pattern + draw.integers(-10, 10, pattern.shape), 0, 255).astype(np.uint8)])
    return path


def decode(path: Path) -> np.ndarray | None:
    """All frames; None when the damage was noticed."""
    try:
        return video.decode(path, 0.0, 10, np.arange(FRAMES), SIDE, SIDE)
    except DataError:
        return None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "least"), [("a frame of noise", 1.0), ("a frame of zeros", 1.0), ("32 bytes of noise", 0.8), ("one bit", 0.3)]
)
def test_damage_is_noticed(clip: Path, tmp_path: Path, kind: str, least: float):
    original, expected = clip.read_bytes(), decode(clip)
    with av.open(str(clip)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(container.streams.video[0]) if packet.size]
    draw = np.random.default_rng(1)
    noticed = harmless = 0
    for number in range(TRIES):
        place, size = packets[int(draw.integers(len(packets)))]
        content = bytearray(original)
        at = place + 4 + int(draw.integers(max(1, size - 40)))
        match kind:
            case "a frame of noise":
                content[place + 4 : place + size] = draw.integers(0, 256, size - 4, dtype=np.uint8).tobytes()
            case "a frame of zeros":
                content[place : place + size] = bytes(size)
            case "32 bytes of noise":
                content[at : at + 32] = draw.integers(0, 256, 32, dtype=np.uint8).tobytes()
            case _:
                content[at] ^= 1 << int(draw.integers(8))
        path = tmp_path / f"{number}.mp4"
        path.write_bytes(content)
        found = decode(path)
        noticed += found is None
        harmless += found is not None and np.array_equal(found, expected)
        path.unlink()
    print(f"{kind}: noticed in {noticed} of {TRIES}, harmless in {harmless}")
    assert noticed + harmless >= least * TRIES
