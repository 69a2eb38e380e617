"""Progress: plain lines where there is no terminal, a bar where there is one, nothing on stdout."""

from __future__ import annotations

import pytest

from deftly import progress
from deftly.progress import Progress


def test_plain_lines_are_few_and_end_with_the_total(capsys, monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_INTERVAL_S", 1e9)
    with Progress("generate", 3, "episodes") as bar:
        for _ in range(3):
            bar.advance(note="512 frames/s")
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("generate: 3/3 episodes, 0 s, 0 s left")
    assert line.endswith("512 frames/s")


def test_a_line_appears_after_each_interval(capsys, monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_INTERVAL_S", 0.0)
    with Progress("train", 4, "steps") as bar:
        bar.advance(2, note="loss 1.0")
        bar.advance(2)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["2/4", "4/4", "4/4"]
    assert all(line.endswith("loss 1.0") for line in lines), "a note stays until the next one"


def test_nothing_done_has_no_estimate(capsys):
    with Progress("train", 4, "steps"):
        pass
    assert "0/4 steps" in capsys.readouterr().err


def test_an_error_is_not_followed_by_a_summary(capsys):
    with pytest.raises(KeyError), Progress("train", 4, "steps"):
        raise KeyError
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    with Progress("generate", 2, "episodes") as bar:
        assert bar.bar is not None
        bar.advance(2, note="fast")
    out, err = capsys.readouterr()
    assert out == ""
    assert "generate" in err
    assert "2/2" in err


def test_a_title_and_a_note_are_text_and_not_markup(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    with Progress("pull [/b]", 2, "files [x]") as bar:
        bar.advance(note="a[/red].parquet")
        bar.bar.refresh()
    err = capsys.readouterr().err
    for text in ("pull [/b]", "files [x]", "a[/red].parquet"):
        assert text in err
