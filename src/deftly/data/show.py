"""What is in a dataset, for people: tables for the terminal, and a contact sheet to look at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from deftly.contract import Vector
from deftly.data.dataset import Dataset
from deftly.data.language.summary import summarise
from deftly.data.schema import Feature
from deftly.data.statistics import statistics
from deftly.types import UsageError

MAX_TASKS = 12
BARS = " ▁▂▃▄▅▆▇█"
SHEET_EPISODES = 8
SHEET_COLUMNS = 8
SHEET_CAMERAS = 2
CELL = 112  # pixels: height of a frame on the contact sheet
MARGIN = 6
CAPTION = 22


def summary(dataset: Dataset) -> dict[str, object]:
    """The headline facts in plain data: episodes, frames, seconds, fps, robot, cameras, tasks, shortest, median and longest episode."""
    lengths = dataset.episode_length
    return {
        "path": str(dataset.root),
        "episodes": dataset.num_episodes,
        "frames": dataset.num_frames,
        "seconds": dataset.num_frames / dataset.fps,
        "fps": dataset.fps,
        "robot": dataset.embodiment.name,
        "cameras": {camera.name: [camera.height, camera.width] for camera in dataset.embodiment.cameras},
        "tasks": len(dataset.tasks),
        "episode_frames": [int(lengths.min()), float(np.median(lengths)), int(lengths.max())],
    }


def render(dataset: Dataset) -> Group:
    """Everything that `deftly data show` prints."""
    parts = [_headline(dataset), _vector("state", dataset.embodiment.state, dataset.state)]
    parts += [_vector("action", dataset.embodiment.action, dataset.action), _tasks(dataset), _language(dataset), _lengths(dataset)]
    return Group(*parts)


def _headline(dataset: Dataset) -> Table:
    facts = summary(dataset)
    table = Table(title=printable(str(dataset.root)), show_header=False, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    stored = {name: dataset.features[key].dtype for name, key in dataset.info.cameras().items()}
    cameras = ", ".join(f"{c.name} {c.height}x{c.width} {c.role} ({stored[c.name]})" for c in dataset.embodiment.cameras)
    table.add_row("episodes", f"{dataset.num_episodes:,}")
    table.add_row("frames", f"{dataset.num_frames:,} at {dataset.fps:g} per second ({float(str(facts['seconds'])) / 60:.1f} minutes)")
    table.add_row("robot", printable(dataset.embodiment.name))
    table.add_row("cameras", printable(cameras or "none"))
    depth = {name: dataset.features[key] for name, key in dataset.info.cameras(depth=True).items()}
    if depth:
        seen = ", ".join(f"{name} {'x'.join(map(str, item.shape))} ({item.dtype}, {_unit(item)})" for name, item in depth.items())
        table.add_row("depth", printable(seen))
    table.add_row("action kind", dataset.embodiment.action_kind)
    if dataset.extra_names:
        table.add_row("per episode", printable(", ".join(dataset.extra_names)))
    others = [name for name, item in dataset.features.items() if item.is_numeric and name not in ("action", "observation.state")]
    table.add_row("other columns", printable(", ".join(others)))
    return table


def _unit(depth: Feature) -> str:
    return str((depth.info or {}).get("depth_unit") or "no depth_unit")


def _vector(title: str, vector: Vector, values: np.ndarray) -> Table:
    table = Table(title=f"{title} [{len(vector)}]", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column("", no_wrap=True, overflow="fold")
    for name in ("min", "1 %", "mean", "99 %", "max", "std"):
        table.add_column(name, justify="right", no_wrap=True)
    if not len(vector):
        return table
    found = statistics({title: values})[title]
    for i, (name, unit) in enumerate(zip(vector.names, vector.units, strict=True)):
        numbers = [_number(found[key][i]) for key in ("min", "q01", "mean", "q99", "max", "std")]
        constant = ", constant" if found["min"][i] == found["max"][i] else ""
        table.add_row(printable(f"{name} ({unit})" if unit else name) + constant, *numbers)
    return table


def printable(text: str) -> Text:
    """Text from a dataset: neither markup nor control characters, which a terminal would obey, have any effect."""
    return Text("".join(character if character.isprintable() else " " for character in text))


def _number(value: float) -> str:
    if value == 0 or 0.0005 <= abs(value) < 100:
        return f"{value:.3f}"
    return f"{value:.0e}" if abs(value) < 0.0005 else f"{value:.4g}"


def task_counts(dataset: Dataset) -> dict[str, int]:
    """Episodes per instruction, most frequent first; an episode counts for the instruction of its first frame."""
    first = dataset.task_of_frame[dataset.episode_start[:-1]]
    counts = np.bincount(first, minlength=len(dataset.tasks))
    return {dataset.tasks[i]: int(counts[i]) for i in np.argsort(-counts, kind="stable")}


def _tasks(dataset: Dataset) -> Table:
    counts = task_counts(dataset)
    table = Table(title=f"instructions [{len(counts)}]", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("episodes", justify="right")
    table.add_column("instruction")
    for task, count in list(counts.items())[:MAX_TASKS]:
        table.add_row(str(count), printable(task))
    if len(counts) > MAX_TASKS:
        table.add_row("", f"... and {len(counts) - MAX_TASKS} more")
    return table


def _language(dataset: Dataset) -> Table:
    """What the instructions are about, as far as the grammar reads them."""
    found = summarise(dataset.tasks)
    table = Table(title="language", show_header=False, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_row("words", f"{found.words} different ones, at most {found.longest} in an instruction")
    table.add_row("understood", f"{found.understood} of {found.instructions} instructions, which can be said in other words")
    for example in found.examples:
        table.add_row("not understood", printable(example[:60]))
    for name, counts in (("verbs", found.verbs), ("objects", found.nouns), ("attributes", found.attributes)):
        if counts:
            more = f", and {len(counts) - MAX_TASKS} more" if len(counts) > MAX_TASKS else ""
            table.add_row(name, printable(", ".join(f"{word} {count}" for word, count in list(counts.items())[:MAX_TASKS]) + more))
    return table


def _lengths(dataset: Dataset) -> Text:
    low, middle, high = (float(value) for value in np.quantile(dataset.episode_length, [0, 0.5, 1]))
    counts, _ = np.histogram(dataset.episode_length, bins=min(40, max(1, int(high - low) + 1)))
    bars = "".join(BARS[int(np.ceil(count / max(1, counts.max()) * (len(BARS) - 1)))] for count in counts)
    return Text(f"episode length   {low:.0f} |{bars}| {high:.0f} frames, median {middle:.0f} ({middle / dataset.fps:.1f} s)")


def show(dataset: Dataset, sheet: Path | None = None, console: Console | None = None) -> None:
    """Print the tables, and write the contact sheet where one is wanted."""
    console = console or Console()
    console.print(render(dataset))
    if sheet is not None:
        contact_sheet(dataset).save(sheet)
        console.print(f"contact sheet: {sheet}", soft_wrap=True, markup=False)


def contact_sheet(dataset: Dataset, episodes: int = SHEET_EPISODES, columns: int = SHEET_COLUMNS) -> Image.Image:
    """A picture of some episodes, evenly spread over the dataset: an instruction, and below it one strip of frames per camera, in time."""
    if not dataset.cameras:
        raise UsageError(f"{dataset.root}: has no cameras, so there is nothing to put on a contact sheet")
    cameras = dataset.cameras[:SHEET_CAMERAS]
    widths = [round(CELL * c.width / c.height) for c in (dataset.embodiment.camera(name) for name in cameras)]
    chosen = np.unique(np.linspace(0, dataset.num_episodes - 1, min(episodes, dataset.num_episodes)).round().astype(int))
    block = CAPTION + len(cameras) * (CELL + 2)
    size = (2 * MARGIN + columns * (max(widths) + 2), 2 * MARGIN + len(chosen) * (block + MARGIN))
    sheet = Image.new("RGB", size, (250, 250, 250))
    draw = ImageDraw.Draw(sheet)
    font, small = ImageFont.load_default(15), ImageFont.load_default(11)
    for row, episode in enumerate(chosen):
        top = MARGIN + row * (block + MARGIN)
        length = int(dataset.episode_length[episode])
        task = dataset.tasks[int(dataset.task_of_frame[dataset.episode_start[episode]])]
        caption = f"{episode}  {task}   ({length} frames, {length / dataset.fps:.1f} s)"
        draw.text((MARGIN, top), _fitting(draw, caption, font, size[0] - 2 * MARGIN), fill=(20, 20, 20), font=font)
        indices = np.linspace(0, length - 1, columns).round().astype(np.int64)
        for strip, (camera, width) in enumerate(zip(cameras, widths, strict=True)):
            frames = dataset.frames(int(episode), camera, indices)
            for column, frame in enumerate(frames):
                place = (MARGIN + column * (max(widths) + 2), top + CAPTION + strip * (CELL + 2))
                sheet.paste(Image.fromarray(frame).resize((width, CELL), Image.Resampling.LANCZOS), place)
                if strip == 0:
                    draw.text(
                        (place[0] + 3, place[1] + 2),
                        f"{indices[column] / dataset.fps:.1f} s",
                        fill="white",
                        font=small,
                        stroke_width=2,
                        stroke_fill="black",
                    )
    return sheet


def _fitting(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> str:
    text = " ".join(text.split())
    if draw.textlength(text, font=font) <= width:
        return text
    while text and draw.textlength(text + " ...", font=font) > width:
        text = text[: len(text) * 9 // 10] if len(text) > 200 else text[:-1]
    return text + " ..."
