"""Every way of optimising goes with every other: two steps with both, and two with a restart between them that end in the same bits.

How to add one: a name and what it changes in `WAYS`; `groups` of several ways are joined.
"""

import itertools
import math
import shutil

import pytest
import torch
from torch import nn

from deftly.training.groups import Group
from deftly.training.lora import LoraConfig
from deftly.training.schedule import WSDConfig
from training.toys import ACTION, CHUNK, STATE, ToyObjective, fingerprint, make_trainer, small_config

WAYS = {
    "accumulation": {"accumulation": 2},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "average": {"ema_decay": 0.9},
    "frozen": {"groups": (Group(parameters=r"policy\.norm\..*", schedule=None),)},
    "unfrozen in the second step": {"groups": (Group(parameters=r"policy\.first\..*", start_fraction=0.5, rate_factor=0.1),)},
    "layer decay": {"groups": (Group(parameters=r"policy\.layers\..*", layer_decay=0.5),)},
    "lora": {"lora": LoraConfig(modules=r"policy\.(first|conv|layers\..*)", rank=2, dropout=0.1, full=r"policy\.last\..*")},
    "channels last": {"channels_last": True},
    "wsd": {"schedule": WSDConfig(decay_fraction=0.5)},
    "no clipping": {"clip_norm": None},
    "blocks computed twice": {"activation_checkpointing": True},
}
PAIRS = [pair for pair in itertools.combinations(WAYS, 2) if not ("precision" in WAYS[pair[0]] and "precision" in WAYS[pair[1]])]


class SmallPolicy(nn.Module):
    """A convolution, running statistics, dropout and numbered blocks."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(STATE, 16)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.1)) for _ in range(2))
        self.dropout = nn.Dropout(0.1)
        self.last = nn.Linear(16, ACTION * CHUNK)

    def forward(self, batch):
        hidden = self.norm(self.conv(self.first(batch.state[:, -1]).unflatten(1, (4, 2, 2)))).flatten(1)
        for layer in self.layers:
            hidden = hidden + torch.tanh(layer(hidden))
        return self.last(self.dropout(hidden)).unflatten(1, (CHUNK, ACTION))


def combined(names):
    changes, groups = {"steps": 2, "ema_decay": None, "checkpoint_every": 1, "validate_every": None, "log_every": 1}, []
    for name in names:
        changes |= {key: value for key, value in WAYS[name].items() if key != "groups"}
        groups += WAYS[name].get("groups", ())
    return small_config(**changes, groups=(*groups, Group(parameters=".*")) if groups else ())


def trained(directory, config, resume=False):
    torch.manual_seed(0)
    trainer = make_trainer(directory, objective=ToyObjective(SmallPolicy()), config=config, validation=None)
    before = [parameter.detach().clone() for parameter in trainer.update.parameters]
    loss = trainer.fit(resume=resume)["loss"]
    assert math.isfinite(loss)
    assert all(bool(torch.isfinite(parameter).all()) for parameter in trainer.update.parameters)
    assert any(not torch.equal(old, new) for old, new in zip(before, trainer.update.parameters, strict=True))
    return fingerprint(trainer), loss


@pytest.mark.parametrize("pair", PAIRS, ids=" and ".join)
def test_two_ways_go_together_and_through_a_restart(tmp_path, pair):
    config = combined(pair)
    whole = trained(tmp_path, config)
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000002")
    assert trained(tmp_path, config, resume=True) == whole


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_each_way_goes_with_compiling(tmp_path, way):
    config = combined([way]).replace(compile=True)
    _, loss = trained(tmp_path, config)
    shutil.rmtree(tmp_path / "checkpoints" / "step-00000002")
    # compiled kernels of another process or of a resumed run need not have the same bits
    assert trained(tmp_path, config, resume=True)[1] == pytest.approx(loss, rel=1e-2 if "precision" in WAYS[way] else 1e-4)
