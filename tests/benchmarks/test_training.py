"""Our half of the training benchmark works on small things, and what lerobot calls its tensors finds its place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import small_data
from deftly.models.act import ACTConfig, ACTPolicy
from deftly.models.resnet import ResNetConfig

REPOSITORY = Path(__file__).parents[2]
TINY = ACTConfig(
    vision=ResNetConfig(widths=(8, 8), blocks=1), text=None, width=16, heads=2, hidden=24, encoder_layers=1, vae_layers=1, dropout=0.1
)


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")


def peer_tensors(policy: ACTPolicy) -> dict[str, Tensor]:
    """Weights as lerobot names and packs them, for our tiny policy."""
    width, hidden, dims, state = 16, 24, policy.action_dim, policy.from_state.in_features if policy.from_state else 0

    def norm_or_linear(name: str, *shape: int) -> dict[str, Tensor]:
        return {f"{name}.weight": torch.randn(*shape), f"{name}.bias": torch.randn(shape[0])}

    found = {f"vae_encoder_{name}": value for name, value in {"cls_embed.weight": torch.randn(1, width)}.items()}
    found |= {"encoder_1d_feature_pos_embed.weight": torch.randn(2, width), "decoder_pos_embed.weight": torch.randn(policy.chunk, width)}
    found |= norm_or_linear("vae_encoder_robot_state_input_proj", width, state) | norm_or_linear(
        "vae_encoder_action_input_proj", width, dims
    )
    found |= norm_or_linear("vae_encoder_latent_output_proj", 64, width) | norm_or_linear("encoder_robot_state_input_proj", width, state)
    found |= norm_or_linear("encoder_latent_input_proj", width, 32) | norm_or_linear("encoder_img_feat_input_proj", width, 8, 1, 1)
    found |= norm_or_linear("action_head", dims, width) | norm_or_linear("decoder.norm", width)
    for stack, attentions, norms in (("vae_encoder", 1, 2), ("encoder", 1, 2), ("decoder", 2, 3)):
        for attention in ("self_attn", "multihead_attn")[:attentions]:
            at = f"{stack}.layers.0.{attention}"
            found |= {f"{at}.in_proj_weight": torch.randn(3 * width, width), f"{at}.in_proj_bias": torch.randn(3 * width)}
            found |= norm_or_linear(f"{at}.out_proj", width, width)
        found |= norm_or_linear(f"{stack}.layers.0.linear1", hidden, width) | norm_or_linear(f"{stack}.layers.0.linear2", width, hidden)
        for number in range(norms):
            found |= norm_or_linear(f"{stack}.layers.0.norm{number + 1}", width)
    for convolution, conv, norm in policy.vision.names():
        found[f"backbone.{conv}.weight"] = torch.randn_like(convolution.weight)
        found |= {
            f"backbone.{norm}.{part}": torch.rand_like(convolution.scale) for part in ("weight", "bias", "running_mean", "running_var")
        }
    return found


def test_every_tensor_of_the_peer_finds_its_place() -> None:
    from act_names import gradients_by_our_names, load_peer
    from steps import Shapes, build

    policy = build(TINY, Shapes(size=32, chunk=5))
    peer = peer_tensors(policy)
    load_peer(policy, peer)
    assert torch.equal(policy.decoder[0].cross.to_key.bias, peer["decoder.layers.0.multihead_attn.in_proj_bias"][16:32])
    assert torch.equal(policy.decoder[0].cross_norm.weight, peer["decoder.layers.0.norm2.weight"])
    assert torch.equal(policy.vision.stem.weight, peer["backbone.conv1.weight"])
    found = gradients_by_our_names(policy, peer)
    own = {name: parameter.shape for name, parameter in policy.named_parameters()}
    assert {name: tensor.shape for name, tensor in found.items()} == {
        n: s for n, s in own.items() if n not in ("camera_embedding", "missing_embedding")
    }
    del peer["action_head.bias"]
    with pytest.raises(AssertionError, match=r"to_actions\.bias"):
        load_peer(policy, peer)


@pytest.mark.parametrize("variant", ["eager", "channels_last", "bf16"])
def test_a_step_trains_in_every_way(variant: str) -> None:
    from steps import Shapes, Step, build, without_dropout

    shapes = Shapes(batch=2, chunk=5, size=32)
    step = Step(build(TINY, shapes), shapes.random_batch(), variant, torch.device("cpu"))
    before = step.objective.policy.state_dict()["to_actions.weight"].clone()
    with without_dropout(step.objective):
        assert torch.equal(step.loss(), step.loss())
    assert not torch.equal(step.loss(), step.loss()), "dropout is back"
    assert bool(step().isfinite())
    assert not torch.equal(step.objective.policy.state_dict()["to_actions.weight"], before)


def test_flops_are_those_of_the_products() -> None:
    from steps import Shapes, Step, build

    from deftly.training.flops import peak_flops

    shapes = Shapes(batch=2, chunk=5, size=32)
    once, twice = (
        Step(build(TINY, s), s.random_batch(), "eager", torch.device("cpu")).flops() for s in (shapes, Shapes(batch=4, chunk=5, size=32))
    )
    assert 1.7 < twice / once <= 2.0, "twice the samples; what is computed once per batch stays"
    assert peak_flops(torch.device("cpu"), torch.float32, 64, 2) > 1e6


def test_steps_on_a_device_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    import device_steps

    device_steps.main(["--quick", "--device", "cpu"])
    found = json.loads(capsys.readouterr().out)
    assert 0 < found["mfu"]["mfu"] < 2
    assert set(found["small_batch"]["seconds"]) == {"eager", "bf16"}


def test_the_trainer_runs_from_the_store_and_from_the_video(tmp_path: Path) -> None:
    import training_ours

    root = small_data.write_dataset(tmp_path / "data")
    side = training_ours.OurTraining()
    started = side.start(str(root), str(tmp_path), image_size=32, chunk=4, batch_size=4, workers=0, policy=TINY.to_dict())
    assert len(started["statistics"]["action"]["std"]) == 4
    policy = side.objective.policy
    assert isinstance(policy, ACTPolicy)
    save_file(peer_tensors(policy), tmp_path / "weights.safetensors")
    for frames in ("store", "video"):
        found = side.sample(frames, str(tmp_path / "weights.safetensors"))
        assert found["loss"] > 0
        assert len(found["rows"]) == len(found["keys"]) == 4
        assert side.train(frames, steps=2)["samples"] == 8
    side.close()
