"""What ACT promises beside what every policy does: masks, a counted latent, the KL as a term of its own, the paper's arithmetic."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from batches import ACTION, STATE, VOCABULARY, WINDOW, changed_where_masked, contract_of, random_batch
from deftly.config import read_object
from deftly.contract import Window
from deftly.models.act import ACTConfig, ACTPolicy
from deftly.models.attention import Attention, DecoderLayer, EncoderLayer, sinusoids, sinusoids_2d
from deftly.models.language import TextConfig
from deftly.models.policies import parse_policy
from deftly.models.policy import PolicyConfig
from deftly.models.resnet import ResNetConfig
from deftly.objectives.imitation import ImitationConfig
from deftly.types import Batch, Clock, Tokens, UsageError
from guards import guards

SMALL = ACTConfig(
    vision=ResNetConfig(widths=(8, 8, 16), blocks=1), text=TextConfig(dim=16, heads=2), width=16, heads=2, hidden=24, encoder_layers=2
)
CLOCK = Clock(3, 10)


def build(config: ACTConfig = SMALL, window: Window = WINDOW) -> ACTPolicy:
    torch.manual_seed(0)
    return config.build(contract_of(window), VOCABULARY)


def sampled(policy: ACTPolicy, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        return policy.eval().sample(policy.encode(batch), batch.key)


@pytest.mark.parametrize("what", ["observation", "past_action", "state_dim", "camera", "text", "action", "action_dim"])
def test_what_is_masked_changes_neither_action_nor_loss_nor_gradient(what: str) -> None:
    policy = build(SMALL.replace(dropout=0.0))
    objective = ImitationConfig().build(policy)
    batches = changed_where_masked(what)
    assert torch.equal(*(sampled(policy, batch) for batch in batches))
    gradients = []
    for batch in batches:
        policy.train().zero_grad()
        terms = objective(batch, CLOCK, objective.counts(batch))
        sum(term.value * term.weight for term in terms.values()).backward()
        gradients.append({name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None})
    first, second = gradients
    assert len(first) > 50
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("what", ["sentence", "head", "wrist", "state", "past_actions"])
def test_every_input_matters(what: str) -> None:
    batch = random_batch()
    changed = batch.map(torch.clone)
    if what == "sentence":
        changed.text.ids[:] = (changed.text.ids + 1) % VOCABULARY
    elif what in ("head", "wrist"):
        changed.images[what][:] = 255 - changed.images[what]
    else:
        getattr(changed, what).add_(1.0)
    policy = build()
    assert not torch.allclose(sampled(policy, batch), sampled(policy, changed), atol=1e-5)


def test_without_text_no_sentence_is_heard() -> None:
    policy, batch = build(SMALL.replace(text=None)), random_batch()
    other = dataclasses.replace(batch, text=Tokens(ids=batch.text.ids + 1, is_pad=batch.text.is_pad))
    assert torch.equal(sampled(policy, batch), sampled(policy, other))
    assert not any("text" in name for name, _ in policy.named_parameters())


def test_the_latent_is_drawn_in_training_and_zero_when_acting_or_judged() -> None:
    policy, batch = build(SMALL.replace(dropout=0.0)), random_batch()
    assert torch.equal(policy(batch, CLOCK).actions, policy(batch, CLOCK).actions)
    assert not torch.equal(policy(batch, CLOCK).actions, policy(batch, Clock(4, 10)).actions)
    half = policy(batch.map(lambda tensor: tensor[:2]), CLOCK).actions
    torch.testing.assert_close(policy(batch, CLOCK).actions[:2], half, rtol=1e-4, atol=1e-5)
    policy.eval()
    judged = policy(batch, CLOCK)
    assert judged.regularizers == {}
    assert batch.actions is not None
    torch.testing.assert_close(judged.actions, (sampled(policy, batch) - batch.actions).abs())
    acting = dataclasses.replace(batch, actions=None, action_is_pad=None)
    assert torch.equal(sampled(policy.train(), acting), sampled(policy, batch))


def test_the_divergence_is_a_term_with_its_weight_and_count() -> None:
    policy = build(SMALL.replace(kl_weight=3.0, dropout=0.0))
    objective, batch = ImitationConfig().build(policy), random_batch()
    batch = dataclasses.replace(batch, weight=torch.tensor([1.0, 0.5, 2.0, 0.0]))
    term = objective(batch, CLOCK, objective.counts(batch))["kl"]
    mean, log_variance = policy.infer(batch).chunk(2, dim=1)
    normal = torch.distributions.Normal
    each = torch.distributions.kl_divergence(normal(mean, (log_variance / 2).exp()), normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(term.value, (each * batch.weight).sum() / 3.5)
    assert term.weight == 3.0
    plain = ImitationConfig().build(build(SMALL.replace(vae_layers=0)))
    assert set(plain(batch, CLOCK, plain.counts(batch))) == {"action"} == set(plain.counts(batch))


def test_attention_is_torchs_own() -> None:
    torch.manual_seed(0)
    ours, reference = Attention(16, 4, 0.0), torch.nn.MultiheadAttention(16, 4, batch_first=True)
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([ours.to_query.weight, ours.to_key.weight, ours.to_value.weight]))
        reference.in_proj_bias.copy_(torch.cat([ours.to_query.bias, ours.to_key.bias, ours.to_value.bias]))
        reference.out_proj.load_state_dict(ours.to_out.state_dict())
    queries, keys, values = torch.randn(1, 5, 16), torch.randn(3, 7, 16), torch.randn(3, 7, 16)
    is_pad = torch.arange(7)[None] >= torch.tensor([7, 4, 1])[:, None]
    expected = reference(queries.expand(3, -1, -1), keys, values, key_padding_mask=is_pad)[0]
    torch.testing.assert_close(ours(queries, keys, values, is_pad), expected, rtol=1e-5, atol=1e-6)


def test_tokens_that_nobody_reads_are_left_out_and_nothing_else_changes() -> None:
    torch.manual_seed(0)
    layer, tokens, position = EncoderLayer(16, 4, 24, 0.0), torch.randn(3, 7, 16), torch.randn(7, 16)
    torch.testing.assert_close(layer(tokens, position, first=2), layer(tokens, position)[:, :2], rtol=1e-5, atol=1e-6)
    decoder, queries = DecoderLayer(16, 4, 24, 0.0), torch.randn(1, 5, 16)
    each = decoder(queries.expand(3, -1, -1), position[:5], tokens, tokens + position)
    torch.testing.assert_close(decoder(queries, position[:5], tokens, tokens + position), each, rtol=1e-5, atol=1e-6)


def test_positions_tell_every_cell_from_every_other() -> None:
    places = sinusoids_2d(4, 32)
    assert places.shape == (16, 32)
    assert float((torch.cdist(places, places) + 9 * torch.eye(16)).min()) > 0.5
    assert torch.equal(places[:4, :16], places[:1, :16].expand(4, -1)), "cells of a row share the half that says which row"
    torch.testing.assert_close(
        sinusoids(torch.tensor([2.0]), 4)[0, :2],
        torch.tensor([2.0]).sin().repeat(2).where(torch.tensor([True, False]), torch.tensor([2.0]).cos()),
    )


def test_it_learns_from_pixels_which_way_to_go() -> None:
    """Bright images mean +1, dark ones -1: after a few steps the policy that acts (latent 0) says so."""
    window = Window(frames=1, chunk=3)
    policy = build(SMALL.replace(dropout=0.0, vae_layers=1), window)
    batch = random_batch(16, window)
    bright = torch.arange(16) % 2 == 0
    assert batch.actions is not None
    batch = dataclasses.replace(
        batch,
        images={name: torch.where(bright[:, None, None, None, None], image // 4 + 190, image // 4) for name, image in batch.images.items()},
        actions=torch.where(bright, 1.0, -1.0)[:, None, None].expand_as(batch.actions).contiguous(),
    )
    objective = ImitationConfig().build(policy)
    optimizer = torch.optim.AdamW(objective.parameters(), 3e-3)
    for step in range(40):
        optimizer.zero_grad()
        sum(term.value * term.weight for term in objective(batch, Clock(step, 40), objective.counts(batch)).values()).backward()
        optimizer.step()
    assert float((sampled(policy, batch) - batch.actions).abs().mean()) < 0.2


def test_a_robot_without_state_is_possible() -> None:
    policy = SMALL.build(contract_of(Window(chunk=2), cameras=("head",), state_dim=0), VOCABULARY)
    batch = random_batch(window=Window(chunk=2))
    assert STATE > 0
    batch = dataclasses.replace(batch, state=batch.state[:, :, :0], state_dim_is_pad=batch.state_dim_is_pad[:, :0])
    assert policy(batch, CLOCK).actions.shape == sampled(policy, batch).shape == (4, 2, ACTION)


def test_robots_are_told_apart() -> None:
    policy = SMALL.build(contract_of(WINDOW).replace(num_robots=2), VOCABULARY)
    batch = random_batch()
    other = dataclasses.replace(batch, embodiment=torch.ones_like(batch.embodiment))
    assert not torch.equal(sampled(policy, batch), sampled(policy, other))


def test_a_saved_config_finds_its_kind_and_older_ones_had_none(tmp_path) -> None:
    for config in (SMALL, PolicyConfig(width=16)):
        (tmp_path / "policy.json").write_text(config.to_json())
        assert parse_policy(read_object(tmp_path / "policy.json")) == config
    older = PolicyConfig(width=16).to_dict()
    del older["kind"]
    assert parse_policy(older) == PolicyConfig(width=16)
    with pytest.raises(UsageError, match="did you mean 'hidden'"):
        parse_policy({**SMALL.to_dict(), "hiden": 3})
    with pytest.raises(UsageError, match="kind 'diffusion'"):
        parse_policy({"kind": "diffusion"})
    with pytest.raises(UsageError, match="not a multiple of 4 and of heads"):
        SMALL.replace(width=18)


@guards("models.act.no_vae")
def test_sizes_that_cannot_be_and_settings_without_effect_are_refused() -> None:
    for name, value in (("latent", 7), ("kl_weight", 3.0)):
        with pytest.raises(UsageError, match=f"{name} is of the CVAE"):
            SMALL.replace(vae_layers=0, **{name: value})
    for widths in ((), (0,), (8, -4)):
        with pytest.raises(UsageError, match="widths"):
            SMALL.vision.replace(widths=widths)
