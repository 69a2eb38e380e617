"""A verdict, and which one a reader sees first: causes before what follows from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["fault", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("fault", "warning", "note")

# From what is wrong with the data, over the model and the rate, to what one only sees. A cause is worth more than the symptoms that it
# brings along: the order decides within a severity, and a symptom becomes a note where a cause explains it (`EXPLAINS`).
ORDER = (
    "stopped", "non-finite", "leaking-split", "label-shift", "schedule-at-zero", "learning-rate-too-high", "lost-updates",
    "gradient-underflow", "loss-scale", "frozen-module", "no-update", "dead-units", "exploding-gradients", "exploding-weights",
    "vanishing-gradients", "learning-rate-too-low", "spikes", "gradient-noise", "always-clipped", "language-ignored",
    "unlearnt-dimension", "unlearnt-horizon", "unlearnt-task", "dominated-loss",
    "duplicate-data", "constant-dimension", "outliers", "diverged", "oscillation", "nothing-learnt", "overfitting", "validation-too-small",
    "no-validation", "data-bound", "regularised", "update-ratio", "slow-average", "overflows", "frozen-by-choice", "too-short",
)  # fmt: skip

MOST_LISTED = 4  # parts of which one verdict says the same; the others are counted

EXPLAINS = {
    "frozen-module": ("nothing-learnt", "learning-rate-too-low", "language-ignored"),
    "schedule-at-zero": ("nothing-learnt", "learning-rate-too-low", "no-update"),
    "lost-updates": ("no-update", "learning-rate-too-low", "nothing-learnt", "language-ignored", "unlearnt-dimension", "unlearnt-task"),
    "gradient-underflow": (
        "frozen-module", "no-update", "vanishing-gradients", "nothing-learnt", "learning-rate-too-low", "language-ignored", "loss-scale",
    ),
    "non-finite": ("loss-scale",),
    "gradient-noise": ("oscillation",),
    "dead-units": ("nothing-learnt", "vanishing-gradients", "language-ignored", "frozen-module", "learning-rate-too-low"),
    "exploding-gradients": ("always-clipped", "vanishing-gradients", "nothing-learnt", "language-ignored"),
    "vanishing-gradients": ("nothing-learnt", "language-ignored", "learning-rate-too-low"),
    "learning-rate-too-high": (
        "diverged", "oscillation", "nothing-learnt", "spikes", "exploding-weights", "language-ignored", "dead-units", "frozen-module",
        "vanishing-gradients", "exploding-gradients", "unlearnt-dimension", "unlearnt-task", "unlearnt-horizon",
    ),
    "learning-rate-too-low": ("nothing-learnt", "language-ignored"),
    "always-clipped": ("nothing-learnt",),
    "nothing-learnt": ("language-ignored",),
    "unlearnt-dimension": ("dominated-loss",),
    "language-ignored": ("unlearnt-task",),
    "leaking-split": ("duplicate-data",),
    "spikes": ("oscillation",),
    "label-shift": ("nothing-learnt",),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """`fault`: the run is not worth its result as it is; `warning`: look at it; `note`: good to know."""

    code: str
    severity: Severity
    what: str
    evidence: str
    remedy: str

    @property
    def rank(self) -> tuple[int, int]:
        return SEVERITIES.index(self.severity), ORDER.index(self.code)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def ranked(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """The worst first; what a fault or a warning explains becomes a note that names it, as mending that comes first."""
    found = gathered(verdicts)
    worst = {code: min(one.rank[0] for one in found if one.code == code) for code in {one.code for one in found}}
    explained = {
        symptom: cause
        for cause in sorted(worst, key=ORDER.index, reverse=True)
        if worst[cause] < SEVERITIES.index("note")
        for symptom in EXPLAINS.get(cause, ())
    }
    # What is explained by something that is itself explained is explained all the more: it follows from where that comes from.
    return sorted((_explained(one, _root(one.code, explained)) for one in found), key=lambda one: one.rank)


def _root(code: str, explained: dict[str, str]) -> str | None:
    """The cause that nothing else explains; None for a verdict that has none."""
    passed = {code}
    while explained.get(code) is not None and explained[code] not in passed:
        code = explained[code]
        passed.add(code)
    return code if len(passed) > 1 else None


def gathered(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """One verdict where several say the same of other parts: thirty modules without a gradient are one thing to mend, and one row."""
    alike: dict[tuple[str, str, str], list[Verdict]] = {}
    for one in verdicts:
        alike.setdefault((one.code, one.severity, one.remedy), []).append(one)
    return [first if not others else _together(first, others) for first, *others in alike.values()]


def _together(first: Verdict, others: list[Verdict]) -> Verdict:
    listed = [f"{one.what}: {one.evidence}" for one in others[: MOST_LISTED - 1]]
    more = [f"and {len(others) - len(listed)} more"] if len(others) > len(listed) else []
    what = f"{first.what} (and {len(others)} more)"
    return Verdict(**{**first.to_dict(), "what": what, "evidence": "; ".join([first.evidence, *listed, *more])})


def _explained(verdict: Verdict, cause: str | None) -> Verdict:
    if cause is None or verdict.severity == "note":
        return verdict
    evidence, remedy = f"{verdict.evidence} (follows from {cause})", f"mend {cause} first"
    return Verdict(**{**verdict.to_dict(), "severity": "note", "evidence": evidence, "remedy": remedy})
