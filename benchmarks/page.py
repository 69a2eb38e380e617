"""docs/benchmarks.md: a pure function of the files in benchmarks/results that are there (a test holds them together)."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

WHAT = {
    "store": "random windows from the prepared store; the peer reads them from the mp4",
    "video": "the same mp4, no store, windows of 8 frames",
    "sequential": "an epoch straight from the mp4",
    "state_action": "state and chunks of 50 actions, no images",
    "open": "opening 100 000 episodes with 3 cameras",
    "statistics": "statistics of the numeric columns",
}


def render(results: dict[str, Any]) -> str:
    """The page: where it was measured, the table, what each row was, what `equal` means."""
    host, peer, ours = results["host"], results["versions"]["peer"], results["versions"]["ours"]
    parts = [
        "# Benchmarks",
        f"`make bench-data`, {results['measured_on']}: {host['cores']} cores of {host['cpu']}, {host['memory_gib']} GiB, load "
        f"{host['load_before']:.1f} from other work when it began. That command writes this page from "
        "[data.json](../benchmarks/results/data.json).",
        "## The data engine beside lerobot",
        f"lerobot {peer['lerobot']} (torch {peer['torch']}, PyAV {peer['av']}, torchcodec {peer['torchcodec']} with the system's ffmpeg) "
        f"and deftly {ours['deftly']} (torch {ours['torch']}, PyAV {ours['av']}) read the same files in one run: each in a process of its "
        f"own, one thread for arithmetic, caches warm, rounds interleaved. Figures are medians of {results['store']['rounds']} rounds; in "
        "brackets the smallest and the largest ratio of a round.",
        table(results),
        "\n".join(f"- `{name}`: {results[name]['settings']}." for name in WHAT),
        *costs(results),
        *equality(results),
    ]
    return "\n\n".join(part if part.startswith(("|", "-", "#")) else textwrap.fill(part, 140) for part in parts) + "\n"


def table(results: dict[str, Any]) -> str:
    lines = [
        "| row | what | deftly | lerobot, PyAV | unit | ratio | lerobot, torchcodec | goal | equal |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, what in WHAT.items():
        row = results[name]
        second = f"{number(row['peer_torchcodec'])} ({row['ratio_torchcodec']:.1f} x)" if "peer_torchcodec" in row else ""
        lines.append(
            f"| `{name}` | {what} | {number(row['ours'])} | {number(row['peer'])} | {row['unit']} | **{row['ratio']:.1f} x** "
            f"({row['ratio_min']:.1f} to {row['ratio_max']:.1f}) | {second} | {row['goal']:g} x | {'yes' if row['equal'] else 'NO'} |"
        )
    return "\n".join(lines)


def costs(results: dict[str, Any]) -> list[str]:
    """What the figures of the table do not show."""
    opened, stored, real = results["open"], results["store"], results["video"].get("real")
    parts = [
        f"The store of the first row took {stored['build_s']:.1f} s and {stored['store_bytes'] / 2**20:.0f} MiB to prepare. An open "
        f"dataset keeps {opened['bytes_per_episode']:.0f} bytes per episode; opening it adds {opened['private_mib_ours']:.0f} MiB of "
        f"memory that a process shares with no other, {opened['private_mib_peer']:.0f} MiB on the peer's side."
    ]
    if real:
        parts.append(
            f"Windows of 8 frames from {real['settings']}: {number(real['ours'])} {real['unit']} beside {number(real['peer'])} with PyAV "
            f"({real['ratio']:.1f} x) and {number(real['peer_torchcodec'])} with torchcodec ({real['ratio_torchcodec']:.1f} x); "
            f"{'the same pixels as' if real['equal'] else 'OTHER pixels than'} its PyAV."
        )
    return parts


def equality(results: dict[str, Any]) -> list[str]:
    levels, quantiles = results["video"]["largest_difference"]["torchcodec"], results["statistics"]["largest_difference"]["peer quantiles"]
    codec = "the same pixels" if levels == 0 else f"pixels up to {levels} levels away from its PyAV's"
    return [
        "*Equal* means: the pixels of `store`, `video` and `sequential` are those of lerobot's PyAV decoder, bit for bit; states, actions "
        "and padding of sampled batches agree to float32; statistics agree with numpy in float64 to 1e-6 of a spread. lerobot's torchcodec "
        f"decodes to {codec}; its quantiles are averages over episodes, up to {quantiles:.2g} spreads away from the true ones."
    ]


def number(value: float) -> str:
    return f"{value:,.0f}".replace(",", " ") if value >= 100 else f"{value:.3g}"


STEPS = {
    "model_step": "forward, backward, AdamW on one batch: eager, fp32",
    "model_step_channels_last": "the same, both in channels_last",
    "model_step_compiled": "the same, the transformer layers of both through torch.compile",
    "model_step_bf16": "the same, both under bf16 autocast",
    "end_to_end": "from the mp4: our trainer out of its store",
}


def render_training(results: dict[str, Any]) -> str:
    """The section about training: where, the table, what the rows are, how fast the arithmetic could be."""
    host, row, whole = results["host"], results["model_step"], results["end_to_end"]
    shapes = row["shapes"]
    peer, ours, same = (results["versions"][name] for name in ("training_peer", "training_ours", "model_steps"))
    cores, dataset = f"{host['cores']} cores of {host['cpu']}, load {host['load_before']:.1f}", whole["shapes"]
    parts = [
        "## Training beside lerobot's ACT",
        f"`make bench-training`, {results['measured_on']}: {cores} from other work when it began. Model steps of deftly and of lerobot "
        f"{same['lerobot']} run in one process on torch {same['torch']}; end to end each side is as it is installed, deftly "
        f"{ours['deftly']} on torch {ours['torch']}, lerobot on torch {peer['torch']}. All {results['threads']} cores compute on both "
        f"sides, which take turns. Figures are medians of {row['rounds']} rounds; in brackets the smallest and the largest ratio of a "
        "round. That command writes this section from [training.json](../benchmarks/results/training.json).",
        training_table(results),
        f"Model steps: batches of {shapes['batch']}, {shapes['cameras']} cameras at {shapes['size']} px, chunks of {shapes['chunk']} "
        f"actions, lerobot's default widths ({row['parameters'] / 1e6:.1f} M parameters), no dropout, no sentence. *Equal* means: with the "
        "same weights, samples and noise the losses differ by less than 1e-5 of themselves (`model_step`: "
        f"{row['loss_difference']:.1g}) and no gradient by more than 1e-4 of the largest ({row['gradient_difference']:.1g}); under bf16 "
        "2 % and 10 %, as each side rounds in its own order. The compiled row is compared before it is compiled.",
        f"End to end: batches of {dataset['batch']}, {dataset['cameras']} cameras at {dataset['size']} px of generated demonstrations at "
        f"10 Hz, chunks of {dataset['chunk']} actions (the two seconds of ACT's 100 at 50 Hz), dropout 0.1, {whole['workers']} worker "
        "processes on both sides, gradients clipped at 10. lerobot runs its own dataset with PyAV, loader, processor and `update_policy`; "
        "deftly its trainer, with channels_last and without an average of weights, which lerobot has not. Before that the loss of the "
        "same samples with the same weights is compared, with one set of statistics: lerobot has no floor for a joint that hardly moves. "
        f"Preparing the store took {whole['store_s']:.1f} s. Straight from the video deftly reaches "
        f"{number(whole['video']['ours'])} samples/s ({whole['video']['ratio']:.2f} x).",
        f"One step of ours is {row['gflop']:.0f} GFLOP (products of matrices and convolutions, counted) in {row['step_s']:.2f} s. The "
        f"product of two square matrices reaches {row['peak_gflop_per_s']:.0f} GFLOP/s on the same cores, so the step uses "
        f"{row['mfu']:.0%} of what they can do.",
    ]
    return "\n\n".join(part if part.startswith(("|", "-", "#")) else textwrap.fill(part, 140) for part in parts) + "\n"


def training_table(results: dict[str, Any]) -> str:
    lines = ["| row | what | deftly | lerobot | unit | ratio | goal | equal |", "|---|---|---|---|---|---|---|---|"]
    for name, what in STEPS.items():
        row = results[name]
        if "not_measured" in row:
            lines.append(f"| `{name}` | {what} | | | | {row['not_measured']} | | |")
            continue
        goal = f"{row['goal']:g} x" if row["goal"] else ""
        lines.append(
            f"| `{name}` | {what} | {number(row['ours'])} | {number(row['peer'])} | {row['unit']} | **{row['ratio']:.2f} x** "
            f"({row['ratio_min']:.2f} to {row['ratio_max']:.2f}) | {goal} | {'yes' if row['equal'] else 'NO'} |"
        )
    return "\n".join(lines)


def render_saving(results: dict[str, Any]) -> str:
    """The section about checkpoints: what they cost, and what a resume costs."""
    host, cost, resume = results["host"], results["cost"], results["resume"]
    parts = [
        "## Checkpoints",
        f"`make bench-saving`, {results['measured_on']}: {host['cores']} cores of {host['cpu']}, load {host['load_before']:.1f} from other "
        "work when it began. That command writes this section from [saving.json](../benchmarks/results/saving.json).",
        f"The demo's policy, {cost['steps']} steps with a checkpoint of {cost['checkpoint_mib']:.1f} MiB every {cost['every']}, takes "
        f"**{cost['ratio']:.3f} x** the time of the same run without any ({cost['saving_s']:.1f} s and {cost['never_s']:.1f} s; medians of "
        f"{cost['rounds']} rounds by turns, {cost['ratio_min']:.3f} to {cost['ratio_max']:.3f}; goal {cost['goal']:g} x); the loop itself "
        f"was held up for {cost['waited_s']:.2f} s, the copying and the wait for the last checkpoint included. The weights are "
        f"{'the same bits' if cost['equal'] else 'NOT EQUAL'}.",
        f"A resumed run has its first batch {resume['resume_s']:.2f} s after it begins to look for its checkpoint. Checking and "
        f"reading that takes {resume['load_s']:.2f} s, so the rest costs {resume['beyond_load_s']:.2f} s (goal {resume['goal_s']:g} s); "
        f"a fresh run takes {resume['fresh_s']:.2f} s.",
    ]
    return "\n\n".join(part if part.startswith("#") else textwrap.fill(part, 140) for part in parts) + "\n"


def write_page() -> None:
    """docs/benchmarks.md from what is in benchmarks/results."""
    here = Path(__file__).parent
    (here.parent / "docs/benchmarks.md").write_text(whole(here / "results"))


def whole(results: Path) -> str:
    """The page of what has been measured."""
    sections = {"data": render, "training": render_training, "saving": render_saving}
    files = {name: results / f"{name}.json" for name in sections}
    return "\n".join(sections[name](json.loads(file.read_text())) for name, file in files.items() if file.exists())
