"""A policy, a head and an objective in a file of the user's own: trained, resumed, repeated and loaded; and no file is ever run but the one
that the user names."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

import deftly
from deftly import storage
from deftly.cli import evaluate
from deftly.cli.train import find_run, main
from deftly.own_code import classes_of, narrowed, run_file
from deftly.recipes import RECIPES
from deftly.run import Run
from deftly.types import DataError, UsageError
from evaluation.small_run import small_run
from guards import guards
from small_data import write_dataset

MINE = """
from __future__ import annotations

from typing import Literal

import pydantic
import torch
from torch import nn

from deftly.config import Config
from deftly.contract import Contract
from deftly.models.heads import RegressionConfig, RegressionHead
from deftly.models.policy import PolicyConfig, VLAPolicy
from deftly.objectives.imitation import Imitation
from deftly.recipes.imitate import imitate
from deftly.run import Run
from deftly.types import Policy, Term
from helper import WIDTH


class MyHeadConfig(RegressionConfig):
    kind: Literal["scaled"] = "scaled"
    factor: float = 2.0

    def build(self, *, features: int, chunk: int, action_dim: int) -> MyHead:
        return MyHead(self, features, chunk, action_dim)


class MyHead(RegressionHead):
    def sample(self, pooled, key):
        return 2.0 * super().sample(pooled, key)


class MyPolicyConfig(PolicyConfig):
    kind: Literal["mine"] = "mine"
    extra: int = pydantic.Field(default=3, ge=1)

    def build(self, contract: Contract, vocabulary: int) -> MyPolicy:
        return MyPolicy(self, contract, vocabulary)


class MyPolicy(VLAPolicy):
    def __init__(self, config, contract, vocabulary):
        super().__init__(config, contract, vocabulary)
        self.more = nn.Parameter(torch.ones(config.extra))


class MyObjectiveConfig(Config):
    kind: Literal["priced"] = "priced"
    price: float = 0.1

    def build(self, policy: Policy) -> MyObjective:
        return MyObjective(policy, self.price)


class MyObjective(Imitation):
    def __init__(self, policy, price):
        super().__init__(policy)
        self.price, self.scale = price, nn.Parameter(torch.ones(()))

    def counts(self, batch):
        return {**super().counts(batch), "size": batch.weight.sum()}

    def forward(self, batch, clock, counts):
        size = (self.policy.more * self.scale).square().sum() * batch.weight
        return {**super().forward(batch, clock, counts), "size": Term(size.sum() / counts["size"], weight=self.price)}


def recipe() -> Run:
    return imitate(True).replace(
        policy=MyPolicyConfig(extra=2, width=WIDTH, depth=1, head=MyHeadConfig()), objective=MyObjectiveConfig()
    )
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a user has it: data, my.py with a helper beside it, and a run of two steps."""
    root = tmp_path_factory.mktemp("home")
    (root / "my.py").write_text(MINE)
    (root / "helper.py").write_text("WIDTH = 16\n")
    write_dataset(root / "data", lengths=(6, 7, 6))
    main([f"{root / 'my.py'}:recipe", *flags(root, 2)])
    return root


def flags(root: Path, steps: int, out: str = "run") -> list[str]:
    fields = {"data.path": root / "data", "data.validation-fraction": 0.3, "data.image-size": 24, "training.checkpoint-every": 1,
              "training.steps": steps, "policy.extra": 4, "policy.head.factor": 3.0, "objective.price": 0.2}  # fmt: skip
    return ["--out", str(root / out), "--device", "cpu", *(word for name, value in fields.items() for word in (f"--{name}", str(value)))]


def test_it_is_trained_resumed_repeated_and_loaded(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    my, run = home / "my.py", Path(shutil.copytree(home / "run", tmp_path / "run"))
    written = storage.read_json(run / "run.json")
    assert (written["policy"]["kind"], written["policy"]["extra"], written["policy"]["head"]) == (
        "mine", 4, {"kind": "scaled", "loss": "l1", "zero_start": False, "factor": 3.0},
    )  # fmt: skip
    assert written["objective"] == {"kind": "priced", "price": 0.2}
    main([str(run), "--code", str(my), "--resume", "--device", "cpu", "--training.steps", "3", "--allow-change", "training.steps"])
    assert "resuming at step 2 of 3" in capsys.readouterr().err
    main([f"{my}:recipe", *flags(home, 3)[4:], "--out", str(run), "--device", "cpu", "--resume"])
    assert "resuming at step 3 of 3" in capsys.readouterr().err
    agent = deftly.load(run, own=str(my))
    assert type(agent.policy).__name__ == "MyPolicy"
    again = deftly.load(run, own=classes_of(my))
    assert agent.policy.state_dict().keys() == again.policy.state_dict().keys() >= {"more"}
    with pytest.raises(UsageError, match="has no world to be judged in"):  # so it was read
        evaluate.main([str(run), "--code", str(my)])


def test_a_run_that_goes_on_with_other_code_says_so(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, elsewhere = Path(shutil.copytree(home / "run", tmp_path / "run")), tmp_path / "renamed.py"
    shutil.copy(home / "my.py", elsewhere)
    again = [f"{elsewhere}:recipe", *flags(home, 2)[2:], "--out", str(run), "--resume"]
    main(again)
    assert "WARNING" not in capsys.readouterr().err
    with open(elsewhere, "a") as file:
        file.write("# and now it does something else\n")
    main(again)
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("WARNING: "))
    for name in ("MyPolicyConfig", "MyHeadConfig", "MyObjectiveConfig"):
        assert f"code.{name}: expected " in line
    assert line.endswith("the run goes on, but not bit for bit as it would have")


@pytest.mark.slow
def test_it_is_judged_in_closed_loop_by_workers_that_run_the_file_too(home: Path, tmp_path: Path) -> None:
    mine = next(one for one in classes_of(home / "my.py") if one.__name__ == "MyPolicyConfig")
    small_run(tmp_path / "run", policy=mine.parse({"kind": "mine", "width": 16, "depth": 1}, "test"))
    flags = ["--episodes", "2", "--videos", "0", "--baselines", "no_op", "--workers", "2"]
    evaluate.main([str(tmp_path / "run"), "--code", str(home / "my.py"), *flags])
    assert storage.read_json(tmp_path / "run" / "evaluation" / "final" / "summary.json")["episodes"] == 2
    (tmp_path / "other").mkdir()
    for path in home.glob("*.py"):
        shutil.copy(path, tmp_path / "other")
    with open(tmp_path / "other" / "my.py", "a") as file:
        file.write("# and now it does something else\n")
    with pytest.raises(UsageError, match=r"holds another evaluation: .*--code my\.py"):
        evaluate.main([str(tmp_path / "run"), "--code", str(tmp_path / "other" / "my.py"), *flags])


def own_modules() -> set[str]:
    return {name for name in sys.modules if name.startswith("deftly_own_")}


@guards("own_code.known", "models.policies.own")
def test_nothing_is_run_that_the_user_did_not_name(home: Path, tmp_path: Path) -> None:
    run, before = Path(shutil.copytree(home / "run", tmp_path / "run")), own_modules()
    (run / "my.py").write_text("raise SystemExit('hatched')")
    with pytest.raises(DataError, match=r"no policy of kind 'mine'; there are film and act; if it is of your own code.*--code my\.py"):
        deftly.load(run)
    for call in (lambda: evaluate.main([str(run)]), lambda: find_run(str(run), False)):
        with pytest.raises(UsageError, match=r"there is no kind 'mine' \(known: act, film\); if it is of your own code, name the file"):
            call()
    values = storage.read_json(run / "run.json")
    for kind in ("os.system", "my.MyPolicyConfig", "priced", 7, None, ["mine"]):  # the objective's kind is no policy's
        (tmp_path / "run.json").write_text(json.dumps({**values, "policy": {**values["policy"], "kind": kind}}))
        with pytest.raises(UsageError):
            find_run(str(tmp_path / "run.json"), False, home / "my.py")
    assert own_modules() - before <= {"deftly_own_my"}


@guards("own_code.kind", "own_code.build")
def test_what_could_not_be_read_again_is_refused(tmp_path: Path) -> None:
    imports = ("typing import Literal", "deftly.models.policy import PolicyConfig", "deftly.recipes.imitate import imitate")
    head = "".join(f"from {line}\n" for line in imports)
    for body, message in (
        ("class Mine(PolicyConfig):\n    extra: int = 3\n", "needs a kind of its own"),
        (
            'class Mine(PolicyConfig):\n    kind: Literal["m"] = "m"\n    def build(self, contract): ...\n',
            r"build takes \(contract\), where",
        ),
    ):
        (tmp_path / "bad.py").write_text(f"{head}{body}\ndef recipe():\n    return imitate(True).replace(policy=Mine())\n")
        with pytest.raises(UsageError, match=message):
            find_run(f"{tmp_path / 'bad.py'}:recipe", False)
    with pytest.raises(UsageError, match="no such file"):
        run_file(tmp_path / "none.py")


@guards("own_code.twice")
def test_two_of_one_kind_are_refused_before_a_run_is_read_back_as_the_other(tmp_path: Path) -> None:
    imports = ("typing import Literal", "deftly.models.policy import PolicyConfig", "deftly.recipes.imitate import imitate")
    head = "".join(f"from {line}\n" for line in imports)
    body = 'class First(PolicyConfig):\n    kind: Literal["m"] = "m"\n\nclass Second(First):\n    extra: int = 1\n'
    (tmp_path / "twice.py").write_text(f"{head}{body}\ndef recipe():\n    return imitate(True).replace(policy=Second())\n")
    for work in (lambda: find_run(f"{tmp_path / 'twice.py'}:recipe", False), lambda: classes_of(tmp_path / "twice.py")):
        with pytest.raises(UsageError, match="First and Second are both of kind 'm'; give each its own"):
            work()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "import os\nimport not_there\n",
            r"bad\.py:2: ModuleNotFoundError: No module named 'not_there'; mend the file",
        ),
        ("x = 1\ny = (\n", r"bad\.py:2: SyntaxError: "),
        ("def f():\n    raise KeyError('x')\n\nf()\n", r"bad\.py:2: KeyError: 'x'"),
    ],
)
def test_a_mistake_in_the_users_file_is_told_as_one(tmp_path: Path, body: str, message: str) -> None:
    (tmp_path / "bad.py").write_text(body)
    with pytest.raises(UsageError, match=message):
        find_run(f"{tmp_path / 'bad.py'}:recipe", False)
    assert "deftly_own_bad" not in sys.modules


def test_a_recipe_that_fails_is_told_as_the_users(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(
        "from deftly.types import UsageError\n\n\ndef broken():\n    return 1 / 0\n\n\ndef refused():\n    raise UsageError('so it is')\n"
    )
    with pytest.raises(UsageError, match=r"bad\.py:5: ZeroDivisionError: division by zero; mend the file"):
        find_run(f"{tmp_path / 'bad.py'}:broken", False)
    with pytest.raises(UsageError, match=r"^so it is$"):
        find_run(f"{tmp_path / 'bad.py'}:refused", False)


@guards("cli.train.code")
def test_code_that_would_not_be_looked_at_is_refused(tmp_path: Path) -> None:
    for name in ("imitate", "my.py:recipe"):
        with pytest.raises(UsageError, match=f"{name} needs none: leave it out"):
            find_run(name, False, tmp_path / "nowhere.py")


def test_ours_stay_as_they_are() -> None:
    for name, recipe in RECIPES.items():
        run = recipe(True)
        assert Run.parse(run.to_dict(), name) == run
        assert narrowed(run) is run
