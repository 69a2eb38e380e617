"""Killing a process loses nothing that was written, only a power cut would: no test here needs fsync, and a busy disk is slow at it."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def disk() -> Iterator[Path]:
    """A place in memory: thousands of small files are written and read."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(prefix="deftly-crash-", dir=memory if memory.is_dir() else None))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
