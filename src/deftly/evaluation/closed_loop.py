"""A policy beside its baselines on scenes that nobody has demonstrated: plan first, then episodes, then a summary.

    plan.json        before the first episode: policy, world, seed, episodes, versions, and the hash of it all
    episodes.jsonl   while it runs: one row for each (arm, episode); killed and started again, no episode is played twice
    summary.json     after: a pure function of the two
    videos/          a few successes and failures of the policy

The initial state is a function of (seed, episode), the same for every arm. Rows do not depend on the number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from deftly import agent as agents
from deftly import storage
from deftly.contract import Embodiment
from deftly.evaluation.baselines import ARMS, BASELINES, POLICY, actor_of, check_baselines, needs_rendering, sentence_of
from deftly.evaluation.plan import EPISODES, Plan, versions, write_or_match
from deftly.evaluation.statistics import Proportion
from deftly.evaluation.summary import Row, read_rows, video_path, write_summary
from deftly.evaluation.videos import VIDEO_SIZE, Recorded, replay, write_mp4
from deftly.progress import Progress
from deftly.rollout import Actor, Episode, rollout
from deftly.sim import processes
from deftly.sim.processes import LOCAL, Executor
from deftly.types import DataError, UsageError, World

_ORDER = (POLICY, "deaf", "blind", "random", "no_op")  # the headline first


class WorldConfig(Protocol):
    """A config that builds a world; without rendering its observations have no images."""

    def to_dict(self) -> dict[str, Any]: ...

    def build(self, *, render: bool = True) -> World: ...


class JudgedAgent(Actor, Protocol):
    """What an evaluation asks of `deftly.agent.Agent`."""

    embodiment: Embodiment

    def check(self, embodiment: Embodiment) -> None: ...


class Load(Protocol):
    """`deftly.agent.load`; `robot` is given where the policy acts for several."""

    def __call__(self, path: Path, /, *, robot: str = ...) -> JudgedAgent: ...


class Job(NamedTuple):
    """One episode of one arm; with `video` it is played again and drawn to that file."""

    arm: str
    episode: int
    video: Path | None = None

    def name(self) -> str:
        return f"{self.arm}, episode {self.episode}"


@dataclass(frozen=True)
class Task:
    """What a process needs to know to play any job."""

    policy: Path
    world: Any  # a WorldConfig
    plan: Plan
    load: Load

    def agent(self) -> JudgedAgent:
        """The policy, acting for the plan's robot. Raises `DataError` where this machine has another one at the same path."""
        agent = self.load(self.policy) if self.plan.robot is None else self.load(self.policy, robot=self.plan.robot)
        if storage.sha256(self.policy / storage.MANIFEST) != self.plan.policy:  # guard: evaluation.another_policy
            raise DataError(f"{self.policy}: another policy than the one that is being evaluated; workers must see the same files")
        return agent


def evaluate(
    policy: Path,
    world: WorldConfig,
    directory: Path,
    *,
    episodes: int = 100,
    seed: int = 0,
    workers: int | None = None,
    baselines: tuple[str, ...] = BASELINES,
    videos: int = 3,
    training_seeds: frozenset[int] = frozenset(),
    robot: str | None = None,
    load: Load = agents.load,
    own_versions: Mapping[str, str] = MappingProxyType({}),
    executor: Executor = LOCAL,
) -> dict[str, Any]:
    """Measure a policy and return the summary.

    Args:
        policy: a policy directory, a checkpoint or a run.
        directory: where plan, episodes, summary and videos go. One that already holds this evaluation is continued.
        workers: processes; 0 plays in this one; None takes one for each CPU core.
        executor: whose workers these are.
        videos: how many of the first successes, and of the first failures, are drawn.
        robot: which of the policy's robots acts; the first by default.
        own_versions: of what `load` runs beside deftly, by name: with another one it is another evaluation.
        training_seeds: of the demonstrated scenes, where they are known: no evaluation scene may be among them.

    Raises:
        UsageError: another evaluation is in `directory`; a baseline that does not exist or cannot act in this world; fewer than 0 videos.
        DataError: the policy's contract does not match the world; rows or plan were edited; scenes are shared with training.
    """
    if videos < 0:
        raise UsageError(f"videos must be 0 or more, got {videos}")
    policy = agents.find_policy(policy)
    plan = Plan.parse(
        {
            "policy": storage.sha256(policy / storage.MANIFEST),
            "world": world.to_dict(),
            "episodes": episodes,
            "seed": seed,
            "baselines": check_baselines(baselines),
            "robot": robot,
            "versions": {**versions(), **own_versions},
        },
        where="evaluate",
    )
    plan.check_disjoint(training_seeds)
    task = Task(policy.absolute(), world, plan, load)  # workers may stand in another folder
    check_fit(task.agent(), world, plan)
    count = executor.default_workers() if workers is None else workers
    with storage.lock(directory / ".lock", wait=False, who="evaluation", remedy="wait for it, or use another --name"):
        write_or_match(plan, directory)
        storage.mend_lines(directory / EPISODES)
        play_missing(task, directory.absolute(), count, executor)
        summary = write_summary(directory)
        draw(task, directory.absolute(), videos, count, executor)
    return summary


def check_fit(agent: JudgedAgent, world: WorldConfig, plan: Plan) -> None:
    """Refuse, before any episode: a world that the policy was not made for, baselines that cannot act in it, a machine that cannot draw."""
    sample = world.build(render=True)
    try:
        agent.check(sample.embodiment)
        check_limits(agent.embodiment, sample.embodiment)
        for arm in plan.baselines:
            actor_of(arm, agent, sample)
        observation, _ = sample.reset(seed=plan.episode_seed(0))
        for name in observation["images"]:
            _ = observation["images"][name]  # images may be drawn when they are read
    finally:
        sample.close()


def check_limits(trained: Embodiment, found: Embodiment) -> None:
    """Refuse a world in which actions that the policy may take are out of reach: its failures would be the world's.

    `found` may allow more; limits that are not known forbid nothing.
    """
    for label, sign in (("low", 1), ("high", -1)):
        needed, given = getattr(trained.action, label), getattr(found.action, label)
        if needed is None or given is None:
            continue
        for name, unit, wanted, limit in zip(trained.action.names, trained.action.units, needed, given, strict=True):
            if sign * limit > sign * wanted:
                raise DataError(
                    f"robot {found.name!r}: action.{label} of {name} is {limit:g} {unit}, but the policy was trained to reach {wanted:g}; "
                    "use a world with the limits of the training data"
                )


# Playing --------------------------------------------------------------------------------------------------------------------------------


def play_missing(task: Task, directory: Path, workers: int, executor: Executor = LOCAL) -> None:
    """Play the episodes of the plan that have no row yet; each row is on disk before the next one is waited for."""
    done = set(read_rows(task.plan, directory))
    jobs = [Job(arm, episode) for arm in _ORDER for episode in range(task.plan.episodes) if (arm, episode) in set(task.plan.jobs()) - done]
    if not jobs:
        return
    scores = {arm: [0, 0] for arm in ARMS}
    with Progress("evaluate", len(jobs), "episodes") as progress:
        for job, episode in play(task, jobs, workers, executor, directory):
            row = row_of(task.plan, job, episode)
            storage.append_line(directory / EPISODES, row)
            scores[job.arm][0] += row["success"]
            scores[job.arm][1] += 1
            progress.advance(note="  ".join(f"{arm} {Proportion(*score)}" for arm, score in scores.items() if score[1] and arm == job.arm))


def play(
    task: Task, jobs: Sequence[Job], workers: int, executor: Executor = LOCAL, folder: Path | None = None
) -> Iterator[tuple[Job, Episode]]:
    """Jobs with their episodes, in order. A physics engine or a graphics driver can take its process down: such an episode has crashed.

    One process plays its jobs in order, so that it dies of the one that is waited for. Of several, any job in flight may be to blame:
    these are played again by one.
    """
    done = 0
    while done < len(jobs):
        try:
            for episode in executor.run(partial(Bench, task), jobs[done:], workers=workers, name=Job.name, folder=folder):
                yield jobs[done], episode
                done += 1
        except processes.WorkerDied as error:
            if done == 0:
                list(executor.run(_nothing, [0], workers=1))  # where no worker can start, no episode is to blame: raises WorkerDied
            if workers == 1:
                yield jobs[done], lost(task.plan, jobs[done], error)
                done += 1
            else:
                suspects = jobs[done : done + workers * processes.IN_FLIGHT]
                yield from play(task, suspects, 1, executor, folder)
                done += len(suspects)


def _nothing() -> Callable[[Any], Any]:
    return int


def row_of(plan: Plan, job: Job, episode: Episode) -> Row:
    """One line of `episodes.jsonl`."""
    return {"arm": job.arm, "episode": job.episode, "policy": plan.policy, **episode.to_dict()}


def lost(plan: Plan, job: Job, died: Exception) -> Episode:
    """An episode that took its process down: a failure, and marked as such."""
    return Episode(
        seed=plan.episode_seed(job.episode),
        state_hash="",
        instruction="",
        told="",
        outcome="crashed",
        success=False,
        obeyed=False if job.arm == "deaf" else None,
        error=str(died),
    )


class Bench:
    """What lives in a process: one agent, and one world with pictures and one without, used for one job after the other."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._agent = task.agent()
        self._worlds: dict[bool, World] = {}

    def __call__(self, job: Job) -> Episode:
        """Play a job. A world that crashed is not used again."""
        rendered = needs_rendering(job.arm)
        if rendered not in self._worlds:
            self._worlds[rendered] = self._task.world.build(render=rendered)
        world = self._worlds[rendered]
        actor = Recorded(actor_of(job.arm, self._agent, world))
        seed = self._task.plan.episode_seed(job.episode)
        episode = rollout(actor, world, seed, sentence=sentence_of(job.arm))
        if episode.outcome == "crashed":
            self._worlds.pop(rendered)
        if job.video is not None and episode.outcome != "crashed":
            stage = larger(self._task.world).build(render=True)
            write_mp4(job.video, replay(stage, seed, actor.actions), world.embodiment.rate_hz)
            stage.close()
        return episode


# Drawing --------------------------------------------------------------------------------------------------------------------------------


def larger(world: Any) -> Any:
    """The same world with pictures made for people, where its config has a picture size."""
    values = world.to_dict()
    return world.replace(image_size=max(VIDEO_SIZE, values["image_size"])) if "image_size" in values else world


def draw(task: Task, directory: Path, videos: int, workers: int, executor: Executor = LOCAL) -> None:
    """Draw the first successes and the first failures of the policy that are not drawn yet."""
    rows = read_rows(task.plan, directory)
    policy = [rows[POLICY, episode] for episode in range(task.plan.episodes)]
    played = [row for row in policy if row["outcome"] != "crashed" and not row["success_at_reset"]]
    chosen = [row for wanted in (True, False) for row in [row for row in played if row["success"] is wanted][:videos]]
    jobs = [Job(POLICY, row["episode"], video_path(directory, row)) for row in chosen]
    jobs = [job for job in jobs if job.video is not None and not job.video.exists()]
    if not jobs:
        return
    with Progress("draw", len(jobs), "videos") as progress:
        for _ in executor.run(partial(Bench, task), jobs, workers=min(workers, len(jobs)), name=Job.name, folder=directory):
            progress.advance()
