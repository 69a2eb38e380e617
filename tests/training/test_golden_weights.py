"""The same commit and seed give the same weights: twice in a row here, and over time, by a hash for each platform beside this file.

golden/weights.json     {platform: hash of the weights after a few steps}

On a platform that is not there the figure is not comparable, and the test says so: `python tests/training/test_golden_weights.py` adds it.
Where the hash of a known platform changes, a change to the code has changed what every run computes. If that is meant, the command with
`--changed` replaces it (the hashes of all other platforms go: they are of the old code), and docs/log.md gets a note that says why.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from batches import VOCABULARY, WINDOW, contract_of, random_batch
from deftly.models.heads import FlowMatchingConfig
from deftly.models.policy import PolicyConfig
from deftly.objectives.imitation import ImitationConfig
from deftly.randomness import seed_global
from deftly.training.session import cpu_model
from deftly.types import Batch, Stream
from training.toys import make_trainer, small_config

GOLDEN = Path(__file__).parent / "golden" / "weights.json"
COMMAND = "python tests/training/test_golden_weights.py"


def platform_key() -> str:
    """What decides over bits beside the code: versions, and the kernels that this processor is given."""
    vendor = next((name for name in ("AMD", "Intel") if name in cpu_model()), platform.machine())
    about = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""  # libraries choose kernels by the model
    numbers = [found[1] for name in ("cpu family", "model") if (found := re.search(rf"^{name}\s*: (\d+)$", about, re.M))]
    versions = f"python {sys.version_info.major}.{sys.version_info.minor}, torch {torch.__version__}"
    return f"{versions}, {platform.system()}, {' '.join([vendor, *numbers])} {torch.backends.cpu.get_cpu_capability()}"


class Numbered(Stream):
    """Batch n is that of seed n: images, state and words, with padding."""

    def __init__(self) -> None:
        self.position = 0

    def next(self) -> Batch:
        batch = random_batch(size=4, seed=self.position)
        assert batch.action_is_pad is not None
        batch.action_is_pad[0, 2:] = True
        self.position += 1
        return batch

    def state(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state(self, state: dict[str, Any]) -> None:
        self.position = state["position"]


def hash_of_weights(directory: Path) -> str:
    """sha256 of weights and averages after six steps of a flow policy with dropout, in two parts each, on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seed_global("initial weights", 0)
        config = PolicyConfig(width=16, depth=1, dropout=0.1, head=FlowMatchingConfig(width=16, blocks=1))
        policy = config.build(contract_of(WINDOW), VOCABULARY)
        training = small_config(steps=6, accumulation=2, log_every=6, validate_every=None, checkpoint_every=None, count_flops=False)
        trainer = make_trainer(directory, objective=ImitationConfig().build(policy), stream=Numbered(), config=training, validation=None)
        trainer.fit()
        snapshot = trainer.snapshot()
    finally:
        torch.set_num_threads(before)
    digest = hashlib.sha256()
    for tensors in (snapshot.objective, snapshot.raw or {}):
        for name, tensor in sorted(tensors.items()):
            digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def compare(found: str, known: dict[str, str], key: str) -> None:
    """Pass, skip where there is nothing to compare with, or fail with what is to be done."""
    if key not in known:
        pytest.skip(f"not comparable here: no hash of {key!r} in {GOLDEN.name}; `{COMMAND}` adds it")
    changed = f"weights are no longer those of {GOLDEN.name} on {key!r}: what every run computes has changed"
    assert found == known[key], f"{changed}; if that is meant: `{COMMAND} --changed`, and a note in docs/log.md that says why"


def test_b9_the_same_commit_and_seed_give_the_same_weights(tmp_path: Path) -> None:
    first = hash_of_weights(tmp_path / "first")
    assert hash_of_weights(tmp_path / "second") == first
    compare(first, json.loads(GOLDEN.read_text()), platform_key())


def test_another_hash_fails_and_another_platform_is_not_compared() -> None:
    with pytest.raises(pytest.skip.Exception, match=r"not comparable here: no hash of 'there'.*test_golden_weights\.py` adds it"):
        compare("a", {"here": "a"}, "there")
    with pytest.raises(AssertionError, match=r"what every run computes has changed.*--changed`, and a note in docs/log\.md"):
        compare("a", {"here": "b"}, "here")
    compare("a", {"here": "a"}, "here")


def add(changed: bool) -> None:
    """Write this platform's hash; `changed` says that another one is meant to be replaced."""
    known = json.loads(GOLDEN.read_text()) if GOLDEN.is_file() else {}
    with tempfile.TemporaryDirectory() as directory:
        found = hash_of_weights(Path(directory) / "run")
    if known.get(platform_key(), found) != found:
        if not changed:
            raise SystemExit("the weights have changed: find out why; where it is meant, --changed replaces the hash")
        known = {}  # of the code as it was
    GOLDEN.write_text(json.dumps({**known, platform_key(): found}, indent=2, sort_keys=True) + "\n")
    print(f"{platform_key()}: {found}")


if __name__ == "__main__":
    add("--changed" in sys.argv[1:])
