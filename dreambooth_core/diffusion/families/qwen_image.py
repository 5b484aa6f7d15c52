"""Qwen-Image (Wu et al. 2025, arXiv:2508.02324).

Qwen2.5-VL encodes the prompt after a system prompt, whose states are dropped; the transformer is
trained by rectified flow on latents packed in 2 x 2 patches. The autoencoder is for videos: an image
is a video of one frame.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dreambooth_core.diffusion.families import DiffusersFamily, Family, Parts, Tensors, _qwen, _text

if TYPE_CHECKING:
    from torch import Tensor

    from dreambooth_core.config import Sampler
    from dreambooth_core.diffusion.latents import LatentDistribution

TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity,"
    " text, spatial relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
    "{}<|im_end|>\n<|im_start|>assistant\n"
)
SYSTEM_TOKENS = 34
"""Tokens of the template before the prompt."""
PROMPT_TOKENS = 512
"""Default of the pipeline for a prompt and the end of the template."""


class QwenImage(DiffusersFamily):
    """The `qwen_image` family."""

    pipeline_class = "QwenImagePipeline"
    flow = True
    denoiser = "transformer"
    autoencoder = "vae"
    text_encoders: tuple[str, ...] = ("text_encoder",)
    tokenizers: Mapping[str, str] = {}
    lora_targets: Mapping[str, tuple[str, ...]] = {
        "transformer": ("to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_v_proj")
    }
    """Without the text stream's query and output: those of the last block have no effect."""
    pixel_multiple = 16

    def classes(self) -> Mapping[str, Any]:
        from diffusers import (
            AutoencoderKLQwenImage,
            FlowMatchEulerDiscreteScheduler,
            QwenImageTransformer2DModel,
        )
        from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

        return {
            "scheduler": FlowMatchEulerDiscreteScheduler,
            "tokenizer": Qwen2Tokenizer,
            "text_encoder": Qwen2_5_VLForConditionalGeneration,
            "vae": AutoencoderKLQwenImage,
            "transformer": QwenImageTransformer2DModel,
        }

    def tokenize(self, parts: Parts, prompts: Sequence[str]) -> Tensors:
        """`input_ids` and `attention_mask`: (prompts, 34 + 512)."""
        texts = [TEMPLATE.format(prompt) for prompt in prompts]
        return _text.token_table(parts["tokenizer"], texts, SYSTEM_TOKENS + PROMPT_TOKENS)

    def encode_prompts(self, parts: Parts, tokens: Tensors) -> Tensors:
        """`hidden_states` (prompts, 512, width), zero after a prompt's end, and bool `mask`
        (prompts, 512), as computed by QwenImagePipeline for a single prompt."""
        import torch
        from torch.nn.functional import pad

        language_model = parts["text_encoder"].model.language_model
        found = []
        for ids, mask in _qwen.one_by_one(tokens):
            length = _qwen.lengths(mask)[0]
            states = _qwen.hidden_states(language_model, ids[:, :length])[-1]
            found.append(pad(states[:, SYSTEM_TOKENS:], (0, 0, 0, ids.shape[1] - length)))
        kept = tokens["attention_mask"][:, SYSTEM_TOKENS:].bool()
        return {"hidden_states": torch.cat(found), "mask": kept}

    def encode_images(self, parts: Parts, pixels: "Tensor") -> "LatentDistribution":
        from dreambooth_core.diffusion.latents import LatentDistribution

        vae = parts["vae"]
        found = vae.encode(pixels.unsqueeze(2)).latent_dist
        mean, deviation = (
            found.mean.new_tensor(values).view(1, -1, 1, 1)
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        return LatentDistribution(
            (found.mean.squeeze(2) - mean) / deviation,
            found.logvar.squeeze(2) - 2 * deviation.log(),
        )

    def predict(
        self, parts: Parts, noisy: "Tensor", timesteps: "Tensor", conditioning: Tensors
    ) -> "Tensor":
        from torch.nn.functional import pixel_shuffle, pixel_unshuffle

        patches = pixel_unshuffle(noisy, 2)
        height, width = patches.shape[-2:]
        prediction = parts["transformer"](
            hidden_states=patches.flatten(2).transpose(1, 2),
            timestep=timesteps / 1000,
            img_shapes=[[(1, height, width)]] * len(noisy),
            return_dict=False,
            **_truncated(conditioning),
        )
        found: Tensor = pixel_shuffle(
            prediction[0].transpose(1, 2).unflatten(2, (height, width)), 2
        )
        return found

    def guidance(self, sampler: "Sampler") -> Mapping[str, Any]:
        return {
            "true_cfg_scale": sampler.guidance_scale,
            "negative_prompt": sampler.negative_prompt,
        }


def _truncated(conditioning: Tensors) -> dict[str, Any]:
    """The transformer's text arguments, truncated to the longest prompt of the batch."""
    mask = conditioning["mask"].bool()
    lengths = _qwen.lengths(mask)
    longest = max(lengths)
    return {
        "encoder_hidden_states": conditioning["hidden_states"][:, :longest],
        "encoder_hidden_states_mask": mask[:, :longest] if min(lengths) < longest else None,
    }


FAMILY: Family = QwenImage()
