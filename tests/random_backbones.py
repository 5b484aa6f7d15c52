"""LPIPS backbones with random weights."""

from pathlib import Path

import torch
from safetensors.torch import save_file

SHAPES = {
    "alex": {
        0: (64, 3, 11),
        3: (192, 64, 5),
        6: (384, 192, 3),
        8: (256, 384, 3),
        10: (256, 256, 3),
    },
    "vgg": {
        0: (64, 3, 3),
        2: (64, 64, 3),
        5: (128, 64, 3),
        7: (128, 128, 3),
        10: (256, 128, 3),
        12: (256, 256, 3),
        14: (256, 256, 3),
        17: (512, 256, 3),
        19: (512, 512, 3),
        21: (512, 512, 3),
        24: (512, 512, 3),
        26: (512, 512, 3),
        28: (512, 512, 3),
    },
}


def build(name: str, folder: Path) -> Path:
    """Write a backbone in torchvision's layout, with its unused classifier."""
    draw = torch.Generator().manual_seed(0)
    weights = {"classifier.1.weight": torch.zeros(2, 2)}
    for index, (out, into, side) in SHAPES[name].items():
        spread = (2 / (into * side**2)) ** 0.5
        weights[f"features.{index}.weight"] = (
            torch.randn(out, into, side, side, generator=draw) * spread
        )
        weights[f"features.{index}.bias"] = torch.randn(out, generator=draw) * 0.1
    folder.mkdir(parents=True)
    save_file(weights, folder / "model.safetensors")
    return folder
