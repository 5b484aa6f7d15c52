"""FLUX.2 [klein] (Black Forest Labs 2026, bfl.ai/blog/flux2-klein-towards-interactive-visual-intelligence).

The conditioning is the states after three layers of a Qwen3, concatenated; the transformer is trained
by rectified flow. Latents are packed in 2 x 2 patches and normalised by the running statistics of the
autoencoder's batch norm. The base to train is `klein-base`; step-distilled bases are sampled without
guidance.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth_core.diffusion.families import DiffusersFamily, Family, Parts, Tensors, _qwen, _text
from dreambooth_core.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from dreambooth_core.config import Sampler
    from dreambooth_core.diffusion.latents import LatentDistribution

PROMPT_TOKENS = 512
"""Including padding, to which the denoiser attends too: there is no mask."""
LAYERS = (9, 18, 27)
"""Layers of the language model after which the states are taken."""


class Flux2(DiffusersFamily):
    """The `flux2` family."""

    pipeline_class = "Flux2KleinPipeline"
    flow = True
    denoiser = "transformer"
    autoencoder = "vae"
    text_encoders: tuple[str, ...] = ("text_encoder",)
    tokenizers: Mapping[str, str] = {}
    lora_targets: Mapping[str, tuple[str, ...]] = {
        "transformer": (
            *("to_q", "to_k", "to_v", "to_out.0"),
            *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
            "to_qkv_mlp_proj",
        )
    }
    pixel_multiple = 16

    def classes(self) -> Mapping[str, Any]:
        from diffusers import (
            AutoencoderKLFlux2,
            FlowMatchEulerDiscreteScheduler,
            Flux2Transformer2DModel,
        )
        from transformers import Qwen2Tokenizer, Qwen3ForCausalLM

        return {
            "scheduler": FlowMatchEulerDiscreteScheduler,
            "tokenizer": Qwen2Tokenizer,
            "text_encoder": Qwen3ForCausalLM,
            "vae": AutoencoderKLFlux2,
            "transformer": Flux2Transformer2DModel,
        }

    def load(
        self,
        folder: Path,
        tuned: Mapping[str, Path | None] | None = None,
        dtype: "torch.dtype | None" = None,
    ) -> Parts:
        """The components, and `is_distilled`: whether the base is step-distilled."""
        from diffusers import Flux2KleinPipeline

        parts = super().load(folder, tuned, dtype)
        index = Flux2KleinPipeline.load_config(folder, local_files_only=True)
        distilled = bool(index.get("is_distilled", False))
        return replace(parts, components={**parts.components, "is_distilled": distilled})

    def tokenize(self, parts: Parts, prompts: Sequence[str]) -> Tensors:
        """`input_ids` and `attention_mask`: (prompts, 512)."""
        texts = _qwen.chats(parts["tokenizer"], prompts, thinking=False)
        return _text.token_table(parts["tokenizer"], texts, PROMPT_TOKENS, padding_side=None)

    def encode_prompts(self, parts: Parts, tokens: Tensors) -> Tensors:
        """`hidden_states`: (prompts, 512, 3 * width), as Flux2KleinPipeline computes them."""
        import torch

        language_model = parts["text_encoder"].model
        found = []
        for ids, mask in _qwen.one_by_one(tokens):
            states = _qwen.hidden_states(language_model, ids, mask)
            found.append(torch.cat([states[layer] for layer in LAYERS], dim=-1))
        return {"hidden_states": torch.cat(found)}

    def encode_images(self, parts: Parts, pixels: "Tensor") -> "LatentDistribution":
        """Distributions of (batch, 4 * channels, height / 16, width / 16)."""
        import torch
        from torch.nn.functional import pixel_unshuffle

        from dreambooth_core.diffusion.latents import LatentDistribution

        vae = parts["vae"]
        found = vae.encode(pixels).latent_dist
        mean = vae.bn.running_mean.view(1, -1, 1, 1)
        deviation = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps)
        return LatentDistribution(
            (pixel_unshuffle(found.mean, 2) - mean) / deviation,
            pixel_unshuffle(found.logvar, 2) - 2 * deviation.log(),
        )

    def predict(
        self, parts: Parts, noisy: "Tensor", timesteps: "Tensor", conditioning: Tensors
    ) -> "Tensor":
        states = conditioning["hidden_states"]
        height, width = noisy.shape[-2:]
        prediction = parts["transformer"](
            hidden_states=noisy.flatten(2).transpose(1, 2),
            timestep=timesteps / 1000,
            encoder_hidden_states=states,
            img_ids=_positions(1, height, width, 1, noisy.device),
            txt_ids=_positions(1, 1, 1, states.shape[1], noisy.device),
            guidance=None,
            return_dict=False,
        )
        found: Tensor = prediction[0].transpose(1, 2).unflatten(2, (height, width))
        return found

    def guidance(self, sampler: "Sampler") -> Mapping[str, Any]:
        """Raises `ConfigError` for a negative prompt, which this pipeline does not take."""
        if sampler.negative_prompt:
            raise ConfigError(
                "the flux2 family takes no negative prompt; leave sampler.negative_prompt empty"
            )
        return {"guidance_scale": sampler.guidance_scale}


def _positions(time: int, height: int, width: int, text: int, device: "torch.device") -> "Tensor":
    """Rotary positions of tokens, (tokens, 4); the last axis varies fastest."""
    import torch

    axes = [torch.arange(count, device=device) for count in (time, height, width, text)]
    return torch.cartesian_prod(*axes)


FAMILY: Family = Flux2()
