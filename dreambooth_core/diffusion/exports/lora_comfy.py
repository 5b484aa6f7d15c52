"""An adapter by the names of ComfyUI's own models, which it reads without any guess.

The UNets have the original names there. The transformers are given as diffusers names them, which
ComfyUI knows for the families below, fused layers included. It reads no setting beside the tensors,
so each layer has its alpha.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth_core.diffusion.exports import TrainedModel, _embedding, _lora, _modelspec, _original
from dreambooth_core.diffusion.exports._base import ExportBase, base_of
from dreambooth_core.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

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
    description = "one .safetensors by ComfyUI's own names"
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
        path = out / f"{source.info.title}.safetensors"
        tensors = tensors_of(_lora.read(source.weights), base)
        return [_modelspec.write(path, tensors, texts), *_embedding.write(source, out)]


def tensors_of(layers: tuple[_lora.Layer, ...], base: ExportBase) -> dict[str, "Tensor"]:
    """ComfyUI's tensors; raises `ConfigError` for a component that it has no name for."""
    if base.pipeline in _UNETS:
        layers = _original.renamed(layers, base.settings("unet"))
    tensors = {}
    for layer in layers:
        name = f"{_prefix(layer.component, base)}.{layer.module}"
        tensors[f"{name}.lora_A.weight"] = layer.down
        tensors[f"{name}.lora_B.weight"] = layer.up
        tensors[f"{name}.alpha"] = layer.down.new_tensor(layer.alpha)
    return tensors


def _prefix(component: str, base: ExportBase) -> str:
    if component in ("unet", "transformer"):
        return "diffusion_model" if component == "unet" else "transformer"
    of_sd = {"text_encoder": "clip_h" if base.is_second else "clip_l"}
    known = of_sd if base.pipeline == "StableDiffusionPipeline" else _TEXT.get(base.pipeline, {})
    if component not in known:
        raise ConfigError(
            f"ComfyUI has no name for an adapter on {component} of a {base.pipeline}; "
            "use --format lora_diffusers"
        )
    return f"text_encoders.{known[component]}.transformer"


EXPORT = LoraComfy()
