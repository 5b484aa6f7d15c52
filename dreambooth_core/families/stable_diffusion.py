"""Stable Diffusion 1.x and 2.x (Rombach et al. 2022, arXiv:2112.10752).

One CLIP text encoder, one UNet; epsilon or v-prediction as the base's noise scheduler says. The
safety checker is neither loaded nor kept.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreambooth_core.errors import ModelError
from dreambooth_core.families import Family, Parts, Tensors, component_classes, quiet
from dreambooth_core.latents import LatentDistribution
from dreambooth_core.objectives import Objective, diffusion


class StableDiffusion:
    """The `stable_diffusion` family."""

    denoiser = "unet"
    text_encoders: tuple[str, ...] = ("text_encoder",)
    autoencoder = "vae"
    lora_targets: Mapping[str, tuple[str, ...]] = {
        "unet": ("to_q", "to_k", "to_v", "to_out.0"),
        "text_encoder": ("q_proj", "k_proj", "v_proj", "out_proj"),
    }

    def load(self, folder: Path, tuned: Mapping[str, Path] | None = None) -> Parts:
        """Components in float32 from `folder`, those named in `tuned` from their own folders."""
        quiet()
        from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTokenizer

        found = component_classes(folder)["pipeline"]
        if found != "StableDiffusionPipeline":
            raise ModelError(
                f"{folder} holds a {found}, not a StableDiffusionPipeline; "
                "choose the model.family that fits it"
            )
        places = {**{name: folder / name for name in _COMPONENTS}, **(tuned or {})}
        kinds = (DDPMScheduler, CLIPTokenizer, CLIPTextModel, AutoencoderKL, UNet2DConditionModel)
        try:
            loaded = {
                name: _load(kind, places[name])
                for name, kind in zip(_COMPONENTS, kinds, strict=True)
            }
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise ModelError(
                f"{folder} cannot be loaded as Stable Diffusion ({reason}); "
                "it must be complete, with safetensors weights"
            ) from error
        return Parts(loaded)

    def objective(self, parts: Parts) -> Objective:
        scheduler = parts["scheduler"]
        return diffusion(scheduler.config.prediction_type, scheduler.alphas_cumprod)

    def tokenize(self, parts: Parts, prompts: Sequence[str]) -> Tensors:
        """`input_ids` and, for encoders that use one, `attention_mask`: (prompts, 77 or so)."""
        tokenizer, encoder = parts["tokenizer"], parts["text_encoder"]
        tokens = tokenizer(
            list(prompts),
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        names = ["input_ids"]
        if getattr(encoder.config, "use_attention_mask", False):
            names.append("attention_mask")
        return {name: tokens[name] for name in names}

    def encode_prompts(self, parts: Parts, tokens: Tensors) -> Tensors:
        """`hidden_states`: (prompts, tokens, width), as StableDiffusionPipeline computes them."""
        states = parts["text_encoder"](tokens["input_ids"], tokens.get("attention_mask"))[0]
        return {"hidden_states": states}

    def encode_images(self, parts: Parts, pixels: Tensor) -> LatentDistribution:
        vae = parts["vae"]
        found = vae.encode(pixels).latent_dist
        return LatentDistribution(found.mean, found.logvar).scaled(vae.config.scaling_factor)

    def predict(
        self, parts: Parts, noisy: Tensor, timesteps: Tensor, conditioning: Tensors
    ) -> Tensor:
        answer = parts["unet"](noisy, timesteps, conditioning["hidden_states"], return_dict=False)
        found: Tensor = answer[0]
        return found

    def pipeline(self, parts: Parts) -> Any:
        """With DPM-Solver++ (2M): about 20 steps do what DDIM needs 50 for (arXiv:2211.01095)."""
        from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

        sampler = DPMSolverMultistepScheduler.from_config(
            parts["scheduler"].config, algorithm_type="dpmsolver++", solver_order=2
        )
        pipeline = StableDiffusionPipeline(
            **{**parts.components, "scheduler": sampler},
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


_COMPONENTS = ("scheduler", "tokenizer", "text_encoder", "vae", "unet")


def _load(kind: Any, folder: Path) -> Any:
    """Any component of a class that we name: a model's own code is never asked for."""
    if not folder.is_dir():
        raise ModelError(f"{folder} is missing; the model's folder must be complete")
    if not hasattr(kind, "parameters"):
        return kind.from_pretrained(folder, local_files_only=True)
    dtype = {"dtype" if kind.__name__ == "CLIPTextModel" else "torch_dtype": torch.float32}
    model = kind.from_pretrained(folder, use_safetensors=True, local_files_only=True, **dtype)
    return model.requires_grad_(False).eval()


FAMILY: Family = StableDiffusion()
