"""Z-Image (Cai et al. 2025, arXiv:2511.22699).

Qwen3 encodes the prompt; one transformer takes text and image tokens in a single stream. Its time is
reversed, 0 for noise and 1 for the image, and so is the sign of its velocity.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dreambooth_core.diffusion.families import DiffusersFamily, Family, Parts, Tensors, _qwen, _text

if TYPE_CHECKING:
    from torch import Tensor

    from dreambooth_core.config import Sampler

PROMPT_TOKENS = 512


class ZImage(DiffusersFamily):
    """The `z_image` family."""

    pipeline_class = "ZImagePipeline"
    flow = True
    denoiser = "transformer"
    autoencoder = "vae"
    text_encoders: tuple[str, ...] = ("text_encoder",)
    tokenizers: Mapping[str, str] = {}
    lora_targets: Mapping[str, tuple[str, ...]] = {
        "transformer": ("to_q", "to_k", "to_v", "to_out.0")
    }
    pixel_multiple = 16

    def classes(self) -> Mapping[str, Any]:
        from diffusers import (
            AutoencoderKL,
            FlowMatchEulerDiscreteScheduler,
            ZImageTransformer2DModel,
        )
        from transformers import Qwen2Tokenizer, Qwen3Model

        return {
            "scheduler": FlowMatchEulerDiscreteScheduler,
            "tokenizer": Qwen2Tokenizer,
            "text_encoder": Qwen3Model,
            "vae": AutoencoderKL,
            "transformer": ZImageTransformer2DModel,
        }

    def tokenize(self, parts: Parts, prompts: Sequence[str]) -> Tensors:
        """`input_ids` and `attention_mask`: (prompts, 512)."""
        texts = _qwen.chats(parts["tokenizer"], prompts, thinking=True)
        return _text.token_table(parts["tokenizer"], texts, PROMPT_TOKENS)

    def encode_prompts(self, parts: Parts, tokens: Tensors) -> Tensors:
        """`hidden_states` (prompts, 512, width) before the last layer, zero after a prompt's end,
        and bool `mask` (prompts, 512), as computed by ZImagePipeline."""
        import torch

        found = []
        for ids, mask in _qwen.one_by_one(tokens):
            states = _qwen.hidden_states(parts["text_encoder"], ids, mask)[-2]
            found.append(states * mask.unsqueeze(2))
        return {"hidden_states": torch.cat(found), "mask": tokens["attention_mask"].bool()}

    def predict(
        self, parts: Parts, noisy: "Tensor", timesteps: "Tensor", conditioning: Tensors
    ) -> "Tensor":
        import torch

        lengths = _qwen.lengths(conditioning["mask"])
        rows = zip(conditioning["hidden_states"], lengths, strict=True)
        reversed_velocity = parts["transformer"](
            list(noisy.unsqueeze(2)),
            (1000 - timesteps) / 1000,
            [states[:length] for states, length in rows],
            return_dict=False,
        )[0]
        return -torch.stack(reversed_velocity).squeeze(2)

    def guidance(self, sampler: "Sampler") -> Mapping[str, Any]:
        """This pipeline's scale is the usual one minus 1: 0 means no guidance."""
        return {
            "guidance_scale": sampler.guidance_scale - 1,
            "negative_prompt": sampler.negative_prompt,
        }


FAMILY: Family = ZImage()
