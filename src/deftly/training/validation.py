"""The loss on held-out episodes: the masked mean over all of them, from fixed keys, without a trace in the training state.

Of several ranks each measures a stretch of every batch (`stretch.py`); sums and counts of all are added at the end.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from deftly.randomness import seed_global
from deftly.training import distributed, memory
from deftly.training.config import TrainingConfig
from deftly.training.detail import Detail
from deftly.training.guard import TrainingError
from deftly.training.measures import Measures
from deftly.training.precision import autocast
from deftly.training.stretch import Stretch
from deftly.training.units import watching_units
from deftly.types import Batch, Clock, DataError, Mean, Objective, Samples


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every sub-module has its own mode back (a frozen teacher stays in evaluation mode)."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@dataclass(frozen=True)
class Cut:
    """Samples `first` .. `stop - 1` of a batch."""

    samples: Samples
    first: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.first

    def stretch(self, first: int, stop: int) -> Batch:
        return self.samples.stretch(self.first + first, self.first + stop)


class HeldOut:
    """The held-out batches of a run; called, everything that a validation finds: (loss, terms, detail).

    When memory runs out the batches are cut into twice as many parts, from then on, and the whole is measured again: the loss of an
    objective that decomposes is the same mean over parts. What `measures` looks at, every so many-th part, is then other samples. Of
    several ranks only one may have met that, while the others wait for it, so there it is a `TrainingError`.
    """

    def __init__(
        self,
        objective: Objective,
        batches: Callable[[], Iterator[Samples]],
        config: TrainingConfig,
        device: torch.device,
        seed: int,
        say: Callable[[str], None],
    ) -> None:
        self.objective, self.batches, self.config, self.device, self.seed, self.say = objective, batches, config, device, seed, say
        self.size = self.parts = 1

    def __call__(self) -> tuple[float, dict[str, float], Detail]:
        while True:
            detail, measures = Detail(), Measures(self.config.measures, self.objective)
            precision = autocast(self.device, self.config.precision)
            seed_global("validation", self.seed)
            try:
                return *validate(self.objective, self._cuts(), self.config.steps, precision, self.device, detail, measures), detail
            except Exception as error:
                if not memory.is_out_of_memory(error):
                    raise
            self._cut()

    def _cuts(self) -> Iterator[Samples]:
        for samples in self.batches():
            size = len(samples)
            self.size = max(self.size, size)
            ends = [size * part // self.parts for part in range(self.parts + 1)]
            yield from (Cut(samples, first, stop) for first, stop in itertools.pairwise(ends) if stop > first)

    def _cut(self) -> None:
        at_a_time = -(-self.size // (self.parts * distributed.world_size()))
        if distributed.active() or at_a_time == 1 or not self.objective.decomposes:
            remedy = f"{'lower data.batch_size' if at_a_time > 1 else 'choose a smaller policy'}, or set data.validation_fraction to 0"
            raise TrainingError(f"validation: out of memory with {at_a_time} samples at a time; {remedy}")
        self.parts = min(2 * self.parts, self.size)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.say(f"WARNING: validation ran out of memory; from here on at most {-(-self.size // self.parts)} samples at a time")


@torch.no_grad()
def validate(
    objective: Objective,
    batches: Iterable[Samples],
    total: int,
    precision: AbstractContextManager[object],
    device: torch.device,
    detail: Detail | None = None,
    measures: Measures | None = None,
) -> tuple[float, dict[str, float]]:
    """The loss and every term, as means over the valid elements of all batches; raises `DataError` when there is none.

    `detail` is filled with where the loss comes from, and with the units that never vary; what `measures` finds stands among the terms.

    The clock always stands at the end (`total` of `total`): a term whose weight follows the clock is then the same measure all along.
    """
    clock = Clock(total, total)
    means: dict[str, Mean] = {}
    weights: dict[str, float] = {}
    measured: dict[str, Mean] = {}
    with evaluating(objective), precision, watching_units(objective) as units:
        for samples in batches:
            stretch = Stretch.of(samples)
            batch = stretch.take(samples).to(device)
            counts = objective.counts(batch)
            terms = objective(batch, clock, counts)
            if detail is not None:
                detail.add(batch, terms, stretch)
                detail.mismatch(objective, batch, clock, stretch)
            for name, term in terms.items():
                # A term without a count of its own is a plain mean over samples.
                count = float(counts[name]) if name in counts else float(stretch.count)
                if count:
                    means[name] = means.get(name, Mean(0.0, 0.0)) + Mean(float(term.value) * count, count)
                weights[name] = term.weight
            for name, mean in measures(batch, clock, stretch).items() if measures is not None else ():
                measured[name] = measured.get(name, Mean(0.0, 0.0)) + mean
        units.combine()
    means, measured = over_ranks(means), over_ranks(measured)
    if not means:
        raise DataError("validation: no held-out sample has a valid element; give a larger validation_fraction, or set it to 0")
    if detail is not None:
        detail.combine()
        detail.dead = units.dead()
    values = {name: mean.value for name, mean in means.items()}
    loss = sum(weights[name] * value for name, value in values.items() if weights[name])
    return loss, {**{name: mean.value for name, mean in measured.items() if mean.count}, **values}


def over_ranks(means: dict[str, Mean]) -> dict[str, Mean]:
    """The means over what all ranks have measured: the same bits on each of them."""
    found: dict[str, Mean] = {}
    for told in distributed.told_by_all(means):
        for name, (total, count) in told.items():
            found[name] = found.get(name, Mean(0.0, 0.0)) + Mean(total, count)
    return found
