"""An adapter with the layer names of ComfyUI's own models.

UNet layers have the original names. Transformer layers have diffusers' names, which ComfyUI maps for
the families below, including fused layers. ComfyUI reads no metadata, so each layer has its alpha.
"""

from collections.abc import Mapping
from pathlib import Path

from dreambooth_core.diffusion.exports import TrainedModel, _lora, _modelspec, _original
from dreambooth_core.diffusion.exports._base import ExportBase, base_of
from dreambooth_core.errors import ConfigError

_UNETS = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
_TEXT: Mapping[str, Mapping[str, str]] = {
    "StableDiffusionXLPipeline": {"text_encoder": "clip_l", "text_encoder_2": "clip_g"},
    "StableDiffusion3Pipeline": {
        "text_encoder": "clip_l",
        "text_encoder_2": "clip_g",
        "text_encoder_3": "t5xxl",
    },
    "FluxPipeline": {"text_encoder": "clip_l", "text_encoder_2": "t5xxl"},
}


class LoraComfy:
    name = "lora_comfy"
    description = "one .safetensors with ComfyUI's own layer names"
    takes: Mapping[str, tuple[str, ...]] = {
        "StableDiffusionPipeline": ("lora", "pivotal"),
        "StableDiffusionXLPipeline": ("lora", "pivotal"),
        "StableDiffusion3Pipeline": ("lora",),
        "FluxPipeline": ("lora",),
        "QwenImagePipeline": ("lora",),
        "ZImagePipeline": ("lora",),
    }

    def write(self, source: TrainedModel, out: Path) -> list[Path]:
        base = base_of(source.base)
        implementation = "https://github.com/comfyanonymous/ComfyUI"
        texts = _modelspec.texts(source, base, implementation, "lora")
        layers = _lora.read(source.weights)
        if base.pipeline in _UNETS:
            layers = _original.renamed(layers, base.settings("unet"))
        tensors = _lora.tensors_of(
            layers,
            lambda layer: f"{_prefix(layer.component, base)}.{layer.module}",
            down="lora_A",
            up="lora_B",
        )
        return _lora.write(source, out, tensors, texts)


def _prefix(component: str, base: ExportBase) -> str:
    """Raises `ConfigError` for a component without a name in ComfyUI."""
    if component in ("unet", "transformer"):
        return "diffusion_model" if component == "unet" else "transformer"
    of_sd = {"text_encoder": "clip_h" if base.is_sd2 else "clip_l"}
    known = of_sd if base.pipeline == "StableDiffusionPipeline" else _TEXT.get(base.pipeline, {})
    if component not in known:
        raise ConfigError(
            f"ComfyUI's format has no name for an adapter on {component} of a {base.pipeline}; "
            "use --format lora_diffusers"
        )
    return f"text_encoders.{known[component]}.transformer"


EXPORT = LoraComfy()
