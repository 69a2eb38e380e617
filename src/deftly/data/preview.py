"""A sheet of what the policy will see: each row a recorded moment, then the same moment as some training samples would show it.

Images go through the code that training uses (`windows.moved`, `augment_pixels`), keys are drawn as the loader draws them. Below: the
instruction; the action chunk from above, where the action has an x and a y; and for every dimension its range, with a dot for the state
now and an arrow from the first action of the chunk to its last. Left and right of a mirrored sample can be checked there by eye.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont

from deftly.contract import Contract, Vector, Window
from deftly.data.augment import OFF, AugmentConfig, augment_pixels
from deftly.data.dataset import Dataset
from deftly.data.images import resize_with_pad
from deftly.data.language import LanguageConfig, mirror_words
from deftly.data.mirror import draw_mirrored, mirror_action, mirror_state
from deftly.data.windows import moved
from deftly.randomness import sample_keys
from deftly.types import UsageError

CELL, GAP, LABEL, LINE = 176, 8, 20, 14  # pixels: side of an image, space between cells, heights of a heading and of a line of text
TEXT_LINES, TEXT_COLUMNS = 3, 28
PLOT, DOTS = 64, 32  # pixels: heights of the plots of actions and of the state
MAX_CAMERAS, MAX_DIMENSIONS = 3, 32
SAMPLED = 20_000  # rows that ranges are taken from
INK, GREY, FAINT, BLUE, RED, PAPER = (25, 25, 25), (150, 150, 150), (215, 215, 215), (20, 90, 200), (200, 40, 30), (250, 250, 250)


@dataclass(frozen=True, slots=True)
class Moment:
    """One cell: images [camera h w 3] at the policy's size, raw state [s], raw action chunk [k a], the instruction."""

    images: np.ndarray
    state: Float[np.ndarray, "s"]
    actions: Float[np.ndarray, "k a"]
    text: str
    is_mirrored: bool = False


def preview(
    dataset: Dataset,
    augmentation: AugmentConfig,
    language: LanguageConfig | None,
    *,
    cameras: tuple[str, ...] | None = None,
    image_size: int = 96,
    rows: int = 4,
    variants: int = 5,
    seed: int = 0,
    chunk: int = 16,
) -> tuple[Image.Image, list[str]]:
    """(the sheet, lines about what of the augmentation was switched off or is approximate)."""
    seen = (cameras or dataset.cameras)[:MAX_CAMERAS]
    unknown = [name for name in seen if name not in dataset.cameras]
    if unknown or not seen:
        found = f"no camera {unknown[0]!r}; it has" if unknown else "there is nothing to look at; its cameras are"
        raise UsageError(f"{dataset.root}: {found} {', '.join(dataset.cameras) or 'none'}")
    if not dataset.num_frames:
        raise UsageError(f"{dataset.root}: has no frames")
    augmentation, notes = augmentation.fitted(dataset.embodiment, seen)
    contract = _contract(dataset, seen, image_size, augmentation)
    episodes = np.unique(np.linspace(0, dataset.num_episodes - 1, min(rows, dataset.num_episodes)).round().astype(int))
    say = _sayer(dataset, language)
    table = []
    for place, episode in enumerate(episodes.tolist()):
        frame = int(dataset.episode_length[episode]) * 2 // 5
        key = sample_keys(seed, torch.arange(variants + 1), torch.full((variants + 1,), place))
        table.append(_row(dataset, contract, augmentation, say, episode, frame, key, chunk))
    return _draw(dataset, seen, table), notes


def _contract(dataset: Dataset, cameras: tuple[str, ...], size: int, augmentation: AugmentConfig) -> Contract:
    """As much of a contract as images need."""
    return Contract(
        embodiment=dataset.embodiment,
        cameras=cameras,
        image_size=size,
        stored_size=augmentation.stored_size(size),
        window=Window(),
        executed_steps=1,
        normalization="identity",
        statistics_hash="",
        tokenizer_hash="",
        text_length=1,
        dataset_hash="",
    )


def _sayer(dataset: Dataset, language: LanguageConfig | None) -> Callable[[str, int], str]:
    return (lambda text, key: text) if language is None else language.build(dataset.tasks)


def _row(
    dataset: Dataset,
    contract: Contract,
    augmentation: AugmentConfig,
    say: Callable[[str, int], str],
    episode: int,
    frame: int,
    key: torch.Tensor,
    chunk: int,
) -> list[Moment]:
    """The moment as it was recorded (at the policy's size), then one variant for each key but the first."""
    first, end = (int(row) for row in dataset.episode_start[episode : episode + 2])
    wanted = np.minimum(first + frame + np.arange(chunk), end - 1)
    state, actions = dataset.state[first + frame], dataset.action[wanted]
    text = dataset.tasks[int(dataset.task_of_frame[first + frame])]
    partners = contract.embodiment.mirror.cameras if contract.embodiment.mirror else {}
    sources = {*contract.cameras, *(partners.get(name, name) for name in contract.cameras if augmentation.mirror)}
    frames = {
        name: np.stack([resize_with_pad(dataset.frames(episode, name, np.array([frame]))[0], contract.frame_size)]) for name in sources
    }
    nothing = np.zeros((len(key), 1), np.int64)
    plain = moved(frames, nothing[:1], key[:1], OFF, contract)
    varied = moved(frames, nothing, key, augmentation, contract)
    varied = {name: augment_pixels(image.permute(0, 1, 4, 2, 3), key, name, augmentation) for name, image in varied.items()}
    cells = [Moment(np.stack([plain[name][0, 0].numpy() for name in contract.cameras]), state, actions, text)]
    mirrored, mirror = draw_mirrored(key, augmentation.mirror), contract.embodiment.mirror
    for i in range(1, len(key)):
        images = np.stack([varied[name][i, 0].permute(1, 2, 0).numpy() for name in contract.cameras])
        sentence = say(text, int(key[i]))
        if mirrored[i] and mirror is not None:
            cells.append(Moment(images, mirror_state(state, mirror), mirror_action(actions, mirror), mirror_words(sentence), True))
        else:
            cells.append(Moment(images, state, actions, sentence))
    return cells


@dataclass(frozen=True, slots=True)
class Scale:
    """What the plots' edges stand for: least and greatest value of each state and action dimension, mirrored ones included."""

    state: tuple[np.ndarray, np.ndarray]
    action: tuple[np.ndarray, np.ndarray]
    planar: tuple[int, int] | None
    """Action dimensions that are x and y, where there are such."""

    @classmethod
    def of(cls, dataset: Dataset) -> Scale:
        rows = np.unique(np.linspace(0, dataset.num_frames - 1, SAMPLED).round().astype(np.int64))
        state, action, mirror = dataset.state[rows], dataset.action[rows], dataset.embodiment.mirror
        if mirror is not None:
            state, action = np.concatenate([state, mirror_state(state, mirror)]), np.concatenate([action, mirror_action(action, mirror)])
        of_state, of_action = ((values.min(0), np.maximum(values.max(0), values.min(0) + 1e-9)) for values in (state, action))
        return cls(of_state, of_action, planar_dimensions(dataset.embodiment.action))


def planar_dimensions(action: Vector) -> tuple[int, int] | None:
    """Which action dimensions are x and y by their names ("x", "tip_x"); None where there is no one pair."""
    found = [[i for i, name in enumerate(action.names) if re.fullmatch(rf"(.*[_. ])?{axis}", name.lower())] for axis in "xy"]
    return (found[0][0], found[1][0]) if len(found[0]) == len(found[1]) == 1 else None


def _draw(dataset: Dataset, cameras: tuple[str, ...], table: list[list[Moment]]) -> Image.Image:
    """The sheet: a caption and a header above the rows."""
    height = len(cameras) * (CELL + 2) + TEXT_LINES * LINE + PLOT + DOTS + 3 * GAP
    sheet = Image.new("RGB", (GAP + len(table[0]) * (CELL + GAP), 2 * LABEL + GAP + len(table) * height), PAPER)
    draw, font, scale = ImageDraw.Draw(sheet), ImageFont.load_default(13), Scale.of(dataset)
    above = "left: the chunk from above, x up and y to the right; " if scale.planar else ""
    title = f"{dataset.root.name}: {', '.join(cameras)}. Arrows: {above}each action dimension, first step to last. Dots: state now"
    draw.text((GAP, 2), title, INK, font)
    for column in range(len(table[0])):
        draw.text((GAP + column * (CELL + GAP), LABEL), "as recorded" if column == 0 else f"training sample {column}", GREY, font)
    for row, moments in enumerate(table):
        for column, moment in enumerate(moments):
            _cell(sheet, draw, (GAP + column * (CELL + GAP), 2 * LABEL + row * height), moment, moments[0].text, scale)
    return sheet


def _cell(sheet: Image.Image, draw: ImageDraw.ImageDraw, place: tuple[int, int], moment: Moment, recorded: str, scale: Scale) -> None:
    """Images, instruction and plots of one moment, from its upper left corner."""
    x, y = place
    small = ImageFont.load_default(11)
    for image in moment.images:
        sheet.paste(Image.fromarray(image).resize((CELL, CELL), Image.Resampling.BICUBIC), (x, y))
        y += CELL + 2
    if moment.is_mirrored:
        draw.rectangle((x, place[1], x + 52, place[1] + 15), RED)
        draw.text((x + 3, place[1] + 1), "mirrored", PAPER, small)
    text = " ".join(moment.text.split())[:400] or "(no instruction)"
    for i, line in enumerate(textwrap.wrap(text, TEXT_COLUMNS, max_lines=TEXT_LINES, placeholder=" ...")):
        draw.text((x, y + i * LINE), line, INK if moment.text == recorded else BLUE, small)
    y += TEXT_LINES * LINE + GAP
    left = x
    if scale.planar is not None:
        _from_above(draw, (x, y), moment.actions, scale)
        left += PLOT + GAP
    _arrows(draw, (left, y, x + CELL), moment.actions, scale.action)
    _dots(draw, (x, y + PLOT + GAP, x + CELL), moment.state, scale.state)


def _share(values: np.ndarray, ranges: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Where values lie in their ranges: 0 .. 1, clipped."""
    return np.clip((values - ranges[0]) / (ranges[1] - ranges[0]), 0, 1)


def _from_above(draw: ImageDraw.ImageDraw, place: tuple[int, int], actions: np.ndarray, scale: Scale) -> None:
    """The chunk in the plane: x upward, y to the right."""
    assert scale.planar is not None
    x, y = place
    draw.rectangle((x, y, x + PLOT, y + PLOT), outline=GREY)
    draw.line((x + PLOT // 2, y, x + PLOT // 2, y + PLOT), FAINT)
    shares = _share(actions, scale.action)[:, list(scale.planar)]
    _arrow(draw, [(x + float(right) * PLOT, y + (1 - float(up)) * PLOT) for up, right in shares])


def _arrows(draw: ImageDraw.ImageDraw, box: tuple[int, int, int], actions: np.ndarray, ranges: tuple[np.ndarray, np.ndarray]) -> None:
    """A vertical track for each action dimension, and on it the way from the chunk's first step to its last."""
    left, top, right = box
    shares = _share(actions[[0, -1]], ranges)[:, :MAX_DIMENSIONS]
    for i, (start, end) in enumerate(shares.T.tolist()):
        x = left + (i + 0.5) * (right - left) / shares.shape[1]
        draw.line((x, top, x, top + PLOT), FAINT)
        _arrow(draw, [(x, top + PLOT * (1 - start)), (x, top + PLOT * (1 - end))])


def _dots(draw: ImageDraw.ImageDraw, box: tuple[int, int, int], state: np.ndarray, ranges: tuple[np.ndarray, np.ndarray]) -> None:
    """A vertical track for each state dimension, and the state on it."""
    left, top, right = box
    shares = _share(state, ranges)[:MAX_DIMENSIONS]
    for i, share in enumerate(shares.tolist()):
        x, y = left + (i + 0.5) * (right - left) / len(shares), top + DOTS * (1 - share)
        draw.line((x, top, x, top + DOTS), FAINT)
        draw.ellipse((x - 2, y - 2, x + 2, y + 2), INK)


def _arrow(draw: ImageDraw.ImageDraw, points: list[tuple[float, float]]) -> None:
    """A line through points with a head at its end; a dot where it does not move."""
    (x, y), way = points[-1], np.subtract(points[-1], points[0])
    length = float(np.hypot(*way))
    if length < 2:
        draw.ellipse((x - 2, y - 2, x + 2, y + 2), BLUE)
        return
    draw.line(points, BLUE, 2)
    along = way / length
    across = np.array([-along[1], along[0]])
    tip = np.array([x, y])
    draw.polygon([tuple(tip + 2 * along), tuple(tip - 5 * along + 3.5 * across), tuple(tip - 5 * along - 3.5 * across)], BLUE)
