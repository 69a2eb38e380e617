"""docs/benchmarks.md: a pure function of benchmarks/results/data.json (a test holds the two together)."""

from __future__ import annotations

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
    host, versions = results["host"], results["versions"]
    table = "\n".join(
        f"| `{name}` | {what} | {number(row['ours'])} | {number(row['peer'])} | {row['unit']} | **{row['ratio']:.1f} x** "
        f"({row['ratio_min']:.1f} to {row['ratio_max']:.1f}) | {second(row)} | {row['goal']:g} x | {'yes' if row['equal'] else 'NO'} |"
        for name, what in WHAT.items()
        for row in [results[name]]
    )
    settings = "\n".join(f"- `{name}`: {results[name]['settings']}." for name in WHAT)
    opened, stored = results["open"], results["store"]
    peer, ours = versions["peer"], versions["ours"]
    return f"""# Benchmarks

`make bench-data`, {results["measured_on"]}: {host["cores"]} cores of {host["cpu"]}, {host["memory_gib"]} GiB. That command writes this
page from [data.json](../benchmarks/results/data.json).

## The data engine beside lerobot

lerobot {peer["lerobot"]} (torch {peer["torch"]}, PyAV {peer["av"]}, torchcodec {peer["torchcodec"]} with the system's ffmpeg) and deftly
{ours["deftly"]} (torch {ours["torch"]}, PyAV {ours["av"]}) read the same files in one run: each in a process of its own, one thread for
arithmetic, caches warm, rounds interleaved. Figures are medians of {stored["rounds"]} rounds; in brackets the smallest and the largest
ratio of a round.

| row | what | deftly | lerobot, PyAV | unit | ratio | lerobot, torchcodec | goal | equal |
|---|---|---|---|---|---|---|---|---|
{table}

{settings}

The store of the first row took {stored["build_s"]:.1f} s and {stored["store_bytes"] / 2**20:.0f} MiB to prepare. An open dataset keeps
{opened["bytes_per_episode"]:.0f} bytes per episode; opening it adds {opened["private_mib_ours"]:.0f} MiB of memory that a process
shares with no other, {opened["private_mib_peer"]:.0f} MiB on the peer's side.

*Equal* means: the pixels of `store`, `video` and `sequential` are those of lerobot's PyAV decoder, bit for bit; states, actions and padding
of sampled batches agree to float32; statistics agree with numpy in float64 to 1e-6 of a spread. lerobot's torchcodec decodes to pixels
up to {results["video"]["largest_difference"]["torchcodec"]} levels away from its PyAV; its quantiles are averages over episodes, up to
{results["statistics"]["largest_difference"]["peer quantiles"]:.2g} spreads away from the true ones.
"""


def number(value: float) -> str:
    return f"{value:,.0f}".replace(",", " ") if value >= 100 else f"{value:.3g}"


def second(row: dict[str, Any]) -> str:
    return f"{number(row['peer_torchcodec'])} ({row['ratio_torchcodec']:.1f} x)" if "peer_torchcodec" in row else ""


def write_page(results: dict[str, Any], path: Path) -> None:
    path.write_text(render(results))
