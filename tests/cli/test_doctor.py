"""`deftly doctor`: every finding has a remedy unless all is well, and the exit code says whether deftly works here."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from packaging.requirements import Requirement

from deftly.cli import demo, doctor
from deftly.cli.doctor import Finding
from deftly.data.store import DISK_SHARE
from deftly.sim import opengl

FINE = [Finding("python", "ok", "3.11"), Finding("disk", "ok", "9 GB")]
BROKEN = Finding("rendering", "fail", "no EGL", opengl.REMEDY)
TIGHT = Finding("memory", "warn", "2 GB", "close other programs")


def test_this_machine_is_examined(capsys):
    """Whatever the machine: complete, consistent, and no finding without a remedy where something is wrong."""
    findings = {finding.name: finding for finding in doctor.examine(Path())}
    needed = {Requirement(text).name for text in importlib.metadata.requires("deftly") or [] if "extra ==" not in text}
    assert needed <= findings.keys()
    assert {"python", "torch", "device", "rendering", "video", "disk", "memory", "cores"} <= findings.keys()
    assert findings["python"].status == findings["torch"].status == findings["video"].status == "ok"
    assert all(bool(finding.remedy) == (finding.status != "ok") for finding in findings.values())


@pytest.mark.parametrize(
    ("extra", "code", "last"),
    [([], 0, "everything that deftly needs works"), ([TIGHT], 0, "works; worth a look: memory"), ([TIGHT, BROKEN], 1, "does not work yet")],
)
def test_the_exit_code_is_the_verdict(capsys, monkeypatch, extra: list[Finding], code: int, last: str):
    monkeypatch.setattr(doctor, "examine", lambda directory: [*FINE, *extra])
    if code:
        with pytest.raises(SystemExit) as exit_:
            doctor.main([])
        assert exit_.value.code == code
    else:
        doctor.main([])
    assert capsys.readouterr().out.splitlines()[-1].startswith(last)


def test_plain_columns_carry_the_remedy(capsys):
    doctor.show([*FINE, BROKEN])
    out = capsys.readouterr().out
    assert "fail  rendering  no EGL\n" in out
    assert f"-> {opengl.REMEDY}" in out
    assert "\x1b" not in out


def test_a_terminal_gets_a_table(capsys, monkeypatch):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    doctor.show([*FINE, dataclasses.replace(BROKEN, found="no [EGL]")])
    out = capsys.readouterr().out
    assert "\x1b" in out
    assert "no [EGL]" in out, "brackets are text, not markup"


def test_a_check_that_breaks_is_a_finding(monkeypatch):
    def explode() -> Finding:
        raise OSError("libfoo.so:\n cannot open")

    monkeypatch.setattr(doctor, "video", explode)
    (finding,) = [item for item in doctor.examine(Path()) if item.name == "video"]
    assert (finding.status, finding.found) == ("fail", "OSError: libfoo.so: cannot open")


@pytest.mark.parametrize(("version", "status"), [((3, 10, 9), "fail"), ((3, 11, 0), "ok"), ((3, 14, 1), "ok")])
def test_python(version: tuple[int, ...], status: str):
    assert doctor.python(version).status == status


def test_packages_are_held_against_their_ranges():
    assert doctor.package(Requirement("numpy>=1")).status == "ok"
    old = doctor.package(Requirement("numpy<1"))
    assert (old.status, old.remedy) == ("fail", 'pip install "numpy<1"')
    absent = doctor.package(Requirement("surely-not-installed>=2"))
    assert (absent.found, absent.remedy) == ("not installed", 'pip install "surely-not-installed>=2"')


def test_a_gpu_that_torch_cannot_see_is_pointed_out(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "GPU_FILES", ())
    assert doctor.device().status == "ok"
    monkeypatch.setattr(doctor, "GPU_FILES", (str(tmp_path),))
    monkeypatch.setattr(torch.version, "cuda", None)
    blind = doctor.device()
    assert blind.status == "warn"
    assert "built for CPU only" in blind.found
    assert "torch<2.14,>=2.10" in blind.remedy
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "driver" in doctor.device().remedy


def test_a_gpu_is_described(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    gpu = SimpleNamespace(name="H200", total_memory=150e9, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: gpu)
    assert doctor.device().found == "H200, 150 GB, compute 9.0 and 1 more"


def test_no_opengl_names_the_one_line(monkeypatch):
    def fail() -> None:
        raise opengl.RenderingUnavailable(f"rendering fails (no libEGL); remedy: {opengl.REMEDY}")

    monkeypatch.setattr(opengl, "probe", fail)
    finding = doctor.rendering()
    assert finding == Finding("rendering", "fail", "rendering fails (no libEGL)", opengl.REMEDY)
    assert finding.remedy.startswith("apt-get install -y ")


@pytest.mark.parametrize(("free", "status"), [(0.5e9, "fail"), (2e9, "warn"), (7e9, "warn"), (90e9, "ok")])
def test_disk(monkeypatch, tmp_path, free: float, status: str):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free, total=free))
    assert doctor.disk(tmp_path / "not" / "yet").status == status
    assert str(tmp_path) in doctor.disk(tmp_path).found
    assert ("a fifth of what is free" in doctor.disk(tmp_path).remedy) == (status != "ok")


def test_what_the_doctor_lets_pass_the_demo_does_too():
    needed = demo.frame_bytes(demo.recipe(False), demo.EPISODES)
    assert 0.9 * doctor.DISK_WARN_GB < needed / DISK_SHARE / 1e9 <= doctor.DISK_WARN_GB


def test_a_directory_that_cannot_be_written(monkeypatch, tmp_path):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert doctor.disk(tmp_path).status == "fail"


@pytest.mark.parametrize(("total", "status"), [(64e6, "warn"), (1e9, "ok")])
def test_shared_memory(monkeypatch, tmp_path, total: float, status: str):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=total))
    assert doctor.shared_memory(tmp_path).status == status
    assert doctor.shared_memory(tmp_path / "none").status == "ok"


@pytest.mark.parametrize(("available", "status"), [(1e9, "fail"), (3e9, "warn"), (9e9, "ok"), (None, "ok")])
def test_memory(available: float | None, status: str):
    assert doctor.memory(available).status == status


@pytest.mark.parametrize(("limit", "used", "expected"), [("max", "0", 8e9), ("6000000000", "1000000000", 5e9), ("1000", "2000", 0.0)])
def test_memory_of_a_container(tmp_path, limit: str, used: str, expected: float):
    (tmp_path / "proc").mkdir()
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: 16000000 kB\nMemAvailable: {8e9 / 1024:.0f} kB\n")
    (tmp_path / "sys/fs/cgroup/memory.max").write_text(limit)
    (tmp_path / "sys/fs/cgroup/memory.current").write_text(used)
    assert doctor.available_memory(tmp_path) == pytest.approx(expected)


def test_memory_of_a_system_that_does_not_say(tmp_path):
    assert doctor.available_memory(tmp_path) is None


@pytest.mark.parametrize(("count", "status"), [(1, "warn"), (2, "ok")])
def test_cores(monkeypatch, count: int, status: str):
    monkeypatch.setattr("deftly.sim.processes.usable_cores", lambda: count)
    assert doctor.cores().status == status
