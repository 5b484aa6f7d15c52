"""The layers of an exported LoRA, and writing them as one file."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth_core.diffusion.exports import TrainedModel, _embedding, _modelspec
from dreambooth_core.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

DOWN, UP = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True)
class Layer:
    """An adapted layer: W + (alpha / rank) * up @ down."""

    component: str
    module: str
    """The layer's name in its component, as in published models."""
    down: "Tensor"
    """(rank, inputs)"""
    up: "Tensor"
    """(outputs, rank)"""
    alpha: float

    @property
    def rank(self) -> int:
        return len(self.down)


def read(folder: Path) -> tuple[Layer, ...]:
    """The layers of a folder of weights, sorted by component and name; raises `ModelError`."""
    from dreambooth_core.diffusion import safetensors_files
    from dreambooth_core.diffusion.adapters import LORA_FILE, METADATA_KEY

    path = folder / LORA_FILE
    tensors, texts = safetensors_files.read(path)
    try:
        return tuple(_layers(tensors, json.loads(texts[METADATA_KEY])))
    except (KeyError, ValueError) as error:
        raise ModelError(
            f"{path} is not an adapter of this project ({error!r}): export the weights again"
        ) from error


def tensors_of(
    layers: Iterable[Layer], name: Callable[[Layer], str], down: str, up: str
) -> dict[str, "Tensor"]:
    """Per layer `<name>.<down>.weight`, `<name>.<up>.weight` and a scalar `<name>.alpha`."""
    tensors = {}
    for layer in layers:
        tensors[f"{name(layer)}.{down}.weight"] = layer.down
        tensors[f"{name(layer)}.{up}.weight"] = layer.up
        tensors[f"{name(layer)}.alpha"] = layer.down.new_tensor(layer.alpha)
    return tensors


def write(
    source: TrainedModel, out: Path, tensors: Mapping[str, "Tensor"], texts: Mapping[str, str]
) -> list[Path]:
    """Write `<title>.safetensors` and the embedding files of new tokens."""
    path = out / f"{source.info.title}.safetensors"
    return [_modelspec.write(path, tensors, texts), *_embedding.write(source, out)]


def full_name(module: str) -> str:
    """A CLIP layer's name with the prefix `text_model.`, which newer transformers omit."""
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
