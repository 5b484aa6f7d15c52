"""An adapter by kohya's names: A1111, Forge, ComfyUI, and kohya's own scripts.

A layer's name is its path in kohya's model with `_` for every dot, behind `lora_unet_` or
`lora_te_`. That model has diffusers' names for SD 1.x and 2.x, and the original ones for SDXL and
FLUX; FLUX's fuses layers that diffusers keeps apart.

A DoRA has no place here: of those who read its `dora_scale`, A1111 takes it along the other axis,
ComfyUI divides by the lengths of the base's rows, and diffusers leaves it out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth_core.diffusion.exports import (
    TrainedModel,
    _embedding,
    _flux,
    _lora,
    _modelspec,
    _original,
)
from dreambooth_core.diffusion.exports._base import ExportBase, base_of
from dreambooth_core.diffusion.exports._lora import Layer
from dreambooth_core.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

_METHODS = ("lora", "pivotal")
_PREFIXES: Mapping[str, Mapping[str, str]] = {
    "StableDiffusionPipeline": {"unet": "lora_unet", "text_encoder": "lora_te"},
    "StableDiffusionXLPipeline": {
        "unet": "lora_unet",
        "text_encoder": "lora_te1",
        "text_encoder_2": "lora_te2",
    },
    "FluxPipeline": {"transformer": "lora_unet", "text_encoder": "lora_te1"},
}


class LoraKohya:
    name = "lora_kohya"
    description = "one .safetensors by kohya's names, for A1111, Forge, ComfyUI and sd-scripts"
    takes: Mapping[str, tuple[str, ...]] = {
        "StableDiffusionPipeline": _METHODS,
        "StableDiffusionXLPipeline": _METHODS,
        "FluxPipeline": ("lora",),
    }

    def write(self, source: TrainedModel, out: Path) -> list[Path]:
        base = base_of(source.base)
        layers = _as_kohya_has_them(_lora.read(source.weights), base)
        texts = {
            **_modelspec.texts(source, base, "https://github.com/kohya-ss/sd-scripts", "lora"),
            **_ss(layers, source, base),
        }
        path = out / f"{source.info.title}.safetensors"
        return [_modelspec.write(path, tensors_of(layers), texts), *_embedding.write(source, out)]


def tensors_of(layers: Sequence[Layer]) -> dict[str, "Tensor"]:
    """Kohya's tensors of layers that bear the prefix as component and kohya's module names."""
    tensors = {}
    for layer in layers:
        name = f"{layer.component}_{layer.module}".replace(".", "_")
        tensors[f"{name}.lora_down.weight"] = layer.down
        tensors[f"{name}.lora_up.weight"] = layer.up
        tensors[f"{name}.alpha"] = layer.down.new_tensor(layer.alpha)
    return tensors


def _as_kohya_has_them(layers: Sequence[Layer], base: ExportBase) -> tuple[Layer, ...]:
    prefixes = _PREFIXES[base.pipeline]
    foreign = sorted({layer.component for layer in layers} - prefixes.keys())
    if foreign:
        raise ConfigError(
            f"kohya has no names for an adapter on {', '.join(foreign)} of a {base.pipeline}; "
            "use --format lora_diffusers"
        )
    if base.pipeline == "FluxPipeline":
        layers = _flux.fused(layers, base.settings("transformer"))
    if base.pipeline == "StableDiffusionXLPipeline":
        layers = _original.renamed(layers, base.settings("unet"))
    return tuple(replace(layer, component=prefixes[layer.component]) for layer in layers)


def _ss(layers: Sequence[Layer], source: TrainedModel, base: ExportBase) -> dict[str, str]:
    """What kohya's tools and the UIs look at: the minimum that kohya's own files have, and a name."""
    versions = {"StableDiffusionXLPipeline": "sdxl_base_v1-0", "FluxPipeline": "flux1"}
    of_sd = f"sd_v{2 if base.is_second else 1}{'_v' if base.prediction == 'v' else ''}"
    module = "networks.lora_flux" if base.pipeline == "FluxPipeline" else "networks.lora"
    return {
        "ss_network_module": module,
        "ss_network_dim": _common({str(layer.rank) for layer in layers}),
        "ss_network_alpha": _common({str(layer.alpha) for layer in layers}),
        "ss_base_model_version": versions.get(base.pipeline, of_sd),
        "ss_v2": str(base.is_second),
        "ss_output_name": source.info.title,
    }


def _common(values: set[str]) -> str:
    """Kohya's word for layers that differ is `Dynamic`."""
    return values.pop() if len(values) == 1 else "Dynamic"


EXPORT = LoraKohya()
