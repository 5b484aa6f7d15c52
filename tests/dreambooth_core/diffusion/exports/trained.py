"""Models with randomly changed weights, exported like trained ones."""

from pathlib import Path
from typing import Any

import torch

from dreambooth_core.config import Config
from dreambooth_core.diffusion import adapters
from dreambooth_core.diffusion.exports import ModelInfo, TrainedModel
from dreambooth_core.diffusion.families import load_family

INFO = ModelInfo(
    title="toy",
    trigger="sks robot",
    digest="0" * 64,
    resolution=32,
    base="owner/model",
    revision="1" * 40,
    licence="CreativeML Open RAIL-M",
)


def config_of(family: str, base: Path, method: str, **sections: Any) -> Config:
    return Config.model_validate(
        {
            "name": "toy",
            "subject": {"images": "photos", "class_noun": "robot"},
            "prior": {"enabled": False},
            "adapter": {"rank": 4, "alpha": 6},
            **sections,
            "model": {"family": family, "base": str(base), "resolution": 32},
            "train": {"method": method, **sections.get("train", {})},
        }
    )


def trained(family: str, base: Path, method: str, folder: Path, **sections: Any) -> TrainedModel:
    """A model with noise on all trainable weights, large enough to change its images."""
    config = config_of(family, base, method, **sections)
    loaded = load_family(family)
    parts = loaded.load(base)
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in adapters.prepare(loaded, parts, config).values():
            for weight in weights.values():
                weight += 0.1 * torch.randn(weight.shape, generator=draws)
    adapters.export(loaded, parts, config, base, folder)
    return TrainedModel(family, base, folder, method, INFO)
