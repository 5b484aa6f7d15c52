"""Stable Diffusion 1.x and 2.x (Rombach et al. 2022, arXiv:2112.10752).

One CLIP text encoder, one UNet; epsilon or v-prediction as the base's noise scheduler says. The
safety checker is neither loaded nor kept.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from dreambooth_core.diffusion.families import DiffusersFamily, Family, Parts, Tensors

if TYPE_CHECKING:
    from torch import Tensor

    from dreambooth_core.config import Sampler
    from dreambooth_core.diffusion.latents import LatentDistribution


class StableDiffusion(DiffusersFamily):
    """The `stable_diffusion` family."""

    pipeline_class = "StableDiffusionPipeline"
    flow = False
    denoiser = "unet"
    autoencoder = "vae"
    text_encoders: tuple[str, ...] = ("text_encoder",)
    tokenizers: Mapping[str, str] = {"text_encoder": "tokenizer"}
    lora_targets: Mapping[str, tuple[str, ...]] = {
        "unet": ("to_q", "to_k", "to_v", "to_out.0"),
        "text_encoder": ("q_proj", "k_proj", "v_proj", "out_proj"),
    }
    pixel_multiple = 8
    extras: Mapping[str, Any] = MappingProxyType(
        {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    )

    def classes(self) -> Mapping[str, Any]:
        from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTokenizer

        return {
            "scheduler": DDPMScheduler,
            "tokenizer": CLIPTokenizer,
            "text_encoder": CLIPTextModel,
            "vae": AutoencoderKL,
            "unet": UNet2DConditionModel,
        }

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

    def encode_images(self, parts: Parts, pixels: "Tensor") -> "LatentDistribution":
        from dreambooth_core.diffusion.latents import LatentDistribution

        vae = parts["vae"]
        found = vae.encode(pixels).latent_dist
        return LatentDistribution(found.mean, found.logvar).scaled(vae.config.scaling_factor)

    def predict(
        self, parts: Parts, noisy: "Tensor", timesteps: "Tensor", conditioning: Tensors
    ) -> "Tensor":
        answer = parts["unet"](noisy, timesteps, conditioning["hidden_states"], return_dict=False)
        found: Tensor = answer[0]
        return found

    def sampler(self, parts: Parts) -> Any:
        """DPM-Solver++ (2M): about 20 steps do what DDIM needs 50 for (arXiv:2211.01095)."""
        from diffusers import DPMSolverMultistepScheduler

        return DPMSolverMultistepScheduler.from_config(
            parts["scheduler"].config, algorithm_type="dpmsolver++", solver_order=2
        )

    def guidance(self, sampler: "Sampler") -> Mapping[str, Any]:
        return {
            "guidance_scale": sampler.guidance_scale,
            "negative_prompt": sampler.negative_prompt,
        }


FAMILY: Family = StableDiffusion()
