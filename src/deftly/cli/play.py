"""`deftly play RUN "pick up the blue ball"`: the user's own sentence, and what the policy makes of it, as a GIF."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import numpy as np
import tyro

from deftly.agent import Agent, load
from deftly.cli.evaluate import open_run
from deftly.evaluation.closed_loop import larger
from deftly.evaluation.videos import Recorded, replay, write_gif
from deftly.rollout import Episode, rollout
from deftly.run import RUN_FILE
from deftly.types import UsageError, World

SCENES_TRIED = 200
MAX_NAME = 60


def main(arguments: list[str]) -> None:
    tyro.cli(command, args=arguments, prog="deftly play")


def command(
    run: tyro.conf.Positional[Path],
    sentence: tyro.conf.Positional[str],
    seed: int | None = None,
    out: Path | None = None,
    robot: str | None = None,
    window: bool = True,
    code: Path | None = None,
) -> None:
    """Let a policy act on a sentence of your own; writes a GIF, and shows it in a window where there is a display.

    Args:
        run: a run directory (its best checkpoint acts), or one of its checkpoints.
        sentence: what to do, such as "pick up the blue ball". It must fit exactly one object of the scene.
        seed: which scene; by default the first one that has exactly one such object.
        out: where the GIF goes; by default below RUN/play.
        robot: which robot the policy acts for, where it was trained on several; the first by default.
        window: show it when there is a display.
        code: the Python file of yours that defines the policy or the objective, where they are not deftly's own. It is run.
    """
    directory, config = open_run(run, code)
    if config.world is None:
        raise UsageError(f"{directory / RUN_FILE}: this run has no world to play in (world is null)")
    if seed is not None and seed < 0:
        raise UsageError(f"--seed {seed}: a seed is 0 or more")
    agent = load(run, robot=robot, own=code or ())
    world = config.world.build()
    agent.check(world.embodiment)
    chosen = find_scene(world, sentence) if seed is None else seed
    options = {"instruction": in_known_words(agent, world, chosen, sentence)}
    actor = Recorded(agent)
    stage = larger(config.world).build()
    replay(stage, chosen, [], options)  # a sentence without a referent, or a machine that cannot draw, is said before anything is played
    episode = rollout(actor, world, chosen, options=options)
    frames = replay(stage, chosen, actor.actions, options)
    path = out or directory / "play" / f"{slug(sentence)}-seed-{chosen}.gif"
    write_gif(path, frames, world.embodiment.rate_hz)
    print(describe(episode, world.embodiment.rate_hz))
    print(path)
    if window and has_display():
        show(frames, world.embodiment.rate_hz, sentence)


def find_scene(world: World, sentence: str) -> int:
    """The first seed whose scene has exactly one object that the sentence means; `UsageError` with the world's own words when none has."""
    refusal = ""
    for seed in range(SCENES_TRIED):
        try:
            world.reset(seed=seed, options={"instruction": sentence})
        except ValueError as error:
            refusal = refusal or str(error)
        else:
            return seed
    raise UsageError(refusal)


def in_known_words(agent: Agent, world: World, seed: int, sentence: str) -> str:
    """The sentence itself; where the policy never learnt a word of it, or would not read to its end, the world's own for the same object.

    What the world understands is more than what a policy was trained on ("cube", "mug"): an unknown word would reach it as a blank.
    """
    unknown = agent.encoder.tokenizer.unknown_words(sentence)
    too_long = len(agent.encoder.tokenizer.split(sentence)) > agent.contract.text_length
    if not unknown and not too_long:
        return sentence
    _, info = world.reset(seed=seed, options={"instruction": sentence})
    plain = world.sentence_for(info["scene"]["target"])
    why = f"never learnt {', '.join(map(repr, unknown))}" if unknown else f"reads {agent.contract.text_length} words"
    print(f"the policy {why}: it is told {plain!r}", file=sys.stderr)
    return plain


def describe(episode: Episode, rate_hz: float) -> str:
    """One line: what was asked, what came of it, in which scene."""
    seconds = episode.steps / rate_hz
    how = f" ({episode.error})" if episode.error else ""
    return f"{episode.instruction!r}: {episode.outcome.replace('_', ' ')} after {seconds:.1f} s{how}; scene --seed {episode.seed}"


def slug(sentence: str) -> str:
    """A file name from any sentence."""
    return re.sub(r"[^a-z0-9]+", "-", sentence.lower()).strip("-")[:MAX_NAME].strip("-") or "sentence"


def has_display() -> bool:
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def show(frames: list[np.ndarray], rate_hz: float, title: str) -> bool:
    """The rollout in a window, until it is closed; False when this matplotlib has no way to open one."""
    import matplotlib
    from matplotlib import pyplot
    from matplotlib.animation import FuncAnimation
    from matplotlib.backends.registry import BackendFilter, backend_registry

    if matplotlib.get_backend().lower() not in backend_registry.list_builtin(BackendFilter.INTERACTIVE):
        print("no window: matplotlib finds no toolkit (python3-tk is one)", file=sys.stderr)
        return False
    figure, axes = pyplot.subplots(num="deftly play")
    axes.set_axis_off()
    axes.set_title(title, parse_math=False)
    picture = axes.imshow(frames[0])
    animation = FuncAnimation(figure, lambda index: (picture.set_data(frames[index]), picture)[1:], len(frames), interval=1000 / rate_hz)
    pyplot.show()
    del animation  # it must live as long as its window
    return True
