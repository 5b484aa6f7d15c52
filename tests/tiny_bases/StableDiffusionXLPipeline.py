"""A StableDiffusionXLPipeline folder of about 2 MB: 32x32 pixels, 16x16x4 latents."""

from pathlib import Path

from tests.tiny_bases import clip_parts, tokenizers_of_bytes

VARIANTS = {"v_prediction": {"prediction_type": "v_prediction"}}


def build(folder: Path, prediction_type: str = "epsilon") -> Path:
    import torch
    from diffusers import (
        EulerDiscreteScheduler,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    first = tokenizers_of_bytes.clip(folder / "tokenizer")
    second = tokenizers_of_bytes.clip(folder / "tokenizer_2", pad="!")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text_encoder = CLIPTextModel(clip_parts.text_config(first, width=16))
        text_encoder_2 = CLIPTextModelWithProjection(clip_parts.text_config(second, width=32))
        vae = clip_parts.autoencoder(scaling_factor=0.13025)
        unet = UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(32, 64),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            transformer_layers_per_block=1,
            cross_attention_dim=16 + 32,
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=32 + 6 * 8,
            norm_num_groups=8,
        )
    StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=text_encoder,
        text_encoder_2=text_encoder_2,
        tokenizer=first,
        tokenizer_2=second,
        unet=unet,
        scheduler=EulerDiscreteScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            steps_offset=1,
            timestep_spacing="leading",
            prediction_type=prediction_type,
        ),
        add_watermarker=False,
    ).save_pretrained(folder, safe_serialization=True)
    return folder
