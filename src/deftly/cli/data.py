"""`deftly data COMMAND`: make demonstrations, take over recorded ones, check and look at what there is."""

from __future__ import annotations

import difflib
import importlib.util
from pathlib import Path
from typing import Annotated, Literal

import tyro

from deftly.types import UsageError

COMMANDS = {
    "generate": "make demonstrations in the simulator",
    "pull": "fetch a LeRobot dataset from the Hugging Face hub, one commit of it, every file checked",
    "import": "turn RLDS, HDF5, LeRobot v2.1 or a folder of images into LeRobot v3.0",
    "export": "write LeRobot v2.1 with GR00T's modality.json, for readers that know no v3.0",
    "check": "find what is broken or cannot be learned from; exit 65 when it must not be trained on",
    "repair": "write a mended copy, without the episodes that cannot be mended",
    "show": "print what a dataset holds; --out writes a contact sheet",
    "preview": "write a picture of what training would show of a dataset",
    "mirror": "declare which dimensions are left, right and sideways, so that training may mirror samples",
}


def main(arguments: list[str]) -> None:
    """Run `deftly data ARGUMENTS`."""
    name, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if name in ("-h", "--help", "help"):
        print("usage: deftly data COMMAND ...\n")
        print("\n".join(f"  {command:<9} {text}" for command, text in COMMANDS.items()))
        print("\n`deftly data COMMAND --help` shows its flags.")
    elif name in COMMANDS:
        command = {
            "generate": generate,
            "pull": pull,
            "import": import_,
            "export": export,
            "check": check,
            "repair": repair,
            "show": show,
            "preview": preview,
            "mirror": mirror,
        }[name]
        tyro.cli(command, args=rest, prog=f"deftly data {name}", description=COMMANDS[name])
    else:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        raise UsageError(f"there is no `data {name}`; {f'did you mean {near[0]!r}?' if near else 'there are: ' + ', '.join(COMMANDS)}")


def generate(
    *, episodes: int, out: Path, workers: int = 0, executor: str = "local", seed: int = 0, image_size: int = 96, boxes: bool = True
) -> None:
    """Make demonstrations with the scripted expert. Interrupted, the same command continues.

    Args:
        episodes: Successful demonstrations to make.
        out: Folder of the new dataset.
        workers: Worker processes; the result does not depend on it. 0 does everything in this process.
        executor: Where the workers are: local, ray (started here), ray=HOST:PORT or ray=auto (a cluster; --out must be shared).
        seed: Different seeds give unrelated scenes.
        image_size: Side of the square images, pixels.
        boxes: Record where every object is seen in every image; every image is drawn twice for it (1.6 times the time).
    """
    from deftly.cli.executor import using
    from deftly.data.generate import GenerateConfig
    from deftly.data.generate import generate as make
    from deftly.sim.tabletop import TabletopConfig

    config = GenerateConfig.parse({"world": TabletopConfig.parse({"image_size": image_size}, "--image-size"), "boxes": boxes}, "generate")
    with using(executor) as where:
        report = make(config, out, episodes, workers, seed, where)
    if report["frames"]:
        rate = f"{report['frames']} new frames in {report['seconds']:.0f} s, {report['frames_per_s']:.0f} frames/s"
    else:
        rate = "nothing was left to make"
    print(f"{out}: {report['episodes']} episodes ({rate})")


def pull(repo: Annotated[str, tyro.conf.Positional], target: Annotated[Path, tyro.conf.Positional], *, revision: str | None = None) -> None:
    """Fetch a LeRobot dataset from the Hugging Face hub. Interrupted, the same command goes on, with the same commit.

    Args:
        repo: Its name, as in lerobot/pusht. HF_ENDPOINT names another hub.
        target: Folder of the new dataset; it must not exist.
        revision: Branch, tag or commit; the main branch without it. Which commit that was is kept in meta/source.json.
    """
    require_extra("huggingface_hub", "hub", "pull")
    from deftly.data.pull import pull as fetch

    print(f"{target}: " + "\n  ".join(fetch(repo, target, revision=revision).lines()))


def import_(
    kind: Annotated[Literal["rlds", "lerobot-v2.1", "hdf5", "folder"], tyro.conf.Positional],
    source: Annotated[Path, tyro.conf.Positional],
    target: Annotated[Path, tyro.conf.Positional],
    *,
    fps: int | None = None,
    task: str | None = None,
    state: tuple[str, ...] = (),
    images: Literal["video", "image"] | None = None,
    budget: float = 0.01,
) -> None:
    """Turn a dataset in another format into a LeRobotDataset v3.0.

    Args:
        kind: Format of the source. hdf5 is what robomimic and LIBERO write, folder is metadata.json beside images/.
        source: Folder of the source, or its file.
        target: Folder of the new dataset; it must not exist.
        fps: Frames per second, for sources that do not say them. A folder's timestamps then give the order and nothing else.
        task: The instruction of every episode, for hdf5 files that say none.
        state: Observations that make up the state, in order, for hdf5.
        images: Encode the images of hdf5 files as video (the default), or keep every pixel.
        budget: Share of the episodes that may be left out because they are broken.
    """
    given = {"--fps": fps is not None, "--task": task is not None, "--state": bool(state), "--images": images is not None}
    reads = {"rlds": ("--fps",), "lerobot-v2.1": (), "hdf5": tuple(given), "folder": ("--fps",)}[kind]
    ignored = [name for name, is_given in given.items() if is_given and name not in reads]
    if ignored:
        raise UsageError(f"{ignored[0]} means nothing for {kind}, which says this itself; leave it out")
    if kind == "rlds":
        from deftly.data.importers.rlds import import_rlds

        report = import_rlds(source, target, fps, budget)
    elif kind == "hdf5":
        require_extra("h5py", "hdf5", "import hdf5")
        from deftly.data.importers.hdf5 import import_hdf5

        report = import_hdf5(source, target, rate_hz=fps, task=task, state=state, images=images or "video", budget=budget)
    elif kind == "folder":
        from deftly.data.importers.folder import import_folder

        report = import_folder(source, target, rate_hz=fps, budget=budget)
    else:
        from deftly.data.importers.lerobot_v21 import import_lerobot_v21

        report = import_lerobot_v21(source, target, budget)
    print(f"{target}: " + "\n  ".join(report.lines()))


def require_extra(module: str, extra: str, what: str) -> None:
    """Raise `UsageError` with the line that installs it when an optional library is missing."""
    if importlib.util.find_spec(module) is None:
        raise UsageError(f"`deftly data {what}` needs {module}: pip install 'deftly[{extra}]', in a checkout pip install -e '.[{extra}]'")


def export(
    source: Annotated[Path, tyro.conf.Positional],
    target: Annotated[Path, tyro.conf.Positional],
    *,
    state_parts: tuple[str, ...] = (),
    action_parts: tuple[str, ...] = (),
) -> None:
    """Write a dataset as LeRobot v2.1, for lerobot < 0.4, openpi and GR00T. Every value and every pixel stays what it was.

    Args:
        source: Folder of the dataset.
        target: Folder of the new dataset; it must not exist.
        state_parts: Parts of the state for meta/modality.json, as in left_arm=0:7 right_arm=7:14.
        action_parts: The same for the action.
    """
    from deftly.data.dataset import Dataset
    from deftly.data.export import export_v21, parse_parts

    parts = {"state_parts": parse_parts(state_parts), "action_parts": parse_parts(action_parts)}
    print(f"{target}: " + "\n  ".join(export_v21(Dataset.open(source), target, **parts).lines()))


def check(
    directory: Annotated[Path, tyro.conf.Positional],
    *,
    fast: bool = False,
    json: Path | None = None,
    budget: float = 0.01,
    allow_missing_files: bool = False,
    allow_long_episodes: bool = False,
    allow_empty_instruction: bool = False,
) -> None:
    """Look for everything that can be wrong with a dataset, and print it, worst first.

    Args:
        directory: Folder of the dataset.
        fast: Probe videos without decoding them: a damaged frame in the middle of a file is not seen.
        json: Write the findings to this file too.
        budget: Share of the episodes that may be left out because they are broken.
        allow_missing_files: Leave out the episodes of a listed file that is missing, instead of refusing the dataset.
        allow_long_episodes: Accept an episode that is more than 15 times as long as the median one.
        allow_empty_instruction: Accept episodes without an instruction.
    """
    from deftly import storage
    from deftly.data import quarantine
    from deftly.data.check import run, table
    from deftly.data.check.findings import CheckConfig
    from deftly.types import DataError

    values = {"full": not fast, "budget": budget, "allow_missing_files": allow_missing_files}
    values |= {"allow_long_episodes": allow_long_episodes, "allow_empty_instruction": allow_empty_instruction}
    config = CheckConfig.parse(values, "data check")
    report = run.check(directory, config)
    if report.num_episodes:
        quarantine.keep(directory, report.findings, config)
    if json is not None:
        storage.write_json(json, report.to_dict())
    if report.is_opened:
        table.show(report)
    if report.refusal is not None:
        raise DataError(f"{directory}: {report.refusal}")


def repair(source: Annotated[Path, tyro.conf.Positional], target: Annotated[Path, tyro.conf.Positional]) -> None:
    """Write a mended copy: what can be mended is, broken episodes are left out and named. The source is only read.

    Args:
        source: Folder of the dataset.
        target: Folder of the copy; it must not exist.
    """
    from deftly.data.repair import repair as mend

    print(f"{target}: " + "\n  ".join(mend(source, target).lines()))


def show(directory: Annotated[Path, tyro.conf.Positional], *, out: Path | None = None) -> None:
    """Print what a dataset holds.

    Args:
        directory: Folder of the dataset.
        out: Write a contact sheet to this PNG file.
    """
    from deftly.data import show as module
    from deftly.data.dataset import Dataset

    module.show(Dataset.open(directory), out)


def preview(
    directory: Annotated[Path, tyro.conf.Positional],
    *,
    augment: bool = False,
    run: str | None = None,
    strength: Literal["default", "strong", "other-cameras"] = "strong",
    camera: tuple[str, ...] = (),
    image_size: int = 96,
    rows: int = 4,
    seed: int = 0,
    out: Path = Path("preview.png"),
) -> None:
    """Write a picture of recorded moments at the policy's size, and of the training samples that augmentation makes of them: images,
    instruction, state and action arrows.

    Args:
        directory: Folder of the dataset.
        augment: Show training samples beside what was recorded.
        run: A recipe or run whose cameras, image size, augmentation and rewording to show, instead of the next three.
        strength: Which augmentation: what a recipe has by default, what large policies use, or what another camera would change.
        camera: Cameras to show; the first three by default.
        image_size: Side of the images that the policy sees, pixels.
        rows: Episodes to show, evenly spread.
        seed: Another seed draws other samples.
        out: The PNG file to write.
    """
    from deftly.cli.train import find_run
    from deftly.data.augment import AugmentConfig
    from deftly.data.dataset import Dataset
    from deftly.data.language import LanguageConfig
    from deftly.data.preview import preview as draw

    for name, value, most in (("image-size", image_size, 2048), ("rows", rows, 64)):
        if not 1 <= value <= most:
            raise UsageError(f"--{name} {value}: give 1 to {most}")
    if run is not None:
        if (strength, camera, image_size) != ("strong", (), 96):
            raise UsageError("--strength, --camera and --image-size are the run's own with --run; leave them out")
        data = find_run(run, small=False).data
        config, language, cameras, image_size = data.augmentation, data.language, data.cameras, data.image_size
    else:
        config = {"default": AugmentConfig, "strong": AugmentConfig.strong, "other-cameras": AugmentConfig.other_cameras}[strength]()
        language, cameras = LanguageConfig(probability=1.0), camera or None
    shown = augment or run is not None
    sheet, notes = draw(
        Dataset.open(directory),
        config,
        language if shown else None,
        cameras=cameras,
        image_size=image_size,
        rows=rows,
        variants=5 if shown else 0,
        seed=seed,
    )
    sheet.save(out, format="PNG")
    print("\n".join([f"preview: {out}", *(f"  {note}" for note in notes if shown)]))


def mirror(directory: Annotated[Path, tyro.conf.Positional], lateral: Annotated[tuple[str, ...], tyro.conf.Positional] = ()) -> None:
    """Declare what a robot's left-right mirror image is, and write it into the dataset. Dimensions and cameras called left and right
    change places. Check the result with `deftly data preview DIR --augment`.

    Args:
        directory: Folder of the dataset.
        lateral: Names of the dimensions that change sign, sideways positions, roll and yaw; '*Roll' means every name that ends in it.
    """
    from deftly.data.mirror import declare, describe

    robot = declare(directory, lateral)
    print("\n".join([f"{directory}: mirrored, {robot.name} is", *describe(robot)]))
