"""The layers of a LoRA, as training left them, whatever the names in a format."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth_core.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

DOWN, UP = ".lora_A.weight", ".lora_B.weight"
SETTING = "lora_adapter_metadata"
"""The text beside the tensors that holds what peft needs to know."""


@dataclass(frozen=True)
class Layer:
    """W + (alpha / rank) * up @ down."""

    component: str
    module: str
    """The layer's name in its component, as the models' authors named it."""
    down: "Tensor"
    """(rank, inputs)"""
    up: "Tensor"
    """(outputs, rank)"""
    alpha: float

    @property
    def rank(self) -> int:
        return len(self.down)


def read(folder: Path) -> tuple[Layer, ...]:
    """The layers in a folder of weights, sorted by component and name; raises `ModelError`."""
    from dreambooth_core.diffusion import safetensors_files
    from dreambooth_core.diffusion.adapters import LORA_FILE

    path = folder / LORA_FILE
    tensors, texts = safetensors_files.read(path)
    try:
        setting = json.loads(texts[SETTING])
        return tuple(_layers(tensors, setting))
    except (KeyError, ValueError) as error:
        raise ModelError(f"{path} is no adapter that this project wrote ({error!r})") from error


def full_name(module: str) -> str:
    """A CLIP layer's name as everyone else has it: newer transformers left out `text_model.`."""
    return f"text_model.{module}" if module.startswith("encoder.layers.") else module


def _layers(tensors: Mapping[str, "Tensor"], setting: Mapping[str, Any]) -> Iterator[Layer]:
    from peft.utils.other import get_pattern_key

    for key in sorted(tensors):
        if not key.endswith(DOWN):
            continue
        layer = key.removesuffix(DOWN)
        component, module = layer.split(".", 1)
        alphas = setting.get(f"{component}.alpha_pattern", {})
        alpha = alphas.get(get_pattern_key(alphas, module), setting[f"{component}.lora_alpha"])
        yield Layer(
            component,
            full_name(module),
            tensors[key],
            tensors[layer + UP],
            float(alpha),
        )
