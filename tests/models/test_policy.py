"""What a policy promises: masks mean what they say, sampling is counted, a saved config rebuilds it."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from batches import ACTION, CAMERAS, SIZE, STATE, VOCABULARY, build_policy, changed_where_masked, contract_of, random_batch
from deftly.contract import RelativeActions, Window
from deftly.models.heads import FlowMatchingConfig, RegressionConfig
from deftly.models.language import TextConfig
from deftly.models.policies import parse_policy
from deftly.models.policy import PolicyConfig
from deftly.models.vision import CNNConfig
from deftly.types import Batch, Clock, Tokens, UsageError

SMALL = {"vision": CNNConfig(widths=(8, 16), keypoints=4), "text": TextConfig(dim=16, heads=2), "width": 32}
HEADS = {"regression": RegressionConfig(), "flow": FlowMatchingConfig(width=32, blocks=1, euler_steps=3)}
CLOCK = Clock(3, 10)


@pytest.fixture(params=list(HEADS))
def policy(request: pytest.FixtureRequest):
    return build_policy(PolicyConfig(**SMALL, head=HEADS[request.param])).eval()


def sampled(policy, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        return policy.sample(policy.encode(batch), batch.key)


def test_shapes_and_finite(policy) -> None:
    batch = random_batch(5)
    assert sampled(policy, batch).shape == (5, 6, ACTION)
    loss = policy(batch, CLOCK).actions
    assert loss.shape == (5, 6, ACTION)
    assert bool(loss.isfinite().all())
    features = policy.encode(batch)
    assert features.tokens.shape[:2] == features.is_pad.shape


def test_text_padding_never_matters(policy) -> None:
    batch = random_batch()
    batch.text.is_pad[:, 4:] = True
    other = dataclasses.replace(batch, text=Tokens(ids=batch.text.ids.clone(), is_pad=batch.text.is_pad))
    other.text.ids[:, 4:] = 7
    shorter = dataclasses.replace(batch, text=Tokens(ids=batch.text.ids[:, :4], is_pad=batch.text.is_pad[:, :4]))
    assert torch.equal(sampled(policy, batch), sampled(policy, other))
    torch.testing.assert_close(sampled(policy, batch), sampled(policy, shorter), rtol=1e-5, atol=1e-6)


def test_empty_sentence_is_finite(policy) -> None:
    batch = random_batch()
    batch.text.is_pad[:] = True
    assert bool(sampled(policy, batch).isfinite().all())


@pytest.mark.parametrize("what", ["observation", "past_action", "state_dim", "camera", "text"])
def test_masked_inputs_never_matter(policy, what: str) -> None:
    batch, changed = changed_where_masked(what)
    assert torch.equal(sampled(policy, batch), sampled(policy, changed))


@pytest.mark.parametrize("what", ["sentence", "head", "wrist", "state", "past_actions"])
def test_every_input_matters(policy, what: str) -> None:
    batch = random_batch()
    changed = batch.map(torch.clone)
    if what == "sentence":
        changed.text.ids[:] = (changed.text.ids + 1) % VOCABULARY
    elif what in CAMERAS:
        changed.images[what][:] = 255 - changed.images[what]
    else:
        getattr(changed, what).add_(1.0)
    # a flow head starts as zero velocity; its features show what arrives
    assert not torch.allclose(policy.encode(batch).pooled, policy.encode(changed).pooled, atol=1e-4)


def test_sampling_is_a_function_of_the_key_not_of_the_batch(policy) -> None:
    batch = random_batch(6)
    whole = sampled(policy, batch)
    assert torch.equal(whole, sampled(policy, batch))
    alone = sampled(policy, batch.map(lambda tensor: tensor[2:3]))
    torch.testing.assert_close(whole[2:3], alone, rtol=1e-4, atol=1e-5)


def test_flow_noise_depends_on_key_and_step_only() -> None:
    policy = build_policy(PolicyConfig(**SMALL, head=HEADS["flow"]))
    batch = random_batch()
    assert torch.equal(policy(batch, CLOCK).actions, policy(batch, CLOCK).actions)
    assert not torch.equal(policy(batch, CLOCK).actions, policy(batch, Clock(4, 10)).actions)
    half = policy(batch.map(lambda tensor: tensor[:2]), CLOCK).actions
    torch.testing.assert_close(policy(batch, CLOCK).actions[:2], half, rtol=1e-4, atol=1e-5)


def test_flow_head_learns_both_modes_where_regression_takes_the_middle() -> None:
    """Actions are +1 or -1 with equal chance: samples of a flow sit at the modes, the squared-error answer sits between them."""
    torch.manual_seed(0)
    window = Window(frames=1, chunk=2)
    batch = random_batch(128, window)
    sign = torch.where(torch.arange(128) % 2 == 0, 1.0, -1.0)
    batch = dataclasses.replace(batch, actions=sign[:, None, None].expand(-1, 2, ACTION).contiguous())
    pooled = torch.zeros(128, 8)
    results = {}
    for head in (FlowMatchingConfig(width=64, blocks=2, euler_steps=20), RegressionConfig(loss="mse")):
        module = head.build(features=8, chunk=2, action_dim=ACTION)
        optimizer = torch.optim.AdamW(module.parameters(), 3e-3)
        for step in range(300):
            optimizer.zero_grad()
            module.loss(pooled, batch, Clock(step, 300)).mean().backward()
            optimizer.step()
        with torch.no_grad():
            results[head.kind] = module.sample(pooled, batch.key)
    assert float(results["regression"].abs().max()) < 0.3
    near_a_mode = (results["flow_matching"].abs() - 1).abs() < 0.35
    assert float(near_a_mode.float().mean()) > 0.85
    assert 0.25 < float((results["flow_matching"] > 0).float().mean()) < 0.75


def test_config_round_trip_and_closed() -> None:
    config = PolicyConfig(**SMALL, head=HEADS["flow"])
    assert parse_policy(config.to_dict()) == config
    first, second = build_policy(config), build_policy(parse_policy(config.to_dict()))
    assert {n: p.shape for n, p in first.named_parameters()} == {n: p.shape for n, p in second.named_parameters()}
    with pytest.raises(UsageError, match="did you mean 'width'"):
        parse_policy({**config.to_dict(), "widht": 3})
    with pytest.raises(UsageError, match="head"):
        parse_policy({**config.to_dict(), "head": {"kind": "telepathy"}})


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="fewer stages"):
        CNNConfig(widths=(8, 8, 8, 8)).build(image_size=SIZE, text_dim=8)
    with pytest.raises(ValueError, match="multiple of heads"):
        TextConfig(dim=20, heads=3)


def test_past_actions_are_not_an_input_unless_asked() -> None:
    window = Window(frames=2, chunk=6, past_actions=False)
    policy = build_policy(PolicyConfig(**SMALL), window)
    batch = random_batch(window=window)
    changed = dataclasses.replace(batch, past_actions=batch.past_actions + 5)
    assert torch.equal(sampled(policy, batch), sampled(policy, changed))


def test_keypoints_find_a_planted_dot() -> None:
    """The spatial softmax of a map with one bright pixel is that pixel's coordinate."""
    encoder = CNNConfig(widths=(4,), keypoints=4).build(image_size=SIZE, text_dim=8)
    torch.nn.init.eye_(encoder.to_keypoints.weight.data[:, :, 0, 0])
    torch.nn.init.zeros_(encoder.to_keypoints.bias)
    maps = torch.zeros(1, 4, 5, 9)
    maps[0, 1, 4, 2] = 80.0
    points = encoder.keypoints(maps)[0]
    torch.testing.assert_close(points[[1, 5]], torch.tensor([-0.5, 1.0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(points[[0, 4]], torch.zeros(2), atol=1e-5, rtol=0)


def test_a_state_free_robot_is_possible() -> None:
    policy = PolicyConfig(**SMALL).build(contract_of(Window(chunk=2), cameras=("head",), state_dim=0), VOCABULARY)
    batch = random_batch(window=Window(chunk=2))
    batch = dataclasses.replace(batch, state=batch.state[:, :, :0], state_dim_is_pad=batch.state_dim_is_pad[:, :0])
    assert STATE > 0
    assert sampled(policy, batch).shape == (4, 2, ACTION)


def test_wrist_cameras_may_have_an_encoder_of_their_own() -> None:
    coarse = CNNConfig(stem_stride=8, widths=(8,), keypoints=2)
    policy = build_policy(PolicyConfig(**SMALL, wrist=coarse))
    assert policy.vision["wrist"].out_dim == 2 * 2 + 8
    assert policy.vision["head"].out_dim == 2 * 4 + 16
    assert sampled(policy, random_batch()).shape == (4, 6, ACTION)


def test_a_residual_policy_that_has_learnt_nothing_repeats_the_last_action() -> None:
    """And counts its loss from there, masked dimensions and unknown actions aside."""
    policy = build_policy(PolicyConfig(**SMALL, residual=True, head=RegressionConfig(zero_start=True))).eval()
    batch = random_batch()
    batch.past_action_is_pad[0] = True
    batch.action_dim_is_pad[:, 2] = True
    last = batch.past_actions[:, -1].masked_fill(batch.action_dim_is_pad, 0)
    last[0] = 0
    assert torch.equal(sampled(policy, batch), last[:, None].expand(-1, 6, -1))
    error = (batch.actions - last[:, None]).abs().masked_fill(batch.action_dim_is_pad[:, None], 0)
    torch.testing.assert_close(policy(batch, CLOCK).actions, error)


@pytest.mark.parametrize("head", list(HEADS))
def test_a_residual_policy_moves_with_its_last_action(head: str) -> None:
    """What the head has learnt is a change: the sample minus the last action is what the head says."""
    policy = build_policy(PolicyConfig(**SMALL, residual=True, head=HEADS[head])).eval()
    batch = random_batch()
    with torch.no_grad():
        change = policy.head.sample(policy.encode(batch).pooled, batch.key)
    torch.testing.assert_close(sampled(policy, batch) - batch.past_actions[:, -1:], change)


def test_a_residual_policy_needs_past_actions() -> None:
    with pytest.raises(UsageError, match=r"set data\.window\.past_actions"):
        build_policy(PolicyConfig(**SMALL, residual=True), Window(frames=1, chunk=6))


def test_a_residual_policy_needs_actions_as_recorded() -> None:
    window = Window(frames=2, chunk=6, past_actions=True)
    relative = contract_of(window).replace(actions=RelativeActions(kind="relative", state_of=(0,) * ACTION))
    with pytest.raises(UsageError, match=r"data\.actions\.kind"):
        PolicyConfig(**SMALL, residual=True).build(relative, VOCABULARY)


def test_robots_are_told_apart_and_what_one_lacks_never_matters() -> None:
    window = Window(frames=2, chunk=6, past_actions=True)
    contract = contract_of(window).replace(num_robots=2, widths=(STATE + 2, ACTION + 1))
    torch.manual_seed(0)
    policy = PolicyConfig(**SMALL).build(contract, VOCABULARY).eval()

    def widened(fill: float) -> Batch:
        batch = random_batch(4)
        pad = torch.nn.functional.pad
        return dataclasses.replace(
            batch,
            state=pad(batch.state, (0, 2), value=fill),
            state_dim_is_pad=pad(batch.state_dim_is_pad, (0, 2), value=True),
            past_actions=pad(batch.past_actions, (0, 1), value=fill),
            actions=pad(batch.actions, (0, 1), value=fill),
            action_dim_is_pad=pad(batch.action_dim_is_pad, (0, 1), value=True),
        )

    batch = widened(0.0)
    assert torch.equal(sampled(policy, batch), sampled(policy, widened(7.0)))
    other = dataclasses.replace(batch, embodiment=torch.ones_like(batch.embodiment))
    assert not torch.equal(sampled(policy, batch), sampled(policy, other))
    loss, same = (((policy(b, CLOCK).actions * b.valid_actions()).sum()) for b in (batch, widened(7.0)))
    assert torch.equal(loss, same)
