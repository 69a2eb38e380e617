"""The page: complete with everything, sensible with little, safe with hostile text, the same every time."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deftly import storage
from deftly.evaluation import report
from deftly.evaluation.closed_loop import evaluate
from deftly.evaluation.report import gather, render, seconds, write_report
from deftly.types import DataError, UsageError
from evaluation.small_run import small_run
from evaluation.toy import ToyConfig, load_toy, save_toy
from guards import guards
from side_files import damaged, refusal

HOSTILE = "<script>alert('x')</script>"


class Tags(HTMLParser):
    """Every tag with its attributes; fails on tags that do not nest."""

    VOID = ("meta", "hr", "br", "img", "polyline")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))


def metrics(path: Path, steps: int = 200) -> None:
    parts = {"data": 0.1, "forward_backward": 0.8, "optimizer": 0.1}
    for step in range(10, steps + 1, 10):
        line = {"step": step, "kind": "train", "loss": 1 / step, "learning_rate": 1e-3, "samples": 8 * step, "skipped": 0}
        line["gradient_norm"] = 2.0 + step % 3
        storage.append_line(path, {**line, "time": {**parts, "elapsed": step}}, durable=False)
        if step % 50 == 0:
            terms = {"action": 1.1 / step, "action_accuracy": step / 400, "language_alignment": 0.37}
            line = {"step": step, "kind": "validation", "loss": 1.1 / step, "terms": terms, "time": {"elapsed": step}}
            storage.append_line(path, line, durable=False)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with everything in it; its figures are those of the toy."""
    directory = tmp_path_factory.mktemp("full") / "demo"
    small_run(directory)
    policy = save_toy(tmp_path_factory.mktemp("toy") / "policy")
    for name, seed, count in (("final", 0, 12), ("seed-7", 7, 5)):
        world = ToyConfig(difficulty=0.3)
        evaluate(policy, world, directory / "evaluation" / name, episodes=count, seed=seed, workers=0, videos=2, load=load_toy)
    metrics(directory / "metrics.jsonl")
    best = {"step": 200, "loss": 0.005}
    storage.write_json(directory / "summary.json", {"parameters": 351234, "precision": "bf16", "steps": 200, "best": best})
    environment = {"device": "cpu", "threads": 2, "precision": "bf16"}
    storage.write_json(directory / "checkpoints" / "step-00000001" / "trainer.json", {"environment": environment})
    errors = {"policy": {"l1_per_spread": 0.2}, "mean_action": {"l1_per_spread": 0.8}}
    storage.write_json(directory / "offline.json", errors)
    data = {"training_episodes": 570, "validation_episodes": 30, "frames": 24000, "hours": 0.67, "instructions": 160, "vocabulary": 30}
    storage.write_json(directory / "data.json", {**data, "hash": "abcdef" * 10})
    return directory


def test_a_full_page_shows_everything_and_loads_nothing(full: Path) -> None:
    path = write_report(full)
    assert path == full / "report.html"
    text = path.read_text()
    page = Tags(text)
    summary = storage.read_json(full / "evaluation" / "final" / "summary.json")
    headline = gather(full)["evaluation"]["text"]
    assert headline.startswith(f"{summary['successes']}/12 [")
    for words in (
        headline,
        "deaf",
        "blind",
        "random",
        "no-op",
        "missed grasp",
        "by colour",
        "learning rate <b>0.001</b>",
        "gradient norm <b>4</b>",
        "action accuracy <b>0.5</b>",
        "language alignment <b>0.37</b>",
        "forward + backward",
        "351 234",
    ):
        assert words in text
    for words in (
        "deftly_tabletop",
        "<dt>threads</dt><dd>2</dd>",
        "570 for training",
        "seed-7",
        "0.800",
        f"deftly evaluate {full}-again --episodes 12 --seed 0",
    ):
        assert words in text
    assert sum(tag == "video" for tag, _ in page.found) == 4
    assert all(attributes["src"].startswith("data:video/mp4;base64,") for tag, attributes in page.found if tag == "video")
    assert not [tag for tag, _ in page.found if tag in ("script", "link", "img", "iframe")]
    addresses = [value for _, attributes in page.found for name, value in attributes.items() if name in ("src", "href")]
    assert all(value is not None and value.startswith("data:") for value in addresses)
    assert "url(" not in text
    assert path.stat().st_size < 8 << 20


def test_no_rate_stands_without_its_episodes(full: Path) -> None:
    visible = re.sub(r"<style>.*?</style>|<[^>]*>", " ", render(gather(full)), flags=re.DOTALL)
    assert re.findall(r"\d\s*%", visible) == ["5 %"] * len(re.findall("95 % interval", visible))


def test_the_page_is_a_pure_function_of_the_files(full: Path, tmp_path: Path) -> None:
    assert write_report(full, tmp_path / "a.html").read_bytes() == write_report(full, tmp_path / "b.html").read_bytes()


def test_the_headline_may_be_another_evaluation(full: Path) -> None:
    assert gather(full, "seed-7")["evaluation"]["episodes"] == 5
    assert "--episodes 5 --seed 7" in render(gather(full, "seed-7"))
    with pytest.raises(UsageError, match="finished ones: final, seed-7"):
        gather(full, "seed-8")


def test_figures_come_from_the_rows(full: Path, tmp_path: Path) -> None:
    shutil.copytree(full, tmp_path / "run")
    storage.write_json(tmp_path / "run" / "evaluation" / "final" / "summary.json", {"successes": 12})
    assert gather(tmp_path / "run")["evaluation"] == gather(full)["evaluation"]


def test_a_run_without_anything_but_its_config(tmp_path: Path) -> None:
    storage.write_json(tmp_path / "run.json", {"name": "young"})
    text = write_report(tmp_path).read_text()
    Tags(text)
    assert "Not judged yet" in text
    assert "young" in text
    assert "How it learnt" not in text
    with pytest.raises(UsageError, match="run `deftly evaluate"):
        gather(tmp_path, "final")


def test_a_run_that_is_not_judged_yet(full: Path, tmp_path: Path) -> None:
    shutil.copytree(full, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation", "data.json"))
    text = render(gather(tmp_path / "run"))
    Tags(text)
    assert "Not judged yet" in text
    assert "How it learnt" in text


def test_an_offline_run_is_judged_by_its_held_out_error(full: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(full, run, ignore=shutil.ignore_patterns("evaluation"))
    storage.write_json(run / "run.json", {**storage.read_json(run / "run.json"), "world": None})
    text = render(gather(run))
    Tags(text)
    assert "Not judged yet" not in text
    assert text.count("Error on held-out demonstrations") == 1
    assert text.index("Error on held-out demonstrations") < text.index("How it learnt"), "it is the headline"
    (run / "offline.json").unlink()
    assert "no error on held-out demonstrations was measured" in render(gather(run))


def test_a_run_that_is_judged_elsewhere_says_how(full: Path, tmp_path: Path) -> None:
    shutil.copytree(full, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation"))
    assert f"<code>deftly evaluate {tmp_path / 'run'}</code>" in render(gather(tmp_path / "run"))


def test_every_session_and_why_it_ended_early(full: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(full, run, ignore=shutil.ignore_patterns("evaluation"))
    machine = {"cpu": "Toy 9000", "cores": 2, "memory_bytes": 2**33, "gpus": []}
    start = {
        "kind": "start",
        "step": 0,
        "machine": machine,
        "versions": {"deftly": "1"},
        "git": {"here": {"commit": "f" * 40, "dirty": True}},
    }
    for line in ({**start, "time": "t0"}, {**start, "time": "t1", "step": 7}, {"kind": "end", "time": "t2", "step": 9, "how": "finished"}):
        storage.append_line(run / "sessions.jsonl", line)
    storage.write_json(run / "summary.json", {**storage.read_json(run / "summary.json"), "stopped_early": "stopped early: <b>"})
    text = render(gather(run))
    for words in (
        "<dt>t0</dt><dd>from step 0, no end on record</dd>",
        "<dt>t1</dt><dd>steps 7 to 9, finished</dd>",
        "Toy 9000, 2 cores, 8 GiB",
        "ffffffffffff, with changes",
        "It stopped early: &lt;b&gt;",
    ):
        assert words in text


def test_a_stopped_evaluation_is_said(full: Path, tmp_path: Path) -> None:
    shutil.copytree(full, tmp_path / "run")
    path = tmp_path / "run" / "evaluation" / "final" / "episodes.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:17]))
    page = gather(tmp_path / "run")
    assert page["evaluation"]["name"] == "seed-7"
    assert "17 of 60 episodes are played" in render(page)


def test_a_success_at_reset_takes_the_headline(full: Path, tmp_path: Path) -> None:
    shutil.copytree(full, tmp_path / "run")
    path = tmp_path / "run" / "evaluation" / "final" / "episodes.jsonl"
    rows = list(storage.read_lines(path))
    path.write_text("".join(json.dumps({**row, "success_at_reset": row["episode"] == 3}) + "\n" for row in rows))
    text = render(gather(tmp_path / "run"))
    assert "no headline: 1 episodes" in text
    assert 'class="interval"' not in text


def test_text_from_files_is_escaped(full: Path, tmp_path: Path) -> None:
    shutil.copytree(full, tmp_path / "run")
    path = tmp_path / "run" / "evaluation" / "final" / "episodes.jsonl"
    rows = list(storage.read_lines(path))
    for row in rows:
        row.update(told=HOSTILE, labels={"skill": HOSTILE, "type": HOSTILE + row["labels"]["type"], "colour": HOSTILE})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = storage.read_json(tmp_path / "run" / "run.json")
    storage.write_json(tmp_path / "run" / "run.json", {**config, "name": HOSTILE})
    storage.write_json(tmp_path / "run" / "offline.json", {HOSTILE: {"l1_per_spread": 1.0}})
    text = render(gather(tmp_path / "run"))
    assert "<script" not in text
    assert not [tag for tag, _ in Tags(text).found if tag == "script"]
    assert text.count("&lt;script&gt;") >= 5
    assert "default-src 'none'" in text


def test_too_many_videos_are_left_out_and_said(full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = max(path.stat().st_size for path in (full / "evaluation" / "final" / "videos").iterdir())
    monkeypatch.setattr(report, "MAX_VIDEO_BYTES", size)
    page = gather(full)
    assert len(page["evaluation"]["videos"]) == 1
    assert "3 more did not fit" in render(page)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a run"):
        write_report(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        write_report(tmp_path)


@pytest.mark.parametrize(("value", "text"), [(3.04, "3.0 s"), (75, "1 min 15 s"), (7260, "2 h 01 min")])
def test_durations_are_spoken(value: float, text: str) -> None:
    assert seconds(value) == text


@pytest.mark.parametrize(("policy", "words"), [(0.6, "The policy beats every baseline"), (0.8, "The policy does not beat every baseline")])
def test_cross_validation_shows_every_fold_and_the_verdict(tmp_path: Path, policy: float, words: str) -> None:
    storage.write_json(tmp_path / "run.json", {"name": "bridge", "folds": 2})
    folds = [
        {"policy": policy - 0.05, "mean_action": 0.71, "repeat_last": 0.77},
        {"policy": policy + 0.05, "mean_action": 0.73, "repeat_last": 0.75},
    ]
    mean = {"policy": policy, "mean_action": 0.72, "repeat_last": 0.76}
    table = {"folds": folds, "mean": mean, "policy_beats_both_baselines": policy < 0.72, "unit": HOSTILE}
    storage.write_json(tmp_path / "folds.json", table)
    page = render(gather(tmp_path))
    tags = Tags(page)
    assert words in page
    assert f"its error is {policy:.3f}, beside mean action 0.720 and repeat last 0.760" in page
    rows = re.findall(r'<th scope="row">(.*?)</th>', page)
    assert rows == ["fold 0", "fold 1", "mean"]
    assert page.count("<td>") == 9
    assert f"<td>{policy - 0.05:.3f}</td>" in page
    assert "script" not in {name for name, _ in tags.found}
    assert "Not judged yet" not in page
    storage.write_json(tmp_path / "folds.json", {"folds": []})
    with pytest.raises(DataError, match="not a table of folds") as caught:
        gather(tmp_path)
    assert "\n" not in str(caught.value)


TRAIN = '{"kind": "train", "time": {}, "step": '


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("checkpoints/best", b"\xff\xfe"),
        pytest.param("checkpoints/best", b"step-\n00000001", marks=guards("evaluation.report.pointer")),
        ("summary.json", b"[]"),
        ("summary.json", b'{"steps": "x"}'),
        ("metrics.jsonl", (TRAIN + '5, "loss": "abc"}\n').encode()),
        ("metrics.jsonl", (TRAIN + 'NaN, "loss": 1}\n').encode()),
        ("metrics.jsonl", (TRAIN + "9" * 400 + ', "loss": 1}\n').encode()),
        ("run.json", b"[]"),
        ("data.json", b"{}"),
        ("offline.json", b"7"),
        ("sessions.jsonl", b'{"kind": "start", "machine": 7}\n'),
    ],
)
def test_a_damaged_side_file_is_named_in_one_line(full: Path, tmp_path: Path, file: str, content: bytes) -> None:
    run = Path(shutil.copytree(full, tmp_path / "run"))
    (run / file).write_bytes(content)
    with pytest.raises(DataError, match=file) as caught:
        write_report(run)
    assert "\n" not in str(caught.value)


@settings(max_examples=60)
@given(data=st.data())
def test_no_damage_is_an_internal_error(full: Path, data: st.DataObject) -> None:
    """One value of a good run is another: a page, or one line."""
    trainer = "checkpoints/step-00000001/trainer.json"
    names = ["run.json", "summary.json", "metrics.jsonl", "offline.json", "data.json", "checkpoints/best", trainer]
    names += ["evaluation/final/plan.json", "evaluation/final/episodes.jsonl"]
    file = data.draw(st.sampled_from([name for name in names if (full / name).is_file()]))
    with damaged(full / file, data):
        said = refusal(lambda: render(gather(full)))
    assert "\n" not in said
