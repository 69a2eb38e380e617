"""Which parameters learn, from which step on, and how fast: one list of (regular expression, schedule or none).

```
groups:   parameters             schedule          rate_factor  start_fraction
          policy\\.vision\\..*     that of the run           0.1             0.5    unfrozen half-way, with a tenth of the rate
          policy\\.text\\..*       none                                             frozen for the whole run
          .*                     that of the run             1               0    all others
```
Every trainable parameter belongs to exactly one entry. A parameter that does not learn yet, or never does, has no gradient, no part in the
gradient's norm, no moments, and no weight decay moves it. A module none of whose parameters learns is in evaluation mode until one does:
its dropout is off and its running statistics stay.

Which groups learn is a function of the step (`Groups.learning`): there is nothing to save, and a run that is resumed on the other side of
an unfreezing is where it would have been.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import pydantic
from torch import nn

from deftly.config import Config
from deftly.training.names import check_pattern, matching
from deftly.training.optim import Part, parameter_groups
from deftly.training.schedule import ScheduleConfig
from deftly.types import Clock, UsageError

REST = ".*"
BLOCK = re.compile(r"(?P<stack>(?:.*?\.)??(?:layers?|blocks?|resblocks|stages|h))\.(?P<number>\d+)\..*")
FIELD = "training.groups"


class Group(Config):
    """Parameters that learn in the same way."""

    parameters: str
    """A regular expression that matches whole parameter names of the objective; `.*` stands for all that no other entry matches."""
    schedule: ScheduleConfig | Literal["training"] | None = "training"
    """`training`: that of the run; null: frozen, for the whole run."""
    rate_factor: float = pydantic.Field(default=1.0, gt=0)
    """What their learning rate is multiplied with."""
    start_fraction: float = pydantic.Field(default=0.0, ge=0, lt=1)
    """Share of all steps after which they begin to learn; their schedule, warm-up included, spans the steps that are left."""
    layer_decay: float | None = pydantic.Field(default=None, gt=0, le=1)
    """Layer-wise decay d of the rate, for an entry with one stack of numbered blocks (`.layers.3.`, `.blocks.3.`; see `layer_factors`)."""

    @pydantic.model_validator(mode="after")
    def check_fields(self) -> Group:
        check_pattern(self.parameters)
        if self.schedule is None and (self.rate_factor, self.start_fraction, self.layer_decay) != (1.0, 0.0, None):
            raise ValueError("a frozen group (schedule null) has neither rate_factor, start_fraction nor layer_decay")
        return self

    def start(self, total: int) -> int:
        """The first step, of `total`, in which it learns."""
        return min(round(self.start_fraction * total), total - 1)

    def factor(self, clock: Clock, default: ScheduleConfig) -> float | None:
        """What the peak rate is multiplied with in the step that comes next, before layer-wise decay; None: it does not learn."""
        start = self.start(clock.total)
        if self.schedule is None or clock.step < start:
            return None
        schedule = default if self.schedule == "training" else self.schedule
        return self.rate_factor * schedule.factor(clock.step - start, clock.total - start)


class Groups:
    """The groups of an objective: who is in which, and who learns when. No group given: everything learns by `schedule`.

    Freezes what is frozen in the objective. Raises `UsageError` where the entries do not cover every trainable parameter exactly once.
    """

    def __init__(self, objective: nn.Module, groups: Sequence[Group], schedule: ScheduleConfig, total: int) -> None:
        self.objective, self.groups, self.schedule = objective, tuple(groups) or (Group(parameters=REST),), schedule
        self.members = assign(objective, self.groups)
        self.parts = _parts(objective, self.groups, self.members)
        self.modes = {module: module.training for module in objective.modules()}
        self.entered: frozenset[int] | None = None
        first = Clock(0, total)
        if not self.learning(first):  # guard: training.groups.begins
            raise UsageError(f"{FIELD}: nothing learns in the first step; give one of them a schedule and a start_fraction of 0")
        self.enter(first)

    def learning(self, clock: Clock) -> frozenset[int]:
        """Indices of the groups that learn in the step that comes next."""
        return frozenset(i for i, group in enumerate(self.groups) if group.factor(clock, self.schedule) is not None)

    def enter(self, clock: Clock) -> bool:
        """Let exactly those groups learn that do so in the step that comes next; whether this differs from before."""
        learning = self.learning(clock)
        if learning == self.entered:
            return False
        self.entered = learning
        for index, members in enumerate(self.members):
            for parameter in members.values():
                parameter.requires_grad_(index in learning)
        rest = _resting(self.objective)
        for module, training in self.modes.items():
            module.training = training and module not in rest
        return True

    def parameters(self) -> list[nn.Parameter]:
        """Those that learn since `enter`, in the optimizer's order."""
        assert self.entered is not None
        return [parameter for part in self.parts if part.group in self.entered for parameter in part.parameters.values()]

    def rate_factors(self, clock: Clock) -> list[float]:
        """What the peak rate of each part is multiplied with in the step that comes next; 0 where a part does not learn."""
        factors = [group.factor(clock, self.schedule) or 0.0 for group in self.groups]
        return [part.rate_factor * factors[part.group] for part in self.parts]

    def plan(self, total: int) -> list[dict[str, Any]]:
        """One entry per group, as plain data."""
        return [
            {
                "parameters": group.parameters,
                "number": sum(parameter.numel() for parameter in members.values()),
                "schedule": None if group.schedule is None else (self.schedule if group.schedule == "training" else group.schedule).kind,
                "rate_factor": group.rate_factor,
                "start": None if group.schedule is None else group.start(total),
                "layer_decay": group.layer_decay,
            }
            for group, members in zip(self.groups, self.members, strict=True)
        ]


def assign(objective: nn.Module, groups: Sequence[Group]) -> list[dict[str, nn.Parameter]]:
    """The trainable parameters of each group, by name. Raises `UsageError` unless each is in exactly one."""
    everything = dict(objective.named_parameters())
    trainable = {name: parameter for name, parameter in everything.items() if parameter.requires_grad}
    owner: dict[str, int] = {}
    for index, group in enumerate(groups):
        where = f"{FIELD}[{index}]"
        if group.parameters != REST:
            for name in matching(group.parameters, everything, where, "parameter of the objective"):
                if name in owner:  # guard: training.groups.once
                    other = groups[owner[name]].parameters
                    raise UsageError(f"{where}: {name!r} is matched by {group.parameters!r} and by {other!r}; make one of them narrower")
                owner[name] = index
    rests = [index for index, group in enumerate(groups) if group.parameters == REST]
    if len(rests) > 1:  # guard: training.groups.rest
        raise UsageError(f"{FIELD}: the rest ({REST!r}) stands at {rests[0]} and at {rests[1]}; leave one out")
    left = [name for name in trainable if name not in owner]
    if left and not rests:  # guard: training.groups.covers
        more = f" (+{len(left) - 1})" if len(left) > 1 else ""
        raise UsageError(f"{FIELD}: no entry matches {left[0]!r}{more}; add one, or one with {REST!r} for all others")
    owner.update(dict.fromkeys(left, rests[0] if rests else 0))
    members = [{name: trainable[name] for name in trainable if owner[name] == index} for index in range(len(groups))]
    for index, (group, found) in enumerate(zip(groups, members, strict=True)):
        if not found and group.schedule is not None:  # guard: training.groups.learns
            reason = "nothing is left for it" if group.parameters == REST else "the objective itself keeps all that it matches frozen"
            raise UsageError(f"{FIELD}[{index}]: {group.parameters!r} would learn nothing: {reason}; leave it out")
    return members


def layer_factors(names: Sequence[str], decay: float, where: str = FIELD) -> dict[str, float]:
    """What layer-wise decay multiplies the rate of each parameter with; `names` are in the order of registration.

    With blocks numbered up to m: decay^(m - i + 1) in block i; what is registered before the lowest block l (embeddings) counts as one
    block below it, decay^(m - l + 2); what comes after (a final norm, a head) has the full rate. The numbers of Bao et al., "BEiT", 2022.
    Raises `UsageError` when the names have no stack of numbered blocks, or several.
    """
    found = {name: match for name in names if (match := BLOCK.fullmatch(name))}
    stacks = sorted({match["stack"] for match in found.values()})
    if not stacks:  # guard: training.groups.stack
        raise UsageError(f"{where}: layer_decay needs numbered blocks (.layers.3., .blocks.3.), and {names[0]!r} and the others have none")
    if len(stacks) > 1:  # guard: training.groups.one_stack
        raise UsageError(
            f"{where}: layer_decay counts along one stack, here are {stacks[0]!r} and {stacks[1]!r}; give each an entry of its own"
        )
    numbers = {name: int(match["number"]) for name, match in found.items()}
    top, lowest = max(numbers.values()), min(numbers.values())
    first = next(place for place, name in enumerate(names) if name in numbers)
    exponents = {name: top - lowest + 2 if place < first else 0 for place, name in enumerate(names)}
    exponents.update({name: top - number + 1 for name, number in numbers.items()})
    return {name: decay**exponent for name, exponent in exponents.items()}


def _parts(objective: nn.Module, groups: Sequence[Group], members: Sequence[dict[str, nn.Parameter]]) -> list[Part]:
    """The groups that ever learn, cut into what has one weight decay and one layer's rate."""
    decayed, _ = parameter_groups(objective)
    parts = []
    for index, (group, own) in enumerate(zip(groups, members, strict=True)):
        if group.schedule is None:
            continue
        layers = dict.fromkeys(own, 1.0)
        if group.layer_decay is not None:
            layers = layer_factors(list(own), group.layer_decay, f"{FIELD}[{index}]")
        cuts: dict[tuple[bool, float], dict[str, nn.Parameter]] = {}
        for name, parameter in own.items():
            cuts.setdefault((name not in decayed, layers[name]), {})[name] = parameter
        for (plain, factor), cut in sorted(cuts.items(), key=lambda item: item[0]):
            parts.append(Part(cut, decayed=not plain, group=index, rate_factor=factor))
    return parts


def _resting(objective: nn.Module) -> set[nn.Module]:
    """Modules with parameters of which none learns, and everything in them."""
    rest: set[nn.Module] = set()
    for module in objective.modules():
        if module not in rest and _learns(module.parameters()) is False:
            rest.update(module.modules())
    return rest


def _learns(parameters: Iterable[nn.Parameter]) -> bool | None:
    """Whether any parameter does; None where there is none."""
    answers = [parameter.requires_grad for parameter in parameters]
    return any(answers) if answers else None
