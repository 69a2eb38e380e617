"""What a person sees: a panel on a terminal, plain lines elsewhere, nothing on other ranks."""

import io
import math
import sys

import pytest
from rich.console import Console

from deftly.training.display import Display, duration, sparkline


def advanced(display):
    with display:
        display.begin(100, 800)
        display.say("resuming [bold]here[/bold]")
        for step in range(101, 111):
            display.shown = -1e9  # as if the last look was long ago
            display.update(step, 8 * step, 0.5)
        display.logged(0.5, 1e-3, {"data": 1.0, "forward_backward": 3.0, "other": 0.0})
        display.validated(0.4, 0.3, 50)
    return display


def test_on_a_terminal_it_is_a_panel():
    out = io.StringIO()
    display = advanced(Display("demo", 200, console=Console(file=out, force_terminal=True, width=120)))
    text = out.getvalue()
    parts = ("demo", "110/200", "loss 0.5", "lr 1.0e-03", "steps/s", "samples/s", "left")
    for part in (*parts, "validation 0.4, best 0.3 at step 50"):
        assert part in text
    assert "data 25%  forward+backward 75%" in text
    assert "resuming [bold]here[/bold]" in text
    assert display.step == 110


def test_elsewhere_it_is_plain_lines(capsys):
    advanced(Display("demo", 200, console=Console(file=io.StringIO())))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "resuming [bold]here[/bold]"
    assert lines[1].startswith("demo: 101/200  loss 0.5")
    assert "validation 0.4, best 0.3 at step 50" in lines[-1]
    assert not any("\x1b" in line for line in lines)


def test_other_ranks_say_nothing(capsys):
    advanced(Display("demo", 200, visible=False, console=Console(file=io.StringIO(), force_terminal=True)))
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_rates_are_of_this_process_alone(monkeypatch):
    now = 10.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    display = Display("demo", 200, visible=False)
    display.begin(100, 800)
    now = 15.0
    display.update(150, 1200, math.nan)
    assert display.speed() == (10.0, 80.0, 5.0)


def test_the_curve_has_one_line():
    assert sparkline([]) == ""
    assert sparkline([1.0]) == "▁"
    assert sparkline([float(value) for value in range(8)]) == "▁▂▃▄▅▆▇█"
    assert len(sparkline([float(value) for value in range(1000)])) == 32


@pytest.mark.parametrize(("seconds", "text"), [(9.4, "9 s"), (75, "1 m 15 s"), (3725, "1 h 02 m"), (math.nan, "?")])
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize("name", ["a[/b]", "act [wide]", "\x1b]0;title\x07"])
def test_a_title_is_text_and_not_markup(name, capsys):
    out = io.StringIO()
    advanced(Display(name, 200, console=Console(file=out, force_terminal=True, width=120)))
    shown = "".join(character if character.isprintable() else "?" for character in name)
    assert f" {shown} " in out.getvalue()
    assert "]0;title\x07" not in out.getvalue()
    advanced(Display(name, 200, console=Console(file=io.StringIO())))
    assert f"{shown}: 101/200" in capsys.readouterr().err


def test_a_line_that_is_said_is_no_order_to_the_terminal(capsys):
    out = io.StringIO()
    for console in (Console(file=out, force_terminal=True), Console(file=io.StringIO())):
        with Display("demo", 200, console=console) as display:
            display.say("one \x1b[31mtwo\nthree")
    assert "one ?[31mtwo" in out.getvalue()
    assert capsys.readouterr().err == "one ?[31mtwo\nthree\n"


def test_a_panel_that_cannot_be_drawn_hides_no_error_and_gives_stderr_back(monkeypatch):
    def broken(self):
        raise RuntimeError("the panel")

    monkeypatch.setattr(Display, "panel", broken)
    before = sys.stderr
    console = Console(file=io.StringIO(), force_terminal=True)
    with pytest.raises(ValueError, match="what ended the run"), Display("demo", 200, console=console):
        raise ValueError("what ended the run")
    assert sys.stderr is before
    with pytest.raises(RuntimeError, match="the panel"), Display("demo", 200, console=console):
        pass
    assert sys.stderr is before
