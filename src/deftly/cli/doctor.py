"""`deftly doctor`: what of this machine works, what does not, and how to mend it. Looks only: nothing is installed or downloaded."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from packaging.requirements import Requirement

OLDEST_PYTHON = (3, 11)
GPU_FILES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # NVIDIA, NVIDIA under Windows' Linux, AMD
# The demo decodes 1.5 GB of frames, and `deftly.data.store` refuses what would take more than a fifth of the free space.
DISK_FAIL_GB, DISK_WARN_GB = 1.0, 8.0
DISK_REMEDY = (
    f"free some space: the demo wants {DISK_WARN_GB:.0f} GB, as its 1.5 GB of decoded frames may take a fifth of what is free; or set "
    "DEFTLY_CACHE to a folder on a larger disk"
)
# It takes 2 GB of memory at its peak.
MEMORY_FAIL_GB, MEMORY_WARN_GB = 1.5, 4.0
SHARED_MEMORY_WARN_GB = 0.25
GB = 1e9


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the table. `remedy` is what to type or change; it is empty where all is well."""

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    remedy: str = ""


def main(arguments: list[str]) -> None:
    tyro.cli(doctor, args=arguments, prog="deftly doctor")


def doctor(directory: Path = Path()) -> None:
    """Look at this machine: what works, what does not, how to mend it. Exit code 1 when something fails.

    Args:
        directory: where datasets and runs would be written.
    """
    findings = examine(directory)
    show(findings)
    failures = [finding.name for finding in findings if finding.status == "fail"]
    warnings = [finding.name for finding in findings if finding.status == "warn"]
    if failures:
        print(f"does not work yet: {', '.join(failures)}")
        sys.exit(1)
    print(f"works; worth a look: {', '.join(warnings)}" if warnings else "everything that deftly needs works")


def examine(directory: Path) -> list[Finding]:
    """Every check in order; one that breaks is itself a finding."""
    checks: dict[str, Callable[[], list[Finding]]] = {
        "python": lambda: [python(sys.version_info[:3])],
        "packages": packages,
        "torch": lambda: [device()],
        "rendering": lambda: [rendering()],
        "video": lambda: [video()],
        "disk": lambda: [disk(directory), shared_memory()],
        "memory": lambda: [memory(available_memory()), cores()],
    }
    findings = []
    for name, check in checks.items():
        try:
            findings.extend(check())
        except Exception as error:
            text = " ".join(f"{type(error).__name__}: {error}".split())
            findings.append(Finding(name, "fail", text[:200], 'reinstall: pip install --force-reinstall "deftly"'))
    return findings


def python(version: tuple[int, ...]) -> Finding:
    text = f"{'.'.join(map(str, version))}, {platform.system()} {platform.machine()}"
    if version[:2] < OLDEST_PYTHON:
        return Finding("python", "fail", text, "install Python 3.11 or newer and make the environment with it")
    return Finding("python", "ok", text)


def packages() -> list[Finding]:
    """Every package that deftly itself asks for, held against the versions that it was tested with."""
    requirements = [Requirement(text) for text in importlib.metadata.requires("deftly") or []]
    return [package(item) for item in requirements if item.marker is None or item.marker.evaluate({"extra": ""})]


def package(requirement: Requirement) -> Finding:
    remedy = f'pip install "{requirement.name}{requirement.specifier}"'
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(requirement.name, "fail", "not installed", remedy)
    if not requirement.specifier.contains(version, prereleases=True):
        return Finding(requirement.name, "fail", f"{version}, outside of {requirement.specifier}", remedy)
    return Finding(requirement.name, "ok", version)


def device() -> Finding:
    """Where training would run, and a GPU that this torch cannot see."""
    import torch

    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        more = f" and {torch.cuda.device_count() - 1} more" if torch.cuda.device_count() > 1 else ""
        found = f"{gpu.name}, {gpu.total_memory / GB:.0f} GB, compute {gpu.major}.{gpu.minor}{more}"
        return Finding("device", "ok", found)
    found = f"CPU, {torch.get_num_threads()} threads"
    gpu_files = [name for name in GPU_FILES if os.path.exists(name)]
    if not gpu_files:
        return Finding("device", "ok", found)
    if torch.version.cuda is None and torch.version.hip is None:
        remedy = f'pip install --force-reinstall "{_torch_requirement()}" (from PyPI: its Linux wheels bring CUDA)'
        return Finding("device", "warn", f"{found}, although there is {gpu_files[0]}: this torch is built for CPU only", remedy)
    remedy = "update the NVIDIA driver, or pass the GPU into this container (docker run --gpus all)"
    return Finding("device", "warn", f"{found}, although there is {gpu_files[0]}: torch (CUDA {torch.version.cuda}) cannot use it", remedy)


def _torch_requirement() -> str:
    found = (Requirement(text) for text in importlib.metadata.requires("deftly") or [])
    return next(f"torch{item.specifier}" for item in found if item.name == "torch")


def rendering() -> Finding:
    """Draws one frame in a subprocess: a broken driver may end the process."""
    from deftly.sim import opengl

    try:
        opengl.probe()
    except opengl.RenderingUnavailable as error:
        return Finding("rendering", "fail", str(error).partition("; remedy: ")[0], opengl.REMEDY)
    return Finding("rendering", "ok", f"MUJOCO_GL={os.environ.get('MUJOCO_GL', 'unset')}")


def video() -> Finding:
    """A tiny clip through the encoder and the decoder that datasets use."""
    import numpy as np

    from deftly.data.video import VideoWriter, decode

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        frames = np.stack([np.full((32, 32, 3), value, np.uint8) for value in (40, 200)])
        with VideoWriter(path, 10, 32, 32) as writer:
            writer.add_frames(frames)
        error = np.abs(decode(path, 0.0, 10, np.arange(2), 32, 32).astype(int) - frames).max()
    if error > 8:
        return Finding("video", "fail", f"h264 changes a flat frame by {error} of 255", 'pip install --force-reinstall "av"')
    return Finding("video", "ok", "h264 written and read back")


def disk(directory: Path) -> Finding:
    """Free space and permission where datasets and runs go."""
    place = directory.resolve()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / GB
    found = f"{free:.1f} GB free in {place}"
    if not os.access(place, os.W_OK):
        return Finding("disk", "fail", f"{place} cannot be written to", "run deftly in a directory of yours")
    if free < DISK_WARN_GB:
        return Finding("disk", "fail" if free < DISK_FAIL_GB else "warn", found, DISK_REMEDY)
    return Finding("disk", "ok", found)


def shared_memory(place: Path = Path("/dev/shm")) -> Finding:
    """Loader workers hand batches over through it; containers often give 64 MB."""
    if not place.is_dir():
        return Finding("shared memory", "ok", "not needed on this system")
    size = shutil.disk_usage(place).total / GB
    if size < SHARED_MEMORY_WARN_GB:
        return Finding("shared memory", "warn", f"{size:.2f} GB in {place}", "docker run --shm-size 1g, or keep --data.workers 0")
    return Finding("shared memory", "ok", f"{size:.1f} GB in {place}")


def memory(available: float | None) -> Finding:
    """`available` in bytes, None where the system does not say."""
    if available is None:
        return Finding("memory", "ok", "unknown on this system")
    found = f"{available / GB:.1f} GB available"
    if available < MEMORY_WARN_GB * GB:
        status = "fail" if available < MEMORY_FAIL_GB * GB else "warn"
        return Finding("memory", status, found, "close other programs, or use fewer workers and a smaller --data.batch-size")
    return Finding("memory", "ok", found)


def available_memory(root: Path = Path("/")) -> float | None:
    """Bytes that a new process may take: what the kernel has, or what is left of this container's limit."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        values = {line.split(":")[0]: float(line.split()[1]) * 1024 for line in lines if ":" in line}
        available = values["MemAvailable"]
    except (OSError, KeyError, IndexError, ValueError):
        return None
    try:
        limit = float((root / "sys/fs/cgroup/memory.max").read_text())  # "max" where there is none
        used = float((root / "sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):
        return available
    return min(available, max(0.0, limit - used))


def cores() -> Finding:
    from deftly.sim.processes import usable_cores

    if usable_cores() < 2:
        return Finding("cores", "warn", "1", "deftly works on one core; with two the demo takes ten minutes")
    return Finding("cores", "ok", str(usable_cores()))


def show(findings: list[Finding]) -> None:
    """A table on a terminal, plain columns elsewhere; remedies below the lines they belong to."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            print(f"{finding.status:<5} {finding.name:<{width}}  {finding.found}")
            if finding.remedy:
                print(f"      {'':<{width}}  -> {finding.remedy}")
        return
    colours = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    table = Table("", "what", "found", box=None, header_style="dim")
    for finding in findings:
        found = Text(finding.found)
        if finding.remedy:
            found.append(f"\n-> {finding.remedy}", style=colours[finding.status])
        table.add_row(Text(finding.status, style=colours[finding.status]), finding.name, found)
    console.print(table)
