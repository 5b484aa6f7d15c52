"""Stable Diffusion XL (Podell et al. 2023, arXiv:2307.01952).

Two CLIP text encoders and a UNet that is also conditioned on image sizes and crops; epsilon or
v-prediction by the base's noise scheduler.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from dreambooth_core.diffusion.families import DiffusersFamily, Family, Parts, Tensors
from dreambooth_core.diffusion.families._text import penultimate_and_pooled, token_ids

if TYPE_CHECKING:
    from torch import Tensor

    from dreambooth_core.config import Sampler

CLIP_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")


class StableDiffusionXL(DiffusersFamily):
    """The `sdxl` family."""

    pipeline_class = "StableDiffusionXLPipeline"
    flow = False
    denoiser = "unet"
    autoencoder = "vae"
    text_encoders: tuple[str, ...] = ("text_encoder", "text_encoder_2")
    tokenizers: Mapping[str, str] = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
    lora_targets: Mapping[str, tuple[str, ...]] = {
        "unet": ("to_q", "to_k", "to_v", "to_out.0"),
        "text_encoder": CLIP_TARGETS,
        "text_encoder_2": CLIP_TARGETS,
    }
    pixel_multiple = 8
    extras: Mapping[str, Any] = MappingProxyType({"add_watermarker": False})
    """Off, so that images do not depend on whether a watermark library is installed."""

    def classes(self) -> Mapping[str, Any]:
        from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

        return {
            "scheduler": DDPMScheduler,
            "tokenizer": CLIPTokenizer,
            "tokenizer_2": CLIPTokenizer,
            "text_encoder": CLIPTextModel,
            "text_encoder_2": CLIPTextModelWithProjection,
            "vae": AutoencoderKL,
            "unet": UNet2DConditionModel,
        }

    def tokenize(self, parts: Parts, prompts: Sequence[str]) -> Tensors:
        """`input_ids` and `input_ids_2`, (prompts, 77) each: the two tokenizers pad differently."""
        first, second = parts["tokenizer"], parts["tokenizer_2"]
        return {
            "input_ids": token_ids(first, prompts, first.model_max_length),
            "input_ids_2": token_ids(second, prompts, second.model_max_length),
        }

    def encode_prompts(self, parts: Parts, tokens: Tensors) -> Tensors:
        """`hidden_states`, (prompts, tokens, sum of widths), and the second encoder's `pooled`."""
        import torch

        found = parts["text_encoder"](tokens["input_ids"], output_hidden_states=True)
        second, pooled = penultimate_and_pooled(parts["text_encoder_2"], tokens["input_ids_2"])
        states = torch.cat([found.hidden_states[-2], second], dim=-1)
        return {"hidden_states": states, "pooled": pooled}

    def predict(
        self, parts: Parts, noisy: "Tensor", timesteps: "Tensor", conditioning: Tensors
    ) -> "Tensor":
        added = {"text_embeds": conditioning["pooled"], "time_ids": conditioning["sizes"]}
        states = conditioning["hidden_states"]
        prediction = parts["unet"](
            noisy, timesteps, states, added_cond_kwargs=added, return_dict=False
        )
        found: Tensor = prediction[0]
        return found

    def sampler(self, parts: Parts) -> Any:
        """Euler, as in the published SDXL."""
        from diffusers import EulerDiscreteScheduler

        return EulerDiscreteScheduler.from_config(parts["scheduler"].config)

    def guidance(self, sampler: "Sampler") -> Mapping[str, Any]:
        """An empty negative prompt is omitted: SDXL then uses zero conditioning, as in its training."""
        negative = {"negative_prompt": sampler.negative_prompt} if sampler.negative_prompt else {}
        return {"guidance_scale": sampler.guidance_scale, **negative}


FAMILY: Family = StableDiffusionXL()
