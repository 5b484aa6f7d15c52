"""Test cases: each family with the tiny base of its pipeline class and the base's variants.

An additional family is a copy of another family's file, added during the tests.
"""

import importlib
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dreambooth_core import plugins
from dreambooth_core.diffusion.families import Family, Parts, load_family

NAMES = plugins.names("dreambooth_core.diffusion.families")
COPY, ORIGINAL = "copied_in_the_test", "sana"
"""Names of the copy and of the family whose file is copied."""
PROMPTS = ["A Dog", "a cat on the beach, " + "far away and further " * 40]
"""The second is truncated, except by text encoders with very long inputs."""


class Case(NamedTuple):
    name: str
    variant: str
    base: Path

    def load(self, **options: Any) -> Parts:
        return load_family(self.name).load(self.base, **options)


def builder(name: str) -> Any:
    family = load_family(ORIGINAL if name == COPY else name)
    return importlib.import_module(f"tests.tiny_bases.{family.pipeline_class}")


CASES = [
    (name, variant)
    for name in [*NAMES, COPY]
    for variant in ["", *getattr(builder(name), "VARIANTS", {})]
]


def pixels(family: Family) -> Tensor:
    """Two landscape images, (2, 3, side, 2 * side) in [-1, 1]."""
    side = max(16, family.pixel_multiple)
    return torch.rand(2, 3, side, 2 * side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def sizes(images: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    return torch.tensor([[height, width, 0, 0, height, width]] * len(images)).float()
