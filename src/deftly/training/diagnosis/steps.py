"""What single steps say: those that were skipped, those that a run went back from, and the one that ended it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from deftly.training.diagnosis.curves import STEADY_SPIKES
from deftly.training.diagnosis.record import Line, Record, share
from deftly.training.diagnosis.verdicts import Verdict
from deftly.training.guard import NON_FINITE, SPIKE

MANY = 0.01  # of the steps: more cannot be called an accident


def step_verdicts(record: Record) -> Iterator[Verdict]:
    skipped = record.of("skipped")
    broken = [line for line in skipped if line.get("reason", NON_FINITE) == NON_FINITE]
    spikes = [line for line in skipped if line.get("reason") == SPIKE]
    backs = record.of("rollback")
    if record.failure is not None:
        yield Verdict(
            code="stopped",
            severity="fault",
            what="the run gave up",
            evidence=f"step {record.failure['step']}: {record.failure['bad_steps_in_a_row']} bad steps in a row after "
            f"{len(record.failure['rollbacks'])} rollbacks",
            remedy=str(record.failure["remedy"]),
        )
    if broken:
        yield _not_finite(record, broken, len(backs))
    recurring = record.of("recurring")
    if spikes or recurring:
        rate = len(spikes) / max(1, record.steps)
        single = [f"{len(spikes)} of {record.steps} steps skipped ({at(spikes)})"] if spikes else []
        again = [f"such losses came again and again, and are learnt from since step {line['step']}" for line in recurring[:1]]
        yield Verdict(
            code="spikes",
            severity="warning" if recurring or rate > STEADY_SPIKES else "note",
            what="single steps had a loss far above the usual",
            evidence="; ".join([*single, *again, episodes(spikes + recurring)]),
            remedy="look at these episodes (`deftly data show`); lower the learning rate if they are sound",
        )


def _not_finite(record: Record, broken: list[Line], rollbacks: int) -> Verdict:
    origins = [line["origin"] for line in broken if line.get("origin")]
    inputs = Counter(name for origin in origins for name in origin["inputs"])
    modules = Counter(origin["module"] for origin in origins if origin["module"])
    parameters = Counter(origin["parameter"] for origin in origins if origin["parameter"])
    named = sorted({episode for origin in origins for episode in origin["episodes"]})
    where = [f"{', '.join(inputs)} of the batch"] if inputs else []
    where += [f"first in {modules.most_common(1)[0][0]}"] if modules else []
    where += [f"gradient of {parameters.most_common(1)[0][0]}"] if parameters and not modules else []
    where += [f"samples of episodes {', '.join(map(str, named[:8]))}"] if named else [episodes(broken)]
    often = len(broken) > MANY * record.steps
    return Verdict(
        code="non-finite",
        severity="fault" if inputs or rollbacks or often else "warning",
        what="the data holds numbers that are not finite" if inputs else "steps were not finite",
        evidence=f"{len(broken)} of {record.steps} steps skipped ({at(broken)}), {rollbacks} rollbacks; {'; '.join(where)}",
        remedy="run `deftly data check` on the dataset and leave these episodes out"
        if inputs
        else "lower the learning rate, or train in fp32; divisions, logarithms and square roots of that module need a floor",
    )


def at(lines: list[Line], most: int = 5) -> str:
    steps = [str(line["step"]) for line in lines]
    return f"step{'s' * (len(steps) > 1)} {', '.join(steps[:most])}" + (f" and {len(steps) - most} more" if len(steps) > most else "")


def episodes(lines: list[Line]) -> str:
    """Those that most of the lines have in common."""
    counts = Counter(word for line in lines for word in set(str(line.get("episodes", "")).split(" and ")[0].split(", ")) if word)
    if not counts:
        return "of unknown episodes"
    common = sorted((word for word, count in counts.items() if count == counts.most_common(1)[0][1]), key=lambda word: (len(word), word))
    return f"episodes {', '.join(common[:6])} in {share(counts.most_common(1)[0][1] / len(lines))} of them"
