"""Can the instructions be read, and can a policy learn to listen to them?"""

from __future__ import annotations

import numpy as np

from deftly.data.check.findings import CheckConfig, Finding
from deftly.data.check.rows import REPAIR, Rows
from deftly.data.dataset import Dataset
from deftly.data.split import SCENE
from deftly.data.tokenizer import MAX_SENTENCE

BROKEN = "\ufffd"  # what stands where bytes were not UTF-8


def check_language(rows: Rows, dataset: Dataset, config: CheckConfig) -> list[Finding]:
    """Findings about instructions, from the column `task_index` and the task strings."""
    if not len(rows.episodes):
        return []
    task = rows.columns["task_index"]
    found = []
    strange = (task < 0) | (task >= len(dataset.tasks))
    if strange.any():  # guard: data.check.unknown_task
        found += [
            Finding(
                code="unknown_task",
                verdict="quarantine",
                episode=episode,
                frame=frame,
                field="task_index",
                message=f"is {task[row]}, there are {len(dataset.tasks)} tasks",
                remedy=REPAIR,
            )
            for episode, frame, row in rows.first(strange)
        ]
    for number, text in enumerate(dataset.tasks):
        found += _check_text(rows, task == number, text, config)
    return [*found, *_deaf(rows, dataset, task)]


def _check_text(rows: Rows, mask: np.ndarray, text: str, config: CheckConfig) -> list[Finding]:
    if not text.strip() and not config.allow_empty_instruction:  # guard: data.check.empty_instruction
        remedy = "name the task, or allow it with allow_empty_instruction (`data check --allow-empty-instruction`)"
        return [
            Finding(
                code="empty_instruction", verdict="refuse", episode=episode, field="task", message="the instruction is empty", remedy=remedy
            )
            for episode, _, _ in rows.first(mask)
        ][:1]
    problem = None
    if BROKEN in text or "\0" in text:  # guard: data.check.instruction_bytes
        problem = "instruction_bytes", f"the instruction {text[:40]!r} holds bytes that are not text"
    elif len(text) > MAX_SENTENCE:  # guard: data.check.instruction_length
        problem = "instruction_length", f"the instruction has {len(text)} characters, more than {MAX_SENTENCE}"
    if problem is None:
        return []
    return [
        Finding(code=problem[0], verdict="quarantine", episode=episode, field="task", message=problem[1], remedy=REPAIR)
        for episode, _, _ in rows.first(mask)
    ]


def _deaf(rows: Rows, dataset: Dataset, task: np.ndarray) -> list[Finding]:
    """Instructions that the picture gives away: a policy learns to ignore them."""
    first = task[rows.start[:-1]]
    if len(np.unique(first)) == 1:
        message = "every episode has the same instruction: nothing can be learned from language"
        return [Finding(code="one_instruction", verdict="note", field="task", message=message)]
    scenes = dataset.extra(SCENE)
    groups: dict[object, list[int]] = {}
    for place, episode in enumerate(rows.episodes.tolist()):
        scene = scenes[episode] if scenes else None
        if scene is not None:
            groups.setdefault(str(scene), []).append(int(first[place]))
    repeated = {scene: tasks for scene, tasks in groups.items() if len(tasks) > 1}
    if len(repeated) > 1 and all(len(set(tasks)) == 1 for tasks in repeated.values()):
        message = f"each of {len(repeated)} scenes always comes with the same instruction: the picture alone says what to do"
        remedy = "record several instructions in one scene, or the policy will not listen"
        return [Finding(code="scene_tells", verdict="warn", field="task", message=message, remedy=remedy)]
    return []
