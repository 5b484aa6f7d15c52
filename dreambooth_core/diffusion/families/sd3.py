"""Stable Diffusion 3 and 3.5 (Esser et al. 2024, arXiv:2403.03206).

Two CLIP text encoders, a frozen T5 that the base's folder must contain, and a transformer trained by
flow matching.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dreambooth_core.diffusion.families import DiffusersFamily, Family, Parts, Tensors
from dreambooth_core.diffusion.families._text import penultimate_and_pooled, token_ids

if TYPE_CHECKING:
    from torch import Tensor


CLIP_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
T5_TOKENS = 256
"""Default `max_sequence_length` of the pipeline."""


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

        The CLIPs' states are concatenated along the width and zero-padded to the T5's width; the
        T5's states follow as further tokens.
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

    def predict(
        self, parts: Parts, noisy: "Tensor", timesteps: "Tensor", conditioning: Tensors
    ) -> "Tensor":
        prediction = parts["transformer"](
            hidden_states=noisy,
            timestep=timesteps,
            encoder_hidden_states=conditioning["hidden_states"],
            pooled_projections=conditioning["pooled"],
            return_dict=False,
        )
        found: Tensor = prediction[0]
        return found


FAMILY: Family = StableDiffusion3()
