"""An adapter with kohya's layer names, for A1111, Forge, ComfyUI and kohya's sd-scripts.

A layer's name is `lora_unet_` or `lora_te_` and its path in kohya's model with `_` for dots. Paths
are diffusers' for SD 1.x and 2.x and the original ones for SDXL and FLUX, whose original fuses some
of diffusers' layers.

DoRA is not supported, as its `dora_scale` has no common meaning: A1111 applies it along the other
axis, ComfyUI divides by the norms of the base's rows, and diffusers ignores it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth_core.diffusion.exports import TrainedModel, _flux, _lora, _modelspec, _original
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
    description = (
        "one .safetensors with kohya's layer names, for A1111, Forge, ComfyUI and sd-scripts"
    )
    takes: Mapping[str, tuple[str, ...]] = {
        "StableDiffusionPipeline": _METHODS,
        "StableDiffusionXLPipeline": _METHODS,
        "FluxPipeline": ("lora",),
    }

    def write(self, source: TrainedModel, out: Path) -> list[Path]:
        base = base_of(source.base)
        layers = _renamed(_lora.read(source.weights), base)
        texts = {
            **_modelspec.texts(source, base, "https://github.com/kohya-ss/sd-scripts", "lora"),
            **_kohya_metadata(layers, source, base),
        }
        return _lora.write(source, out, tensors_of(layers), texts)


def tensors_of(layers: Sequence[Layer]) -> dict[str, "Tensor"]:
    """Kohya's tensors of layers whose component is kohya's prefix and whose names are kohya's."""
    return _lora.tensors_of(
        layers,
        lambda layer: f"{layer.component}_{layer.module}".replace(".", "_"),
        down="lora_down",
        up="lora_up",
    )


def _renamed(layers: Sequence[Layer], base: ExportBase) -> tuple[Layer, ...]:
    """Layers with kohya's prefixes and names; raises `ConfigError` where there are none."""
    prefixes = _PREFIXES[base.pipeline]
    unknown = sorted({layer.component for layer in layers} - prefixes.keys())
    if unknown:
        raise ConfigError(
            f"kohya's format has no names for an adapter on {', '.join(unknown)} of a {base.pipeline}; "
            "use --format lora_diffusers"
        )
    if base.pipeline == "FluxPipeline":
        layers = _flux.fused(layers, base.settings("transformer"))
    if base.pipeline == "StableDiffusionXLPipeline":
        layers = _original.renamed(layers, base.settings("unet"))
    return tuple(replace(layer, component=prefixes[layer.component]) for layer in layers)


def _kohya_metadata(
    layers: Sequence[Layer], source: TrainedModel, base: ExportBase
) -> dict[str, str]:
    """The `ss_*` keys that sd-scripts and UIs read."""
    versions = {"StableDiffusionXLPipeline": "sdxl_base_v1-0", "FluxPipeline": "flux1"}
    sd_version = f"sd_v{2 if base.is_sd2 else 1}{'_v' if base.prediction == 'v' else ''}"
    module = "networks.lora_flux" if base.pipeline == "FluxPipeline" else "networks.lora"
    return {
        "ss_network_module": module,
        "ss_network_dim": _common({str(layer.rank) for layer in layers}),
        "ss_network_alpha": _common({str(layer.alpha) for layer in layers}),
        "ss_base_model_version": versions.get(base.pipeline, sd_version),
        "ss_v2": str(base.is_sd2),
        "ss_output_name": source.info.title,
    }


def _common(values: set[str]) -> str:
    """The common value, or `Dynamic`, kohya's term for layers that differ."""
    return values.pop() if len(values) == 1 else "Dynamic"


EXPORT = LoraKohya()
