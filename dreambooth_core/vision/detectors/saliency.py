"""Salient object detection by U2-Net small (Qin et al. 2020, arXiv:2005.09007), without a download.

The packaged weights segment the most conspicuous object of a photo. **The class noun is ignored**: of an
arm with a watch, the arm may be marked. Look at the masks (`dreambooth validate DIR --masks FILE`), or
use a detector that takes the noun. Origin and licence of the weights: NOTICE.md beside this file.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image, Resampling
from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d

from dreambooth_core.errors import ConfigError, ModelError, one_line
from dreambooth_core.vision.detectors import Region
from dreambooth_core.vision.detectors._models import device
from dreambooth_core.vision.detectors.segmenter import largest

if TYPE_CHECKING:
    from dreambooth_core import config

IGNORES_NOUN = True
WEIGHTS = Path(__file__).with_name("u2netp.safetensors")
SIDE = 320
"""Side of the network's square input in pixels, as in training."""
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the input's channels, in [0, 1]."""
LEAST = 0.5
"""Least saliency of a pixel in the mask, in [0, 1]."""
WIDTH, MIDDLE = 64, 16
"""Channels of every stage's output, and inside a stage."""


class ResidualU(nn.Module):
    """A stage of the network (RSU in the paper): a small U-Net, added to its input convolution.

    Batch normalisation is folded into the convolutions. A stage with `pools` halves its maps between
    its levels; one without (RSU-4F) doubles the dilation instead.
    """

    def __init__(self, levels: int, channels: int, pools: bool = True) -> None:
        """`levels`: convolutions of the descending side; `channels`: of the input."""
        super().__init__()
        self.pools = pools
        dilations = [1] * (levels - 1) + [2] if pools else [2**level for level in range(levels)]
        inputs = [WIDTH] + [MIDDLE] * (levels - 1)
        outputs = [MIDDLE] * (levels - 2) + [WIDTH]
        self.enter = _convolution(channels, WIDTH)
        self.down = nn.ModuleList(
            _convolution(width, MIDDLE, dilation)
            for width, dilation in zip(inputs, dilations, strict=True)
        )
        self.up = nn.ModuleList(
            _convolution(2 * MIDDLE, width, dilation)
            for width, dilation in zip(outputs, _ascending(dilations), strict=True)
        )

    def forward(self, maps: Tensor) -> Tensor:
        """(images, channels, h, w) -> (images, WIDTH, h, w)"""
        entered: Tensor = self.enter(maps)
        levels: list[Tensor] = []
        current: Tensor = entered
        for index, convolution in enumerate(self.down):
            # the last two levels have one size
            if self.pools and 0 < index < len(self.down) - 1:
                current = _halved(current)
            current = convolution(current)
            levels.append(current)
        for level, convolution in zip(reversed(levels[:-1]), self.up, strict=True):
            current = convolution(torch.cat((_resized(current, level), level), 1))
        return entered + current


class SaliencyNetwork(nn.Module):
    """U2-Net small: six stages down, five up, and a saliency map per stage, joined to one."""

    def __init__(self) -> None:
        super().__init__()
        shapes = ((7, True), (6, True), (5, True), (4, True), (4, False))
        self.down = nn.ModuleList(
            [
                *(
                    ResidualU(levels, WIDTH if index else 3, pools)
                    for index, (levels, pools) in enumerate(shapes)
                ),
                ResidualU(4, WIDTH, pools=False),
            ]
        )
        self.up = nn.ModuleList(
            ResidualU(levels, 2 * WIDTH, pools) for levels, pools in reversed(shapes)
        )
        self.side = nn.ModuleList(nn.Conv2d(WIDTH, 1, 3, padding=1) for _ in range(6))
        self.join = nn.Conv2d(6, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(images, 3, h, w), normalised -> (images, 1, h, w), saliency in [0, 1]."""
        levels, current = [], images
        for index, stage in enumerate(self.down):
            current = stage(_halved(current) if index else current)
            levels.append(current)
        rising = [current]
        for level, stage in zip(reversed(levels[:-1]), self.up, strict=True):
            current = stage(torch.cat((_resized(current, level), level), 1))
            rising.append(current)
        maps = [side(level) for side, level in zip(self.side, reversed(rising), strict=True)]
        joined: Tensor = self.join(torch.cat([_resized(each, maps[0]) for each in maps], 1))
        return joined.sigmoid()


class SaliencyDetector:
    """The packaged network; images are processed one by one, so that results are independent."""

    unanswered = 0

    def __init__(self, weights: Path = WEIGHTS) -> None:
        """Load it; raises `ModelError` when the file is missing or damaged."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        network = SaliencyNetwork()
        try:
            network.load_state_dict(load_file(weights))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise ModelError(
                f"no saliency network at {weights}: install the package again ({one_line(error, 200)})"
            ) from error
        self._network = network.eval().to(device())

    def find(self, images: Sequence[Image], noun: str) -> list[Region | None]:
        """The largest salient region of each image with its mask, whatever the noun.

        None where no pixel reaches `LEAST`, or the region is too small (`segmenter.LEAST`).
        """
        return [Region.around(largest(self.saliency(image) >= LEAST)) for image in images]

    def saliency(self, image: Image) -> NDArray[np.float32]:
        """(height, width) of the image, in [0, 1]."""
        with torch.inference_mode():
            small = self._network(prepared(image).to(device()))
            whole = interpolate(small, (image.height, image.width), mode="bilinear")
        return np.asarray(whole[0, 0].cpu())


def load(rules: "config.Detector") -> SaliencyDetector:
    """The packaged detector; raises `ConfigError` for a model, which it does not take, and `ModelError`."""
    if rules.model or rules.revision:
        raise ConfigError(
            "evaluation.detector.kind saliency has its own weights: leave evaluation.detector.model "
            "and revision out"
        )
    return SaliencyDetector()


def prepared(image: Image) -> Tensor:
    """(1, 3, SIDE, SIDE): the network's input, its brightest value scaled to 1 as in training."""
    resized = image.convert("RGB").resize((SIDE, SIDE), Resampling.LANCZOS)
    pixels = np.asarray(resized, dtype=np.float32)
    scaled = pixels / max(float(pixels.max()), 1.0)
    mean, deviation = (np.asarray(each, dtype=np.float32) for each in (MEAN, DEVIATION))
    normalised = (scaled - mean) / deviation
    return torch.from_numpy(normalised).permute(2, 0, 1)[None]


def _convolution(channels: int, width: int, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=dilation, dilation=dilation), nn.ReLU()
    )


def _ascending(dilations: Sequence[int]) -> list[int]:
    """Dilations of the ascending side: those of its levels, without the lowest."""
    return list(reversed(dilations[:-1]))


def _halved(maps: Tensor) -> Tensor:
    return max_pool2d(maps, 2, ceil_mode=True)


def _resized(maps: Tensor, like: Tensor) -> Tensor:
    return interpolate(maps, like.shape[2:], mode="bilinear")
