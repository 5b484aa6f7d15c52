"""Stable Diffusion 3 and 3.5 (Esser et al. 2024, arXiv:2403.03206).

Two CLIP text encoders and a T5, a transformer trained by flow matching. The T5 must be in the
folder; it stays frozen.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dreambooth_core.diffusion.families import DiffusersFamily, Family, Parts, Tensors
from dreambooth_core.diffusion.families._text import penultimate_and_pooled, token_ids

if TYPE_CHECKING:
    from torch import Tensor

    from dreambooth_core.config import Sampler
    from dreambooth_core.diffusion.latents import LatentDistribution

CLIP_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
T5_TOKENS = 256
"""What the pipeline reads of a prompt unless told otherwise."""


class StableDiffusion3(DiffusersFamily):
    """The `sd3` family."""

    pipeline_class = "StableDiffusion3Pipeline"
    flow = True
    denoiser = "transformer"
    autoencoder = "vae"
    text_encoders: tuple[str, ...] = ("text_encoder", "text_encoder_2", "text_encoder_3")
    tokenizers: Mapping[str, str] = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
    lora_targets: Mapping[str, tuple[str, ...]] = {
        "transformer": (
            *("to_q", "to_k", "to_v", "to_out.0"),
            *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        ),
        "text_encoder": CLIP_TARGETS,
        "text_encoder_2": CLIP_TARGETS,
    }
    pixel_multiple = 16

    def classes(self) -> Mapping[str, Any]:
        from diffusers import (
            AutoencoderKL,
            FlowMatchEulerDiscreteScheduler,
            SD3Transformer2DModel,
        )
        from transformers import (
            CLIPTextModelWithProjection,
            CLIPTokenizer,
            T5EncoderModel,
            T5Tokenizer,
        )

        return {
            "scheduler": FlowMatchEulerDiscreteScheduler,
            "tokenizer": CLIPTokenizer,
            "tokenizer_2": CLIPTokenizer,
            "tokenizer_3": T5Tokenizer,
            "text_encoder": CLIPTextModelWithProjection,
            "text_encoder_2": CLIPTextModelWithProjection,
            "text_encoder_3": T5EncoderModel,
            "vae": AutoencoderKL,
            "transformer": SD3Transformer2DModel,
        }

    def tokenize(self, parts: Parts, prompts: Sequence[str]) -> Tensors:
        """`input_ids` and `input_ids_2`, (prompts, 77); `input_ids_3`, (prompts, 256)."""
        length = parts["tokenizer"].model_max_length
        return {
            "input_ids": token_ids(parts["tokenizer"], prompts, length),
            "input_ids_2": token_ids(parts["tokenizer_2"], prompts, length),
            "input_ids_3": token_ids(parts["tokenizer_3"], prompts, T5_TOKENS),
        }

    def encode_prompts(self, parts: Parts, tokens: Tensors) -> Tensors:
        """`hidden_states`, (prompts, 77 + 256, the T5's width), and both CLIPs' `pooled`.

        The CLIPs' states stand side by side, filled up with zeros to the width of the T5's, which
        follow them.
        """
        import torch

        first, pooled = penultimate_and_pooled(parts["text_encoder"], tokens["input_ids"])
        second, pooled_2 = penultimate_and_pooled(parts["text_encoder_2"], tokens["input_ids_2"])
        long = parts["text_encoder_3"](tokens["input_ids_3"])[0]
        short = torch.cat([first, second], dim=-1)
        short = torch.nn.functional.pad(short, (0, long.shape[-1] - short.shape[-1]))
        return {
            "hidden_states": torch.cat([short, long], dim=-2),
            "pooled": torch.cat([pooled, pooled_2], dim=-1),
        }

    def encode_images(self, parts: Parts, pixels: "Tensor") -> "LatentDistribution":
        from dreambooth_core.diffusion.latents import LatentDistribution

        vae = parts["vae"]
        found = vae.encode(pixels).latent_dist
        raw = LatentDistribution(found.mean, found.logvar)
        return raw.shifted(-vae.config.shift_factor).scaled(vae.config.scaling_factor)

    def predict(
        self, parts: Parts, noisy: "Tensor", timesteps: "Tensor", conditioning: Tensors
    ) -> "Tensor":
        answer = parts["transformer"](
            hidden_states=noisy,
            timestep=timesteps,
            encoder_hidden_states=conditioning["hidden_states"],
            pooled_projections=conditioning["pooled"],
            return_dict=False,
        )
        found: Tensor = answer[0]
        return found

    def guidance(self, sampler: "Sampler") -> Mapping[str, Any]:
        return {
            "guidance_scale": sampler.guidance_scale,
            "negative_prompt": sampler.negative_prompt,
        }


FAMILY: Family = StableDiffusion3()
