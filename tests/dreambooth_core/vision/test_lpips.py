"""LPIPS against a slow reference and torchmetrics' network, with random backbones.

The pretrained weights are not available, so that absolute values of real images are not tested.
"""

from importlib.util import find_spec
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from safetensors.torch import save_file
from torch import nn

from dreambooth_core.errors import ModelError
from dreambooth_core.vision.lpips import LpipsNetwork, distance
from tests.random_backbones import SHAPES, build


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp("backbones")
    return {name: build(name, home / name) for name in SHAPES}


@pytest.fixture(scope="module")
def networks(folders):
    return {name: LpipsNetwork(str(folder), None) for name, folder in folders.items()}


def picture(seed: int, size=(40, 35)) -> Image.Image:
    blots = np.random.default_rng(seed).integers(0, 255, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(blots).resize(size, Image.Resampling.BICUBIC)


def distance_of(network: LpipsNetwork, left: Image.Image, right: Image.Image) -> float:
    return distance(network.features(left), network.features(right))


def slow_convolution(x, weight, bias, stride, padding):
    """(channels, height, width) by definition, in float64."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    side = weight.shape[-1]
    windows = np.lib.stride_tricks.sliding_window_view(x, (side, side), axis=(1, 2))
    windows = windows[:, ::stride, ::stride]
    return np.einsum("chwij,ocij->ohw", windows, weight, optimize=True) + bias[:, None, None]


def slow_pool(x, side):
    windows = np.lib.stride_tricks.sliding_window_view(x, (side, side), axis=(1, 2))
    return windows[:, ::2, ::2].max(axis=(3, 4))


def slow_lpips(name, folder, left, right):
    """Equation 1 of the paper, implemented independently."""
    from safetensors.numpy import load_file

    weights = {
        key: value.astype(np.float64)
        for key, value in load_file(folder / "model.safetensors").items()
    }
    home = Path(find_spec("torchmetrics").origin).parent / "functional/image/lpips_models"
    heads = torch.load(home / f"{name}.pth", map_location="cpu", weights_only=True)
    geometry = {0: (4, 2), 3: (1, 2)} if name == "alex" else {}
    tapped = (0, 3, 6, 8, 10) if name == "alex" else (2, 7, 14, 21, 28)
    pooled = {3: 3, 6: 3} if name == "alex" else {5: 2, 10: 2, 17: 2, 24: 2}

    def layers(image):
        x = np.asarray(image, dtype=np.float64).transpose(2, 0, 1) / 255 * 2 - 1
        x = (x - np.reshape([-0.030, -0.088, -0.188], (3, 1, 1))) / np.reshape(
            [0.458, 0.448, 0.450], (3, 1, 1)
        )
        for index in SHAPES[name]:
            if index in pooled:
                x = slow_pool(x, pooled[index])
            stride, padding = geometry.get(index, (1, 1))
            weight, bias = weights[f"features.{index}.weight"], weights[f"features.{index}.bias"]
            x = np.maximum(slow_convolution(x, weight, bias, stride, padding), 0)
            if index in tapped:
                yield x / np.sqrt((x**2).sum(axis=0))

    total = 0.0
    for number, (a, b) in enumerate(zip(layers(left), layers(right), strict=True)):
        w = heads[f"lin{number}.model.1.weight"].numpy().reshape(-1, 1, 1)
        total += (w * (a - b) ** 2).sum(axis=0).mean()
    return total


@pytest.mark.parametrize("name", SHAPES)
def test_it_equals_the_papers_equation(networks, folders, name):
    left, right = picture(0), picture(1)
    wanted = slow_lpips(name, folders[name], left, right)
    assert wanted > 0.01
    assert distance_of(networks[name], left, right) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_it_equals_torchmetrics(networks, folders, name, monkeypatch):
    """With torchvision's layers and the same random weights."""
    from safetensors.torch import load_file
    from torchmetrics.functional.image import lpips

    def features(net, pretrained):
        made = nn.Sequential()
        for index, (out, into, side) in SHAPES[name].items():
            while len(made) < index:
                made.append(nn.MaxPool2d(3 if name == "alex" else 2, 2))
            stride, padding = {11: (4, 2), 5: (1, 2), 3: (1, 1)}[side]
            made.append(nn.Conv2d(into, out, side, stride, padding))
            made.append(nn.ReLU())
        made.append(nn.MaxPool2d(2, 2))
        weights = load_file(folders[name] / "model.safetensors")
        mine = {key.removeprefix("features."): value for key, value in weights.items()}
        made.load_state_dict({key: mine[key] for key in made.state_dict()})
        return made

    monkeypatch.setattr(lpips, "_get_tv_model_features", features)
    theirs = lpips._LPIPS(net=name, pretrained=True)
    left, right = picture(0), picture(1)
    tensors = [
        torch.from_numpy(np.array(each)).permute(2, 0, 1)[None].float() / 127.5 - 1
        for each in (left, right)
    ]
    with torch.no_grad():
        wanted = float(theirs(*tensors))
    assert distance_of(networks[name], left, right) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("name", SHAPES)
def test_it_is_a_distance(networks, name):
    network = networks[name]
    pictures = [picture(seed) for seed in range(3)]
    assert distance_of(network, pictures[0], pictures[0].copy()) == 0
    for left, right in combinations(pictures, 2):
        assert distance_of(network, left, right) == distance_of(network, right, left) > 0


def test_it_grows_with_blur(networks):
    original = picture(0, (64, 64))
    blurred = [original.filter(ImageFilter.GaussianBlur(radius)) for radius in (1, 3, 9)]
    found = [distance_of(networks["alex"], original, each) for each in blurred]
    assert found == sorted(found)
    assert 0 < found[0] < found[2] < distance_of(networks["alex"], original, picture(1, (64, 64)))


def test_other_networks_are_refused(tmp_path):
    with pytest.raises(ModelError, match="no LPIPS backbone at"):
        LpipsNetwork(str(tmp_path), None)
    save_file({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"neither torchvision's VGG-16 nor its AlexNet"):
        LpipsNetwork(str(tmp_path), None)
    (tmp_path / "model.safetensors").write_bytes(b"PK no tensors")
    with pytest.raises(ModelError, match="no LPIPS backbone at"):
        LpipsNetwork(str(tmp_path), None)
