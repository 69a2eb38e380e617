"""Killing a process loses nothing that was written, only a power cut would: no test here needs fsync, and a busy disk is slow at it."""

import os

import pytest


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
