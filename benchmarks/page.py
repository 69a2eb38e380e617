"""docs/benchmarks.md: a pure function of benchmarks/results/data.json (a test holds the two together)."""

from __future__ import annotations

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


def write_page(results: dict[str, Any], path: Path) -> None:
    path.write_text(render(results))
