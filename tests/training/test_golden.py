"""What an earlier deftly wrote is read for ever: a checkpoint of each format lies beside this file.

golden/checkpoint-2/     written by `python tests/training/test_golden.py` with the first deftly of that format; never written again
"""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from deftly import storage
from deftly.training import checkpoint
from deftly.types import DataError
from guards import guards
from training.toys import ToyStream, log_lines, make_trainer, small_config

GOLDEN = Path(__file__).parent / "golden"
CONFIG = {"steps": 12, "checkpoint_every": 6, "validate_every": 6, "accumulation": 2}


def stream():
    return ToyStream(curriculum=True, poison={3: float("nan")})


@pytest.mark.parametrize("version", [2])
def test_a_checkpoint_of_every_format_goes_on(tmp_path, version):
    golden = GOLDEN / f"checkpoint-{version}"
    shutil.copytree(golden, tmp_path / "checkpoints" / "step-00000006")
    trainer = make_trainer(tmp_path, config=small_config(**CONFIG), stream=stream())
    summary = trainer.fit(resume=True, allow_change=["training"])  # fields may have been added since
    assert (summary["steps"], summary["skipped"], summary["samples"]) == (12, 1, 96)
    assert log_lines(tmp_path)[-1]["step"] == 12
    saved = checkpoint.read(golden)
    assert saved.raw is not None
    assert saved.trainer["stream"] == {"position": 6, "difficulty": saved.trainer["stream"]["difficulty"]}
    assert float(torch.stack([tensor.double().sum() for tensor in saved.raw.values()]).sum()) == json.loads(
        (GOLDEN / f"sum-{version}.json").read_text()
    )


@guards("training.checkpoint.old_format")
def test_an_older_format_is_refused_in_one_line(tmp_path):
    trainer = make_trainer(tmp_path, config=small_config(**CONFIG), stream=stream())
    trainer.fit()
    newest = trainer.checkpoints.path(12)
    manifest = storage.read_json(newest / storage.MANIFEST)
    storage.write_json(newest / storage.MANIFEST, {**manifest, "format_version": 1})
    with pytest.raises(DataError, match=r"format 1 is of an earlier deftly.*training\.start\.weights") as caught:
        make_trainer(tmp_path, config=small_config(**CONFIG), stream=stream()).fit(resume=True)
    assert "\n" not in str(caught.value)
    assert newest.is_dir()  # it is not damaged, so it is not set aside


def write(directory: Path) -> None:
    """Make the golden checkpoint of the present format; for whoever raises it."""
    target = GOLDEN / f"checkpoint-{checkpoint.FORMAT_VERSION}"
    if target.exists():
        raise SystemExit(f"{target} is there: a golden checkpoint is never written again")
    trainer = make_trainer(directory, config=small_config(**CONFIG), stream=stream())
    trainer.fit()
    shutil.copytree(trainer.checkpoints.path(6), target)
    raw = checkpoint.read(target).raw
    assert raw is not None
    total = float(torch.stack([tensor.double().sum() for tensor in raw.values()]).sum())
    (GOLDEN / f"sum-{checkpoint.FORMAT_VERSION}.json").write_text(json.dumps(total) + "\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
