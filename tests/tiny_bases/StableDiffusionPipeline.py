"""A StableDiffusionPipeline folder of about 1 MB: 32x32 pixels, 16x16x4 latents."""

from pathlib import Path

from tests.tiny_bases import clip_parts, tokenizers_of_bytes

VARIANTS = {"v_prediction": {"prediction_type": "v_prediction"}}


def build(folder: Path, prediction_type: str = "epsilon") -> Path:
    import torch
    from diffusers import (
        DDPMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextModel

    tokenizer = tokenizers_of_bytes.clip(folder / "tokenizer")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text_encoder = CLIPTextModel(clip_parts.text_config(tokenizer))
        vae = clip_parts.autoencoder()
        unet = UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(32, 64),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=32,
            attention_head_dim=4,
            norm_num_groups=8,
        )
    scheduler = DDPMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder, safe_serialization=True)
    return folder
