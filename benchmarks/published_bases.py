"""Base model folders with the published configs of each family and without weights.

Enough for everything that reads configs only, such as the memory plan. The numbers are those of the
`config.json` files of the named repositories on the Hugging Face Hub; options that equal the
defaults of diffusers' and transformers' classes are left out. Tokenizers have one token per byte:
only the length of their output matters here.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.tiny_bases import qwen_parts, tokenizers_of_bytes

CLIP_L = {"vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "projection_dim": 768}
CLIP_L |= {"num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_G = {"vocab_size": 49408, "hidden_size": 1280, "intermediate_size": 5120}
CLIP_G |= {"projection_dim": 1280, "num_hidden_layers": 32, "num_attention_heads": 20}
T5_XXL = {"vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24}
T5_XXL |= {"num_heads": 64, "feed_forward_proj": "gated-gelu", "is_encoder_decoder": False}
QWEN3_4B = {"vocab_size": 151936, "hidden_size": 2560, "intermediate_size": 9728, "head_dim": 128}
QWEN3_4B |= {"num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8}
QWEN3_4B |= {"tie_word_embeddings": True, "max_position_embeddings": 40960}
QWEN25_VL_7B = {
    "text_config": {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [16, 24, 24],
        },
    },
    "vision_config": {"hidden_size": 1280, "out_hidden_size": 3584},
}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}
VAE_16 = {
    **VAE,
    "latent_channels": 16,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "sample_size": 1024,
}

Component = tuple[str, Mapping[str, Any]]
"""Class name and options of its config."""


class PublishedBase:
    """A published base: its repository, and the class and options of each component."""

    def __init__(self, repository: str, pipeline: str, **components: Component) -> None:
        self.repository, self.pipeline, self.components = repository, pipeline, components


BASES: Mapping[str, PublishedBase] = {
    "stable_diffusion": PublishedBase(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "StableDiffusionPipeline",
        tokenizer=("CLIPTokenizer", {"length": 77}),
        text_encoder=("CLIPTextModel", CLIP_L),
        vae=("AutoencoderKL", VAE),
        unet=(
            "UNet2DConditionModel",
            {"sample_size": 64, "cross_attention_dim": 768},
        ),
        scheduler=(
            "PNDMScheduler",
            {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        ),
    ),
    "sdxl": PublishedBase(
        "stabilityai/stable-diffusion-xl-base-1.0",
        "StableDiffusionXLPipeline",
        tokenizer=("CLIPTokenizer", {"length": 77}),
        tokenizer_2=("CLIPTokenizer", {"length": 77, "pad": "!"}),
        text_encoder=("CLIPTextModel", CLIP_L),
        text_encoder_2=("CLIPTextModelWithProjection", CLIP_G),
        vae=("AutoencoderKL", {**VAE, "sample_size": 1024, "scaling_factor": 0.13025}),
        unet=(
            "UNet2DConditionModel",
            {
                "sample_size": 128,
                "block_out_channels": (320, 640, 1280),
                "down_block_types": (
                    "DownBlock2D",
                    "CrossAttnDownBlock2D",
                    "CrossAttnDownBlock2D",
                ),
                "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                "transformer_layers_per_block": (1, 2, 10),
                "attention_head_dim": (5, 10, 20),
                "cross_attention_dim": 2048,
                "use_linear_projection": True,
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 256,
                "projection_class_embeddings_input_dim": 2816,
            },
        ),
        scheduler=(
            "EulerDiscreteScheduler",
            {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        ),
    ),
    "sd3": PublishedBase(
        "stabilityai/stable-diffusion-3-medium-diffusers",
        "StableDiffusion3Pipeline",
        tokenizer=("CLIPTokenizer", {"length": 77}),
        tokenizer_2=("CLIPTokenizer", {"length": 77, "pad": "!"}),
        tokenizer_3=("T5TokenizerFast", {"length": 512}),
        text_encoder=("CLIPTextModelWithProjection", CLIP_L),
        text_encoder_2=("CLIPTextModelWithProjection", CLIP_G),
        text_encoder_3=("T5EncoderModel", T5_XXL),
        vae=("AutoencoderKL", {**VAE_16, "scaling_factor": 1.5305, "shift_factor": 0.0609}),
        transformer=(
            "SD3Transformer2DModel",
            {
                "num_layers": 24,
                "num_attention_heads": 24,
                "caption_projection_dim": 1536,
                "pos_embed_max_size": 192,
            },
        ),
        scheduler=("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ),
    "flux": PublishedBase(
        "black-forest-labs/FLUX.1-dev",
        "FluxPipeline",
        tokenizer=("CLIPTokenizer", {"length": 77}),
        tokenizer_2=("T5TokenizerFast", {"length": 512}),
        text_encoder=("CLIPTextModel", CLIP_L),
        text_encoder_2=("T5EncoderModel", T5_XXL),
        vae=("AutoencoderKL", {**VAE_16, "scaling_factor": 0.3611, "shift_factor": 0.1159}),
        transformer=("FluxTransformer2DModel", {"guidance_embeds": True}),
        scheduler=(
            "FlowMatchEulerDiscreteScheduler",
            {"shift": 3.0, "use_dynamic_shifting": True},
        ),
    ),
    "flux2": PublishedBase(
        "black-forest-labs/FLUX.2-klein-base-4B",
        "Flux2KleinPipeline",
        tokenizer=("Qwen2TokenizerFast", {}),
        text_encoder=("Qwen3ForCausalLM", QWEN3_4B),
        vae=("AutoencoderKLFlux2", {}),
        transformer=(
            "Flux2Transformer2DModel",
            {
                "num_layers": 5,
                "num_single_layers": 20,
                "num_attention_heads": 24,
                "joint_attention_dim": 7680,
                "guidance_embeds": False,
            },
        ),
        scheduler=(
            "FlowMatchEulerDiscreteScheduler",
            {"shift": 3.0, "use_dynamic_shifting": True},
        ),
    ),
    "qwen_image": PublishedBase(
        "Qwen/Qwen-Image",
        "QwenImagePipeline",
        tokenizer=("Qwen2Tokenizer", {}),
        text_encoder=("Qwen2_5_VLForConditionalGeneration", QWEN25_VL_7B),
        vae=("AutoencoderKLQwenImage", {}),
        transformer=("QwenImageTransformer2DModel", {}),
        scheduler=("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}),
    ),
    "z_image": PublishedBase(
        "Tongyi-MAI/Z-Image",
        "ZImagePipeline",
        tokenizer=("Qwen2Tokenizer", {}),
        text_encoder=("Qwen3Model", QWEN3_4B),
        vae=("AutoencoderKL", {**VAE_16, "scaling_factor": 0.3611, "shift_factor": 0.1159}),
        transformer=("ZImageTransformer2DModel", {}),
        scheduler=("FlowMatchEulerDiscreteScheduler", {"shift": 6.0}),
    ),
    "sana": PublishedBase(
        "Efficient-Large-Model/Sana_1600M_1024px_diffusers",
        "SanaPipeline",
        tokenizer=("GemmaTokenizerFast", {}),
        text_encoder=("Gemma2Model", {}),
        vae=(
            "AutoencoderDC",
            {
                "encoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
                "decoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
                "encoder_layers_per_block": (2, 2, 2, 3, 3, 3),
                "downsample_block_type": "conv",
                "upsample_block_type": "interpolate",
                "scaling_factor": 0.41407,
            },
        ),
        transformer=("SanaTransformer2DModel", {}),
        scheduler=(
            "DPMSolverMultistepScheduler",
            {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0},
        ),
    ),
}
"""Model family -> base."""


def write(family: str, folder: Path) -> Path:
    """Write the base's `model_index.json`, configs and tokenizers into a new folder."""
    import diffusers
    import torch
    import transformers

    base = BASES[family]
    folder.mkdir(parents=True)
    index: dict[str, Any] = {"_class_name": base.pipeline}
    for name, (kind, options) in base.components.items():
        target = folder / name
        if name.startswith("tokenizer"):
            _tokenizer(kind, dict(options), target)
            library = "transformers"
        elif hasattr(diffusers, kind):
            library = "diffusers"
            with torch.device("cpu" if name == "scheduler" else "meta"):
                getattr(diffusers, kind)(**options).save_config(target)
        else:
            library = "transformers"
            getattr(transformers, kind).config_class(**options).save_pretrained(target)
        index[name] = [library, kind]
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    return folder


def _tokenizer(kind: str, options: dict[str, Any], folder: Path) -> None:
    if kind == "CLIPTokenizer":
        tokenizers_of_bytes.clip(folder, **options)
        return
    makers: Mapping[str, Callable[..., Any]] = {
        "T5TokenizerFast": tokenizers_of_bytes.t5,
        "GemmaTokenizerFast": tokenizers_of_bytes.gemma,
    }
    makers.get(kind, qwen_parts.tokenizer)(**options).save_pretrained(folder)
