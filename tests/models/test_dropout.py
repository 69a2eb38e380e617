"""Dropout with four elements of the mask out of each draw: the share, the scale, the seed, the gradient; where it is not torch's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from deftly.models.dropout import LEVELS, Dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_share_and_scale(p: float) -> None:
    torch.manual_seed(0)
    out = Dropout(p)(torch.ones(4, 250_003))
    kept = out != 0
    assert abs(float(kept.float().mean()) - (1 - p)) < 5 * (p * (1 - p) / out.numel()) ** 0.5 + 1 / LEVELS
    assert torch.allclose(out[kept], torch.tensor(1 / (1 - p)), rtol=1e-4 / (1 - p))
    assert abs(float(out.mean()) - 1) < 0.01


def test_neighbours_are_independent() -> None:
    """Four elements come out of one draw: each place among the four is dropped as often, whatever the others are."""
    torch.manual_seed(0)
    kept = (Dropout(0.5)(torch.ones(400_000)) != 0).reshape(-1, 4).float()
    assert torch.allclose(kept.mean(0), torch.full((4,), 0.5), atol=0.01)
    assert torch.allclose(torch.corrcoef(kept.T), torch.eye(4), atol=0.02)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=0, max_size=3), st.floats(0, 1), st.integers(0, 2**31))
def test_any_shape_and_share(shape: list[int], p: float, seed: int) -> None:
    maps = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    layer = Dropout(p)
    torch.manual_seed(seed)
    out = layer(maps)
    assert out.shape == maps.shape
    assert bool(torch.isfinite(out).all())
    torch.manual_seed(seed)
    assert torch.equal(out, layer(maps))
    (gradient,) = torch.autograd.grad(out.sum(), maps)
    assert torch.equal(out, maps * gradient), "what is dropped learns nothing, what is kept is scaled alike in both directions"
    assert torch.equal(layer.eval()(maps), maps)


def test_the_ends() -> None:
    ones = torch.ones(1000)
    assert torch.equal(Dropout(0.0)(ones), ones)
    assert torch.equal(Dropout(1.0)(ones), torch.zeros(1000))


def test_another_seed_is_another_mask() -> None:
    layer, ones = Dropout(0.5), torch.ones(1000)
    masks = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        masks.append(layer(ones) != 0)
    assert abs(float((masks[0] == masks[1]).float().mean()) - 0.5) < 0.1
    assert not torch.equal(layer(ones), layer(ones)), "the next call goes on in the stream"


def test_recomputed_it_drops_the_same() -> None:
    layer, maps = Dropout(0.5), torch.randn(64, 64, requires_grad=True)
    gradients: list[Tensor] = []
    for is_recomputed in (False, True):
        torch.manual_seed(0)
        out = checkpoint(lambda x: layer(x).square(), maps, use_reentrant=False) if is_recomputed else layer(maps).square()
        assert isinstance(out, Tensor)
        gradients.append(torch.autograd.grad(out.sum(), maps)[0])
    assert torch.equal(*gradients)
