from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from batches import build_policy, random_batch
from deftly.data.augment import OFF
from deftly.data.mirror import draw_mirrored
from deftly.data.mixup import ONE, beta, check_mixup, draw_partners, mixup
from deftly.models.policy import PolicyConfig
from deftly.objectives.imitation import ImitationConfig
from deftly.types import Batch, Objective, UsageError

MIX = OFF.replace(mixup=0.4, mixup_distance=0.2)


def batch_of(size: int = 24) -> Batch:
    """Three tasks; actions of a task lie around two modes that are far apart."""
    batch = random_batch(size)
    draw = torch.Generator().manual_seed(1)
    batch.task = torch.arange(size) % 3
    mode = (torch.arange(size) // 3 % 2).float() * 1.6 - 0.8
    batch.actions = mode[:, None, None] + 0.05 * torch.randn(*batch.actions.shape, generator=draw)
    batch.key = torch.arange(size) + 100
    return batch


def test_off_is_the_batch_itself():
    batch = batch_of()
    assert mixup(batch, OFF) is batch
    assert mixup(replace(batch, task=torch.arange(24)), MIX).actions is batch.actions, "nobody has a partner"


def test_weights_are_those_of_a_beta_distribution():
    draw = (torch.arange(20_000) + 0.5) / 20_000
    for alpha in (0.2, 1.0, 3.0):
        assert stats.kstest(beta(draw, alpha).numpy(), stats.beta(alpha, alpha).cdf).statistic < 0.02, "float32 has no number just below 1"
    _, _, weight = draw_partners(batch_of(), MIX)
    assert (weight >= ONE // 2).all(), "a sample stays mostly itself"
    assert (weight < ONE).all()


def test_partners_are_of_the_same_task_and_near_in_action():
    batch = batch_of()
    index, partner, _ = draw_partners(batch, MIX)
    assert len(index) > 8
    assert (index != partner).all()
    assert torch.equal(batch.task[index], batch.task[partner])
    gap = (batch.actions[index] - batch.actions[partner]).flatten(1).pow(2).mean(1).sqrt()
    assert gap.max() < 0.2, "never across the two modes, which lie 1.6 apart"
    assert len(set(partner.tolist())) > 4


@pytest.mark.parametrize(
    "field", ["action_is_pad", "observation_is_pad", "past_action_is_pad", "embodiment", "camera_is_missing", "labels"]
)
def test_whoever_differs_in_padding_robot_cameras_or_labels_is_no_partner(field: str):
    batch = batch_of()
    odd = torch.arange(24) % 2 == 1
    if field == "camera_is_missing":
        batch.camera_is_missing = {**batch.camera_is_missing, "head": odd}
    elif field == "labels":
        batch.labels = {"kind": odd.long(), "kind_is_valid": torch.ones(24, dtype=torch.bool)}
    elif field == "embodiment":
        batch.embodiment = odd.long()
    else:
        setattr(batch, field, getattr(batch, field) | odd[:, None])
    index, partner, _ = draw_partners(batch, MIX.replace(mixup_distance=1.0))
    assert len(index) > 4
    assert torch.equal(odd[index], odd[partner])


def test_a_mirrored_sample_is_no_partner_of_one_that_is_not():
    batch = batch_of()
    mirrored = torch.from_numpy(draw_mirrored(batch.key, 0.5))
    index, partner, _ = draw_partners(batch, MIX.replace(mixup_distance=1.0, mirror=0.5))
    assert len(index) > 4
    assert torch.equal(mirrored[index], mirrored[partner])


def test_depth_is_never_mixed():
    batch = batch_of()
    batch.depth = {"head": torch.ones(24, 2, 1, 8, 8)}
    assert mixup(batch, MIX).images is batch.images


def test_everything_is_averaged_by_one_weight_and_the_rest_stays():
    batch = batch_of()
    index, partner, weight = draw_partners(batch, MIX)
    mixed = mixup(batch, MIX)
    share = weight.double() / ONE
    for name in ("state", "past_actions", "actions"):
        before, after = getattr(batch, name).double(), getattr(mixed, name).double()
        wanted = share[:, None, None] * before[index] + (1 - share)[:, None, None] * before[partner]
        assert torch.allclose(after[index], wanted, atol=1e-6)
        others = torch.ones(24, dtype=torch.bool)
        others[index] = False
        assert torch.equal(getattr(mixed, name)[others], getattr(batch, name)[others])
    for name, image in batch.images.items():
        s = share.view(-1, 1, 1, 1, 1)
        wanted = s * image[index].double() + (1 - s) * image[partner].double()
        assert (mixed.images[name][index].double() - wanted).abs().max() <= 0.5 + 1e-9
        assert mixed.images[name].dtype == torch.uint8
    assert torch.equal(mixed.text.ids, batch.text.ids)
    assert torch.equal(mixed.weight, batch.weight)


def test_it_is_a_function_of_the_keys_and_leaves_generators_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, again = mixup(batch_of(), MIX), mixup(batch_of(), MIX)
    assert torch.equal(first.actions, again.actions)
    assert torch.equal(before, torch.get_rng_state())
    other = batch_of()
    other.key = other.key + 1000
    assert not torch.equal(first.actions, mixup(other, MIX).actions)
    assert np.array_equal(batch_of().actions, batch_of().actions)


def test_padding_of_actions_does_not_count_as_distance():
    batch = batch_of()
    batch.action_is_pad = torch.zeros_like(batch.action_is_pad)
    batch.action_is_pad[:, 3:] = True
    batch.actions[:, 3:] = torch.randn(24, 3, batch.actions.shape[2], generator=torch.Generator().manual_seed(0)) * 50
    assert len(draw_partners(batch, MIX)[0]) > 8


def test_an_objective_says_whether_its_actions_may_be_averaged():
    class Deaf(Objective):
        reads, decomposes = (), True

        def counts(self, batch):
            return {}

        def forward(self, batch, clock, counts):
            return {}

    check_mixup(OFF, Deaf())
    check_mixup(MIX, ImitationConfig().build(build_policy(PolicyConfig())))
    with pytest.raises(UsageError, match="Deaf does not declare that it may learn from averaged actions") as error:
        check_mixup(MIX, Deaf())
    assert "\n" not in str(error.value)
