"""FLUX.1 [dev] and [schnell] (Black Forest Labs 2024).

A CLIP gives the pooled embedding, a T5 the token states; the transformer is trained by flow matching
on latents packed in 2 x 2 patches. [dev] is guidance-distilled, with the scale as an input.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dreambooth_core.diffusion.families import DiffusersFamily, Family, Parts, Tensors
from dreambooth_core.diffusion.families._text import token_ids

if TYPE_CHECKING:
    from torch import Tensor

    from dreambooth_core.config import Sampler

T5_TOKENS = 512
"""Default `max_sequence_length` of the pipeline."""


class Flux(DiffusersFamily):
    """The `flux` family."""

    pipeline_class = "FluxPipeline"
    flow = True
    denoiser = "transformer"
    autoencoder = "vae"
    text_encoders: tuple[str, ...] = ("text_encoder", "text_encoder_2")
    tokenizers: Mapping[str, str] = {"text_encoder": "tokenizer"}
    lora_targets: Mapping[str, tuple[str, ...]] = {
        "transformer": (
            *("to_q", "to_k", "to_v", "to_out.0"),
            *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        ),
        "text_encoder": ("q_proj", "k_proj", "v_proj", "out_proj"),
    }
    pixel_multiple = 16

    def classes(self) -> Mapping[str, Any]:
        from diffusers import (
            AutoencoderKL,
            FlowMatchEulerDiscreteScheduler,
            FluxTransformer2DModel,
        )
        from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

        return {
            "scheduler": FlowMatchEulerDiscreteScheduler,
            "tokenizer": CLIPTokenizer,
            "tokenizer_2": T5Tokenizer,
            "text_encoder": CLIPTextModel,
            "text_encoder_2": T5EncoderModel,
            "vae": AutoencoderKL,
            "transformer": FluxTransformer2DModel,
        }

    def tokenize(self, parts: Parts, prompts: Sequence[str]) -> Tensors:
        """`input_ids`, (prompts, 77), and `input_ids_2`, (prompts, 512)."""
        tokenizer = parts["tokenizer"]
        return {
            "input_ids": token_ids(tokenizer, prompts, tokenizer.model_max_length),
            "input_ids_2": token_ids(parts["tokenizer_2"], prompts, T5_TOKENS),
        }

    def encode_prompts(self, parts: Parts, tokens: Tensors) -> Tensors:
        """`hidden_states`, (prompts, 512, width), of the T5, and `pooled` of the CLIP."""
        return {
            "hidden_states": parts["text_encoder_2"](tokens["input_ids_2"])[0],
            "pooled": parts["text_encoder"](tokens["input_ids"]).pooler_output,
        }

    def predict(
        self, parts: Parts, noisy: "Tensor", timesteps: "Tensor", conditioning: Tensors
    ) -> "Tensor":
        """With guidance scale 1 as input where there is one: photos are not guided samples."""
        import torch
        from torch.nn.functional import pixel_shuffle, pixel_unshuffle

        transformer, states = parts["transformer"], conditioning["hidden_states"]
        packed = pixel_unshuffle(noisy, 2)
        height, width = packed.shape[-2:]
        axes = [torch.arange(count, device=noisy.device) for count in (1, height, width)]
        prediction = transformer(
            hidden_states=packed.flatten(2).transpose(1, 2),
            timestep=timesteps / 1000,
            guidance=torch.ones_like(timesteps) if transformer.config.guidance_embeds else None,
            pooled_projections=conditioning["pooled"],
            encoder_hidden_states=states,
            txt_ids=noisy.new_zeros(states.shape[1], 3),
            img_ids=torch.cartesian_prod(*axes).to(noisy.dtype),
            return_dict=False,
        )
        return pixel_shuffle(prediction[0].transpose(1, 2).unflatten(2, (height, width)), 2)

    def guidance(self, sampler: "Sampler") -> Mapping[str, Any]:
        """The distilled scale; with a negative prompt classifier-free guidance instead, not both."""
        if not sampler.negative_prompt:
            return {"guidance_scale": sampler.guidance_scale}
        return {
            "guidance_scale": 1.0,
            "true_cfg_scale": sampler.guidance_scale,
            "negative_prompt": sampler.negative_prompt,
        }


FAMILY: Family = Flux()
