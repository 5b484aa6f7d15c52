"""Stable Diffusion 1.x and 2.x (Rombach et al. 2022, arXiv:2112.10752).

One CLIP text encoder and a UNet; epsilon or v-prediction by the base's noise scheduler. The safety
checker is not loaded.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from dreambooth_core.diffusion.families import DiffusersFamily, Family, Parts, Tensors

if TYPE_CHECKING:
    from torch import Tensor


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
        """`input_ids` and, for encoders that use it, `attention_mask`: (prompts, max_length)."""
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
        """`hidden_states`: (prompts, tokens, width), as computed by StableDiffusionPipeline."""
        states = parts["text_encoder"](tokens["input_ids"], tokens.get("attention_mask"))[0]
        return {"hidden_states": states}

    def predict(
        self, parts: Parts, noisy: "Tensor", timesteps: "Tensor", conditioning: Tensors
    ) -> "Tensor":
        states = conditioning["hidden_states"]
        prediction = parts["unet"](noisy, timesteps, states, return_dict=False)
        found: Tensor = prediction[0]
        return found

    def sampler(self, parts: Parts) -> Any:
        """DPM-Solver++ (2M), which needs about 20 steps instead of DDIM's 50 (arXiv:2211.01095)."""
        from diffusers import DPMSolverMultistepScheduler

        return DPMSolverMultistepScheduler.from_config(
            parts["scheduler"].config, algorithm_type="dpmsolver++", solver_order=2
        )


FAMILY: Family = StableDiffusion()
