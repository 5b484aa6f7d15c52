"""A whole model in one file with the original names, for A1111, Forge and ComfyUI.

SD 1.x has CompVis' names, SD 2.x and SDXL Stability's. The last text layer of SD 2.x and OpenCLIP's
`logit_scale` are missing, as in diffusers' folders; sampling does not use them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth_core.diffusion.exports import TrainedModel, _modelspec, _original
from dreambooth_core.diffusion.exports._base import ExportBase, base_of
from dreambooth_core.diffusion.exports._merged import merged
from dreambooth_core.diffusion.families import Parts

if TYPE_CHECKING:
    from torch import Tensor

_METHODS = ("full", "lora", "dora", "lokr")


class SingleFile:
    name = "single_file"
    description = "one .safetensors of the whole model, for A1111, Forge and ComfyUI"
    takes: Mapping[str, tuple[str, ...]] = {
        "StableDiffusionPipeline": _METHODS,
        "StableDiffusionXLPipeline": _METHODS,
    }

    def write(self, source: TrainedModel, out: Path) -> list[Path]:
        base = base_of(source.base)
        tensors = checkpoint(merged(source), base)
        texts = _modelspec.texts(source, base, _implementation(base))
        return [_modelspec.write(out / f"{source.info.title}.safetensors", tensors, texts)]


def checkpoint(parts: Parts, base: ExportBase) -> dict[str, "Tensor"]:
    """All tensors of the model with original names, in the dtypes of the base's files."""
    states = {
        name: _state(parts, base, name) for name in ("unet", "vae", *_encoders(base).values())
    }
    found = {
        "model.diffusion_model": _original.unet_tensors(states["unet"], parts["unet"].config),
        "first_stage_model": _original.vae_tensors(states["vae"], parts["vae"].config),
    }
    for prefix, name in _encoders(base).items():
        if prefix.endswith(".model"):
            config = parts[name].config.to_dict()
            found[prefix] = _original.openclip_tensors(states[name], config)
        else:
            found[prefix] = _original.clip_tensors(states[name])
    tensors = {
        f"{prefix}.{name}": tensor
        for prefix, state in found.items()
        for name, tensor in state.items()
    }
    return {**tensors, **_markers(base)}


def _encoders(base: ExportBase) -> dict[str, str]:
    """Original prefix -> text encoder; ends in `model` for OpenCLIP, `transformer` for OpenAI's."""
    if base.pipeline == "StableDiffusionPipeline":
        return {f"cond_stage_model.{'model' if base.is_sd2 else 'transformer'}": "text_encoder"}
    return {
        "conditioner.embedders.0.transformer": "text_encoder",
        "conditioner.embedders.1.model": "text_encoder_2",
    }


def _markers(base: ExportBase) -> dict[str, "Tensor"]:
    """Empty tensors that tell UIs of an SDXL with v-prediction, and with zero terminal SNR."""
    import torch

    if base.pipeline != "StableDiffusionXLPipeline" or base.prediction != "v":
        return {}
    zero_snr = base.settings("scheduler").get("rescale_betas_zero_snr", False)
    return {name: torch.empty(0) for name in ("v_pred", *(["ztsnr"] if zero_snr else []))}


def _state(parts: Parts, base: ExportBase, name: str) -> dict[str, "Tensor"]:
    from dreambooth_core.diffusion.adapters import stored_dtype

    dtype = stored_dtype(base.folder / name)
    return {key: tensor.to(dtype) for key, tensor in parts[name].state_dict().items()}


def _implementation(base: ExportBase) -> str:
    """The code that defines these tensor names."""
    if base.pipeline == "StableDiffusionXLPipeline":
        return "sgm"
    sd2 = "https://github.com/Stability-AI/stablediffusion"
    return sd2 if base.is_sd2 else "https://github.com/CompVis/stable-diffusion"


EXPORT = SingleFile()
