"""LPIPS, perceptual distance of two images (Zhang et al. 2018, arXiv:1801.03924, equation 1).

    d(x, y) = sum over layers l of  mean over positions h, w of  sum over channels c of
              w_lc * (x_lhwc / |x_lhw| - y_lhwc / |y_lhw|)^2

The layers are ReLU outputs of torchvision's VGG-16 or AlexNet; the weights w, fitted to human judgements
(version 0.1), are those in torchmetrics. Backbones are read from safetensors, since torchvision is not
available for every torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from dreambooth_core.errors import ModelError, one_line
from dreambooth_core.hub import pinned

if TYPE_CHECKING:
    from PIL.Image import Image

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Mean and deviation of the colours, of images in [-1, 1]."""
EPSILON = 1e-10
"""Added to a norm before division."""


class Convolution(NamedTuple):
    """A convolution of torchvision's `features`, followed by a ReLU."""

    number: int
    """Index in `features`."""
    stride: int = 1
    padding: int = 1


@dataclass(frozen=True)
class Backbone:
    """A backbone architecture."""

    heads: str
    """File of the layers' weights w."""
    blocks: tuple[tuple[Convolution, ...], ...]
    """Blocks of convolutions; each block's output is a layer of the distance."""
    pool: int
    """Side of the max-pooling window; stride 2."""
    pooled: frozenset[int]
    """Blocks preceded by pooling."""
    first: tuple[int, ...]
    """Shape of the first convolution's weights, which identifies the backbone."""


VGG = Backbone(
    heads="vgg.pth",
    blocks=tuple(
        tuple(Convolution(index) for index in block)
        for block in ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
    ),
    pool=2,
    pooled=frozenset({1, 2, 3, 4}),
    first=(64, 3, 3, 3),
)
ALEXNET = Backbone(
    heads="alex.pth",
    blocks=(
        (Convolution(0, 4, 2),),
        (Convolution(3, 1, 2),),
        (Convolution(6),),
        (Convolution(8),),
        (Convolution(10),),
    ),
    pool=3,
    pooled=frozenset({1, 2}),
    first=(64, 3, 11, 11),
)


class LpipsNetwork:
    """A loaded LPIPS network."""

    def __init__(self, source: str, revision: str | None) -> None:
        """Load a folder's or Hub id's `model.safetensors`; raises `ModelError` for other networks."""
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        weights = _backbone(source, revision)
        self._layout = _layout(weights, source)
        self._weights = {name: value.float().to(self._device) for name, value in weights.items()}
        self._heads = [head.to(self._device) for head in _heads(self._layout)]

    @torch.inference_mode()
    def features(self, image: "Image") -> list[Tensor]:
        """Per layer (channels, height, width), channels normalised and scaled by sqrt(w)."""
        signal = self._normalised(image)
        found = []
        for number, block in enumerate(self._layout.blocks):
            if number in self._layout.pooled:
                signal = functional.max_pool2d(signal, self._layout.pool, 2)
            for index, stride, padding in block:
                signal = functional.relu(
                    functional.conv2d(
                        signal,
                        self._weights[f"features.{index}.weight"],
                        self._weights[f"features.{index}.bias"],
                        stride=stride,
                        padding=padding,
                    )
                )
            norm = signal.square().sum(dim=1, keepdim=True).sqrt()
            found.append((signal / (norm + EPSILON) * self._heads[number].sqrt())[0])
        return found

    def _normalised(self, image: "Image") -> Tensor:
        """(1, 3, height, width)"""
        import numpy as np

        values = torch.from_numpy(np.array(image.convert("RGB"))).to(self._device)
        pixels = values.permute(2, 0, 1)[None].float() / 127.5 - 1
        shift, scale = (pixels.new_tensor(numbers)[:, None, None] for numbers in (SHIFT, SCALE))
        return (pixels - shift) / scale


def distance(left: list[Tensor], right: list[Tensor]) -> float:
    """LPIPS, 0 or more, of two images of equal size by their `LpipsNetwork.features`."""
    layers = zip(left, right, strict=True)
    return float(sum((a - b).square().sum(dim=0).mean().double() for a, b in layers))


def _layout(weights: Mapping[str, Tensor], source: str) -> Backbone:
    for layout in (VGG, ALEXNET):
        wanted = [convolution.number for block in layout.blocks for convolution in block]
        names = {f"features.{index}.{part}" for index in wanted for part in ("weight", "bias")}
        if names <= weights.keys() and tuple(weights["features.0.weight"].shape) == layout.first:
            return layout
    raise ModelError(
        f"{source} is neither torchvision's VGG-16 nor its AlexNet: set evaluation.lpips to one of "
        "them in safetensors, such as timm/vgg16.tv_in1k"
    )


def _backbone(source: str, revision: str | None) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(source)
    try:
        path = folder / "model.safetensors" if folder.is_dir() else _fetched(source, revision)
        return dict(load_file(path))
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(
            f"no LPIPS backbone at {source}: set evaluation.lpips to a folder or a Hub id with "
            f"model.safetensors ({one_line(error, 200)})"
        ) from error


def _fetched(source: str, revision: str | None) -> str:
    from huggingface_hub import hf_hub_download

    commit = pinned(source, revision)
    return str(hf_hub_download(source, "model.safetensors", revision=commit))


def _heads(layout: Backbone) -> list[Tensor]:
    """The weights w per layer, (channels, 1, 1), at least 0."""
    found = find_spec("torchmetrics")
    if found is None or found.origin is None:
        raise ModelError("LPIPS needs torchmetrics, which contains its layer weights: install it")
    path = Path(found.origin).parent / "functional/image/lpips_models" / layout.heads
    try:
        heads = torch.load(path, map_location="cpu", weights_only=True)
        return [heads[f"lin{n}.model.1.weight"][0].clamp(min=0) for n in range(len(layout.blocks))]
    except (OSError, KeyError) as error:
        raise ModelError(
            f"the installed torchmetrics has no LPIPS weights at {path}: install torchmetrics 1.9"
        ) from error
