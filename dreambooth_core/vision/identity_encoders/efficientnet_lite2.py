"""EfficientNet-Lite2 (Tan and Le 2019, arXiv:1905.11946): pooled features as identity embedding.

A classifier of ImageNet with 6.1 million parameters. It is not DINO: never print its scores beside the
paper's. Its classifier also checks class nouns (`vision/class_nouns.py`). Origin and licence of the
weights: NOTICE.md beside this file.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad, relu6

from dreambooth_core.errors import ModelError, one_line
from dreambooth_core.vision.embeddings import Embeddings, unit
from dreambooth_core.vision.encoders import RESIZE_RATIO, Preprocessing, batches, center_crop

WEIGHTS = Path(__file__).with_name("efficientnet_lite2.safetensors")
SIDE = 260
"""Side of the network's square input in pixels."""
MEAN, DEVIATION = 127.0, 128.0
"""Of the input's channels, in [0, 255]."""
OWN_RATIO = (SIDE + 32) / SIDE
"""The authors' shorter side after resizing, over `SIDE`."""
STEM, FEATURES, LABELS = 32, 1280, 1000
"""Channels of the first convolution, of the embedding, and of the classifier."""


class Stage(NamedTuple):
    """Blocks with equal outputs; the first one has the stride."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    width: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(3, 3, 2, 6, 24),
    Stage(3, 5, 2, 6, 48),
    Stage(4, 3, 2, 6, 88),
    Stage(4, 5, 1, 6, 120),
    Stage(5, 5, 2, 6, 208),
    Stage(1, 3, 1, 6, 352),
)
"""B0's stages, widened by 1.1 and deepened by 1.2, without squeeze and excitation."""


class PaddedConvolution(nn.Conv2d):
    """A convolution with TensorFlow's padding SAME, which is larger at the end where it is odd."""

    def forward(self, maps: Tensor) -> Tensor:
        """(images, channels, h, w) -> (images, width, ceil(h / stride), ceil(w / stride))"""
        kernel, stride = self.kernel_size[0], self.stride[0]
        margins: list[int] = []
        for size in reversed(maps.shape[2:]):
            total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            margins += [total // 2, total - total // 2]
        return conv2d(pad(maps, margins), self.weight, self.bias, self.stride, groups=self.groups)


class InvertedBottleneck(nn.Module):
    """Expansion, depthwise convolution, projection; batch normalisation is folded into each."""

    def __init__(self, channels: int, stage: Stage, stride: int) -> None:
        super().__init__()
        inner = channels * stage.expansion
        self.expand = nn.Conv2d(channels, inner, 1) if stage.expansion > 1 else None
        self.depthwise = PaddedConvolution(inner, inner, stage.kernel, stride, groups=inner)
        self.project = nn.Conv2d(inner, stage.width, 1)
        self.skips = stride == 1 and channels == stage.width

    def forward(self, maps: Tensor) -> Tensor:
        """(images, channels, h, w) -> (images, width, h / stride, w / stride)"""
        inner = maps if self.expand is None else relu6(self.expand(maps))
        projected: Tensor = self.project(relu6(self.depthwise(inner)))
        return maps + projected if self.skips else projected


class EfficientNetLite2(nn.Module):
    """The network up to the pooled features, and its classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = PaddedConvolution(3, STEM, 3, 2)
        blocks, channels = [], STEM
        for stage in STAGES:
            for index in range(stage.blocks):
                blocks.append(InvertedBottleneck(channels, stage, 1 if index else stage.stride))
                channels = stage.width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Conv2d(channels, FEATURES, 1)
        self.classifier = nn.Linear(FEATURES, LABELS)

    def forward(self, images: Tensor) -> Tensor:
        """(images, 3, h, w), normalised -> (images, FEATURES)"""
        return relu6(self.head(self.blocks(relu6(self.stem(images))))).mean((2, 3))


class EfficientNetEncoder:
    """The packaged network in float32."""

    def __init__(self, preprocessing: Preprocessing = "paper", weights: Path = WEIGHTS) -> None:
        """`paper` crops as for the other encoders (224/256), `own` as the network's authors.

        Raises `ModelError` when the file is missing or damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        self._network = EfficientNetLite2()
        try:
            self._network.load_state_dict(load_file(weights))  # float16, converted by the copy
        except (OSError, RuntimeError, SafetensorError) as error:
            raise ModelError(
                f"no identity encoder at {weights}: install the package again ({one_line(error, 200)})"
            ) from error
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._network.eval().to(self._device)
        self._ratio = RESIZE_RATIO["identity"] if preprocessing == "paper" else OWN_RATIO

    def identity_images(self, images: Sequence[Image]) -> Embeddings:
        """(images, FEATURES), of unit length."""
        return unit(np.asarray(self._features(images)))

    def likeliest_labels(self, images: Sequence[Image], count: int = 5) -> list[list[int]]:
        """Indices of the `count` likeliest of ImageNet's 1,000 labels of each image, best first."""
        with torch.inference_mode():
            logits = self._network.classifier(self._features(images).to(self._device))
        best: list[list[int]] = logits.topk(count).indices.tolist()
        return best

    def _features(self, images: Sequence[Image]) -> Tensor:
        parts = [torch.empty(0, FEATURES)]
        for batch, count in batches(images):
            with torch.inference_mode():
                rows = self._network(self._prepared(batch).to(self._device))
            parts.append(rows[:count].cpu())
        return torch.cat(parts)

    def _prepared(self, images: Sequence[Image]) -> Tensor:
        squares = [center_crop(image.convert("RGB"), SIDE, self._ratio) for image in images]
        pixels = np.stack([np.asarray(square, dtype=np.float32) for square in squares])
        return torch.from_numpy((pixels - MEAN) / DEVIATION).permute(0, 3, 1, 2)


def load(preprocessing: Preprocessing) -> EfficientNetEncoder:
    """The packaged encoder; raises `ModelError`."""
    return EfficientNetEncoder(preprocessing)
