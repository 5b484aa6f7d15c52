"""Sana (Xie et al. 2024, arXiv:2410.10629).

A frozen Gemma 2 as text encoder, a linear-attention transformer trained by flow matching, and a
deterministic autoencoder with a downsampling factor of 32.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dreambooth_core.diffusion.families import DiffusersFamily, Family, Parts, Tensors, _text
from dreambooth_core.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

    from dreambooth_core.config import Sampler
    from dreambooth_core.diffusion.latents import LatentDistribution
    from dreambooth_core.diffusion.objectives import Objective

GEMMA_TOKENS = 300
"""Default `max_sequence_length` of the pipeline."""
LOG_VARIANCE = -1e4
"""Of deterministic latents: the standard deviation is 0 in every dtype."""


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
                f"the base predicts {found!r}, but Sana is trained with 'flow_prediction': use a "
                "base with this prediction_type in its scheduler_config.json"
            )
        return super().objective(parts)

    def tokenize(self, parts: Parts, prompts: Sequence[str]) -> Tensors:
        """`input_ids` and `attention_mask`, (prompts, 300), of the prompts in lower case.

        Without the pipeline's instruction to enhance a prompt, which adds content that the prompt
        does not name.
        """
        texts = [prompt.lower().strip() for prompt in prompts]
        return _text.token_table(parts["tokenizer"], texts, GEMMA_TOKENS)

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
        exact = LatentDistribution(latents, torch.full_like(latents, LOG_VARIANCE))
        return exact.scaled(vae.config.scaling_factor)

    def predict(
        self, parts: Parts, noisy: "Tensor", timesteps: "Tensor", conditioning: Tensors
    ) -> "Tensor":
        transformer = parts["transformer"]
        prediction = transformer(
            noisy,
            encoder_hidden_states=conditioning["hidden_states"],
            encoder_attention_mask=conditioning["attention_mask"],
            timestep=timesteps * transformer.config.timestep_scale,
            return_dict=False,
        )
        found: Tensor = prediction[0]
        return found

    def guidance(self, sampler: "Sampler") -> Mapping[str, Any]:
        """Also disables the prompt instruction and resolution binning, as in training."""
        return {
            **super().guidance(sampler),
            "complex_human_instruction": None,
            "use_resolution_binning": False,
        }


FAMILY: Family = Sana()
