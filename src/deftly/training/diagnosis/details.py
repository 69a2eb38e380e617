"""What the parts of the held-out loss say: which dimension, step of the chunk or task is not learnt, and if the whole can be trusted.

"Not learnt" is judged against the same predictions beside the actions of other samples (`training/detail.py`): the gain is the share of
that loss that the right observation saves. It has no unit, and is the same measure for every objective.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from deftly.training.diagnosis.record import Record, middle, number, share
from deftly.training.diagnosis.verdicts import Verdict

NOT_LEARNT = 0.15  # gain: what is left of chance with some dozens of samples
LEARNT = 0.4  # median gain of the others: only beside what is learnt is something not learnt
STILL = 0.1  # of the usual spread: a dimension that hardly moves has nothing to be learnt
DOMINATES, FEWEST_PARTS = 0.5, 4  # of the loss, of so many dimensions
DOMINATES_TIMES = 5.0  # its fair share
STANDARD_ERROR = 0.25  # of the loss: two runs must then differ by half of it before one can be called better
FEWEST_EPISODES = 3  # of which a spread can be estimated
DEAF = 0.02  # of the loss: how much worse it must get when the policy is told something else
FEWEST_TASKS = 2


def detail_verdicts(record: Record) -> Iterator[Verdict]:
    lines = record.of("detail")
    if not lines:
        return
    line = lines[-1]
    name, term = max(line["terms"].items(), key=lambda item: len(item[1]["dimension"]), default=("", None))
    yield from _validation(line, term)
    if term is not None:
        yield from _unlearnt(record, term)
        yield from _dominated(record, name, term)
        yield from _language(record, term)


def _unlearnt(record: Record, term: dict[str, Any]) -> Iterator[Verdict]:
    if "mismatched" not in term:
        return
    other = term["mismatched"]
    usual = middle(term["spread"])
    moving = [index for index, spread in enumerate(term["spread"]) if spread > STILL * usual]
    gain: Callable[[str, Any], float | None] = lambda part, key: _gain(term[part], other[part], key)  # noqa: E731
    dimensions = {dimension(record, index): gain("dimension", index) for index in moving}
    horizon = {f"step {index + 1} of the chunk": gain("horizon", index) for index in range(len(term["horizon"]))}
    tasks = {f"task {task}": gain("task", task) for task in term["task"]}
    for code, gains, remedy in (
        ("unlearnt-dimension", dimensions, "look at this dimension with `deftly data show`: does it depend on what the policy sees?"),
        ("unlearnt-horizon", horizon, "are actions, padding and rate as declared? a shorter data.window.chunk leaves these steps out"),
        ("unlearnt-task", tasks, "watch its episodes (`deftly data preview`): are labels and instruction those of this task?"),
    ):
        for name, value in gains.items():
            rest = middle([one for key, one in gains.items() if key != name and one is not None])
            if value is not None and value < NOT_LEARNT and rest > LEARNT:
                yield Verdict(
                    code=code,
                    severity="warning",
                    what=f"{name} is not learnt, while the rest is",
                    evidence=f"the right observation saves {share(max(0.0, value))} of its loss, and {share(rest)} elsewhere",
                    remedy=remedy,
                )


def _gain(own: Any, other: Any, key: Any) -> float | None:
    """1 - loss / loss with the actions of others; None where there is no such pair."""
    if isinstance(own, dict) and (key not in own or key not in other):
        return None
    ours, theirs = own[key], other[key]
    return 1 - ours / theirs if ours is not None and theirs is not None and theirs > 0 else None


def _dominated(record: Record, name: str, term: dict[str, Any]) -> Iterator[Verdict]:
    losses = [loss or 0.0 for loss in term["dimension"]]
    total = sum(losses)
    if len(losses) < FEWEST_PARTS or total <= 0 or min(losses) < 0:
        return
    index = max(range(len(losses)), key=losses.__getitem__)
    part = losses[index] / total
    if part > DOMINATES and part * len(losses) > min(DOMINATES_TIMES, DOMINATES * len(losses)):
        yield Verdict(
            code="dominated-loss",
            severity="note",
            what=f"{dimension(record, index)} makes up most of the loss {name}",
            evidence=f"{share(part)} of it; its spread is {number(term['spread'][index])}, {number(middle(term['spread']))} is usual",
            remedy="check its normalisation (data.normalization), and whether it can be predicted at all",
        )


def _validation(line: dict[str, Any], term: dict[str, Any] | None) -> Iterator[Verdict]:
    error = term["standard_error"] if term is not None else None
    loss = middle([one for one in term["dimension"] if one is not None]) if term is not None else 0.0
    total = sum(one for one in term["dimension"] if one is not None) / max(1, len(term["dimension"])) if term is not None else 0.0
    level = max(abs(loss), abs(total))
    if line["episodes"] < FEWEST_EPISODES:
        evidence = f"{line['episodes']} episodes, {line['samples']} windows"
    elif error is not None and level and error > STANDARD_ERROR * level:
        evidence = f"the standard error over its {line['episodes']} episodes is {share(error / level)} of the loss"
    else:
        return
    yield Verdict(
        code="validation-too-small",
        severity="warning",
        what="too little is held out to tell one policy from another",
        evidence=evidence,
        remedy="raise data.validation_fraction, or train with folds",
    )


def _language(record: Record, term: dict[str, Any]) -> Iterator[Verdict]:
    """The term `language_alignment` of a validation is how much the loss rises under another instruction."""
    found = [line for line in record.of("validation") if line["terms"].get("language_alignment") is not None and line["loss"]]
    if not found or term["tasks"] < FEWEST_TASKS:
        return
    rise = found[-1]["terms"]["language_alignment"] / abs(found[-1]["loss"])
    if rise < DEAF:
        yield Verdict(
            code="language-ignored",
            severity="warning",
            what="the policy does not listen: another instruction makes no difference",
            evidence=f"the held-out loss rises by {share(max(0.0, rise))} when it is told something else ({term['tasks']} tasks)",
            remedy="where pictures give the task away there is nothing to listen to (`deftly data check` says so); else train for longer, "
            "or look at the text encoder's gradient",
        )


def dimension(record: Record, index: int) -> str:
    names = record.action_names
    return f"action dimension {names[index]}" if index < len(names) else f"action dimension {index}"
