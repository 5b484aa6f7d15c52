"""Sana (Xie et al. 2024, arXiv:2410.10629).

A Gemma 2 as text encoder, which stays frozen, a linear transformer trained by flow matching, and
an autoencoder that makes images 32 times smaller and whose latents are certain, not a distribution.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dreambooth_core.diffusion.families import DiffusersFamily, Family, Parts, Tensors
from dreambooth_core.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

    from dreambooth_core.config import Sampler
    from dreambooth_core.diffusion.latents import LatentDistribution
    from dreambooth_core.diffusion.objectives import Objective

GEMMA_TOKENS = 300
"""What the pipeline reads of a prompt unless told otherwise."""
CERTAIN = -1e4
"""A log variance whose standard deviation is 0 in every format of numbers."""


class Sana(DiffusersFamily):
    """The `sana` family."""

    pipeline_class = "SanaPipeline"
    flow = True
    denoiser = "transformer"
    autoencoder = "vae"
    text_encoders: tuple[str, ...] = ("text_encoder",)
    tokenizers: Mapping[str, str] = {}
    lora_targets: Mapping[str, tuple[str, ...]] = {
        "transformer": ("to_q", "to_k", "to_v", "to_out.0")
    }
    pixel_multiple = 32

    def classes(self) -> Mapping[str, Any]:
        from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaTransformer2DModel
        from transformers import Gemma2Model, GemmaTokenizer

        return {
            "scheduler": DPMSolverMultistepScheduler,
            "tokenizer": GemmaTokenizer,
            "text_encoder": Gemma2Model,
            "vae": AutoencoderDC,
            "transformer": SanaTransformer2DModel,
        }

    def objective(self, parts: Parts) -> "Objective":
        """Raises `ModelError` for a base that does not predict a flow."""
        found = parts["scheduler"].config.prediction_type
        if found != "flow_prediction":
            raise ModelError(
                f"the base predicts {found!r}, but a Sana that can be trained here predicts "
                "'flow_prediction'; choose one whose scheduler_config.json says so"
            )
        return super().objective(parts)

    def tokenize(self, parts: Parts, prompts: Sequence[str]) -> Tensors:
        """`input_ids` and `attention_mask`, (prompts, 300), of the prompts in small letters.

        Without the instruction by which Gemma is asked to enhance a prompt: it leads the pipeline
        to imagine more, and an identifier token should mean the photos' subject and no more.
        """
        tokens = parts["tokenizer"](
            [prompt.lower().strip() for prompt in prompts],
            padding="max_length",
            padding_side="right",
            max_length=GEMMA_TOKENS,
            truncation=True,
            return_tensors="pt",
        )
        return {name: tokens[name] for name in ("input_ids", "attention_mask")}

    def encode_prompts(self, parts: Parts, tokens: Tensors) -> Tensors:
        """`hidden_states`, (prompts, 300, width), and their `attention_mask`."""
        mask = tokens["attention_mask"]
        states = parts["text_encoder"](tokens["input_ids"], attention_mask=mask)[0]
        return {"hidden_states": states, "attention_mask": mask}

    def encode_images(self, parts: Parts, pixels: "Tensor") -> "LatentDistribution":
        import torch

        from dreambooth_core.diffusion.latents import LatentDistribution

        vae = parts["vae"]
        latents = vae.encode(pixels).latent
        certain = LatentDistribution(latents, torch.full_like(latents, CERTAIN))
        return certain.scaled(vae.config.scaling_factor)

    def predict(
        self, parts: Parts, noisy: "Tensor", timesteps: "Tensor", conditioning: Tensors
    ) -> "Tensor":
        transformer = parts["transformer"]
        answer = transformer(
            noisy,
            encoder_hidden_states=conditioning["hidden_states"],
            encoder_attention_mask=conditioning["attention_mask"],
            timestep=timesteps * transformer.config.timestep_scale,
            return_dict=False,
        )
        found: Tensor = answer[0]
        return found

    def guidance(self, sampler: "Sampler") -> Mapping[str, Any]:
        """Also what makes the pipeline read prompts and sizes as they were trained."""
        return {
            "guidance_scale": sampler.guidance_scale,
            "negative_prompt": sampler.negative_prompt,
            "complex_human_instruction": None,
            "use_resolution_binning": False,
        }


FAMILY: Family = Sana()
