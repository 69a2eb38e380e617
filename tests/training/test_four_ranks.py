"""More than two ranks: rows that do not come out even, ranks without any, and checkpoints that fewer ranks go on from."""

import shutil
from pathlib import Path

import pytest

from deftly import storage
from deftly.training import distributed
from training.faulty import skip
from training.ranks import run_ranks
from training.test_parallel import CPU, assert_alike, assert_near, newest, trainer_of
from training.toys import log_lines

pytestmark = pytest.mark.slow

NAMES, WAYS = ("discriminator", "two terms"), ("ddp", "fsdp")
SHORT = {"steps": 8, "checkpoint_every": 4, "validate_every": 4, "log_every": 1}


def every_way(folder: str) -> None:
    root = Path(folder)
    with distributed.process_group(CPU, 300.0):
        for way in WAYS:
            for name in NAMES:
                trainer_of(name, root / f"{name} {way}", parallel=way, **SHORT).fit()
            for fault in ("nan", "inf"):
                skipped = skip(root / "skipped", fault, parallel=way)
                storage.write_json(root / f"skipped {way} {fault}-{distributed.rank()}.json", skipped)


def go_on(folder: str) -> None:
    with distributed.process_group(CPU, 300.0):
        for way in WAYS:
            trainer_of("two terms", Path(folder) / way, parallel=way, **SHORT).fit(resume=True, allow_change=["ranks", "training.parallel"])


@pytest.fixture(scope="module")
def four(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("four")
    codes, error = run_ranks("training.test_four_ranks:every_way", root, ranks=4, timeout=500)
    assert codes == [0] * 4, error
    return root


@pytest.mark.parametrize("name", NAMES)
def test_four_ranks_train_and_measure_what_one_does(four, tmp_path, name):
    trainer_of(name, tmp_path, **SHORT).fit()
    for way in WAYS:
        assert_near(newest(tmp_path), newest(four / f"{name} {way}"))
        folders = (tmp_path, four / f"{name} {way}")
        mine, theirs = ([line for line in log_lines(folder) if line["kind"] != "modules"] for folder in folders)
        assert [line["kind"] for line in mine] == [line["kind"] for line in theirs]
        for one, other in zip(mine, theirs, strict=True):
            assert_alike({**one, "origin": None}, {**other, "origin": None})  # which names the ranks


@pytest.mark.parametrize("fault", ["nan", "inf"])
@pytest.mark.parametrize("way", WAYS)
def test_the_third_of_four_is_named(four, tmp_path, way, fault):
    ranks = [storage.read_json(four / f"skipped {way} {fault}-{rank}.json") for rank in range(4)]
    alone = skip(tmp_path, fault)
    assert all(rank == ranks[0] for rank in ranks)
    assert ranks[0]["unchanged"]
    assert ranks[0]["origin"] == {**alone["origin"], "ranks": [2]}


def test_a_checkpoint_of_four_is_gone_on_from_by_two_and_by_one(four, tmp_path):
    def halfway(root: Path) -> Path:
        """The runs of four ranks after half of their steps: those in rows where they then have to be whole, and the other way round."""
        for way, source in zip(WAYS, reversed(WAYS), strict=True):
            shutil.copytree(four / f"two terms {source}" / "checkpoints" / "step-00000004", root / way / "checkpoints" / "step-00000004")
        return root

    names = {item.name for item in (four / "two terms fsdp" / "checkpoints" / "step-00000004").iterdir()}
    assert {f"optimizer-0000{rank}-of-00004.safetensors" for rank in range(4)} <= names
    trainer_of("two terms", tmp_path / "whole", **SHORT).fit()
    wanted = newest(tmp_path / "whole")
    codes, error = run_ranks("training.test_four_ranks:go_on", halfway(tmp_path / "two"), timeout=300)
    assert codes == [0, 0], error
    for way in WAYS:
        trainer_of("two terms", halfway(tmp_path / f"one {way}") / way, **SHORT).fit(
            resume=True, allow_change=["ranks", "training.parallel"]
        )
        assert_near(wanted, newest(tmp_path / f"one {way}" / way))
        assert_near(wanted, newest(tmp_path / "two" / way))
