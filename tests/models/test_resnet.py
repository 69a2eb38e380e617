"""The ResNet computes what convolution, frozen norm and ReLU would one by one, and takes torchvision's names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from deftly.models.resnet import IMAGENET_MEAN, IMAGENET_STD, ResNet, ResNetConfig
from deftly.types import DataError
from guards import guards

SMALL = ResNetConfig(widths=(4, 6), blocks=2)


def torchvision_like(config: ResNetConfig = SMALL) -> dict[str, Tensor]:
    """Random weights by torchvision's names, norms that do something, a classifier that nobody needs."""
    torch.manual_seed(1)
    found = {"fc.weight": torch.randn(10, config.widths[-1]), "fc.bias": torch.randn(10)}
    for convolution, conv, norm in ResNet(config, 32).names():
        found[f"{conv}.weight"] = torch.randn_like(convolution.weight) * 0.1
        found |= {f"{norm}.weight": torch.rand_like(convolution.scale) + 0.5, f"{norm}.bias": torch.randn_like(convolution.scale)}
        found |= {f"{norm}.running_mean": torch.randn_like(convolution.scale), f"{norm}.running_var": torch.rand_like(convolution.scale)}
        found[f"{norm}.num_batches_tracked"] = torch.tensor(7)
    return found


def reference(images: Tensor, w: Mapping[str, Tensor], config: ResNetConfig = SMALL) -> Tensor:
    """torchvision's resnet with FrozenBatchNorm2d, written out."""

    def norm(x: Tensor, at: str) -> Tensor:
        return F.batch_norm(x, w[f"{at}.running_mean"], w[f"{at}.running_var"], w[f"{at}.weight"], w[f"{at}.bias"], eps=1e-5)

    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    x = F.relu(norm(F.conv2d((images / 255 - mean) / std, w["conv1.weight"], stride=2, padding=3), "bn1"))
    x = F.max_pool2d(x, 3, 2, 1)
    for i in range(len(config.widths)):
        for j in range(config.blocks):
            at, stride = f"layer{i + 1}.{j}", 2 if i and not j else 1
            y = F.relu(norm(F.conv2d(x, w[f"{at}.conv1.weight"], stride=stride, padding=1), f"{at}.bn1"))
            y = norm(F.conv2d(y, w[f"{at}.conv2.weight"], padding=1), f"{at}.bn2")
            if f"{at}.downsample.0.weight" in w:
                x = norm(F.conv2d(x, w[f"{at}.downsample.0.weight"], stride=stride), f"{at}.downsample.1")
            x = F.relu(x + y)
    return x


def test_weights_by_torchvisions_names_give_torchvisions_maps(tmp_path: Path) -> None:
    save_file(torchvision_like(), tmp_path / "resnet.safetensors")
    network, images = SMALL.build(image_size=37), torch.randint(0, 256, (2, 3, 37, 37), dtype=torch.uint8)
    network.load_torchvision(load_file(tmp_path / "resnet.safetensors"), "resnet.safetensors")
    expected = reference(images, torchvision_like())
    torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-4)
    assert expected.shape == (2, network.width, network.side, network.side)


def test_the_default_is_a_resnet_18() -> None:
    network = ResNetConfig().build(image_size=224)
    assert network.side == 7
    assert sum(p.numel() for p in network.parameters()) == 11_166_912  # torchvision's 11 689 512 without norms and classifier
    assert len(list(network.names())) == 20


@guards("models.resnet.missing", "models.resnet.shape", "models.resnet.larger")
@pytest.mark.parametrize("fault", ["missing", "shape", "larger"])
def test_weights_that_do_not_fit_are_refused(fault: str) -> None:
    tensors = torchvision_like()
    if fault == "missing":
        del tensors["bn1.bias"]
    elif fault == "shape":
        tensors["layer1.0.conv1.weight"] = torch.zeros(1)
    else:
        tensors["layer1.2.conv1.weight"] = torch.zeros(1)
    wanted = {
        "missing": "no 'bn1.bias'",
        "shape": r"layer1\.0\.conv1.* has shape \(1,\)",
        "larger": r"'layer1\.2\.conv1\.weight' has no place",
    }
    with pytest.raises(DataError, match=wanted[fault]):
        SMALL.build(image_size=32).load_torchvision(tensors, "weights.safetensors")
