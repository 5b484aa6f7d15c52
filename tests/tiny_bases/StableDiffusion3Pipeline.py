"""A StableDiffusion3Pipeline folder of about 1 MB: 32x32 pixels, 16x16x16 latents."""

from pathlib import Path

from tests.tiny_bases import clip_parts, tokenizers_of_bytes


def build(folder: Path) -> Path:
    import torch
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )
    from transformers import CLIPTextModelWithProjection, T5EncoderModel

    first = tokenizers_of_bytes.clip(folder / "tokenizer")
    second = tokenizers_of_bytes.clip(folder / "tokenizer_2", pad="!")
    third = tokenizers_of_bytes.t5()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text_encoder = CLIPTextModelWithProjection(clip_parts.text_config(first, width=8))
        text_encoder_2 = CLIPTextModelWithProjection(clip_parts.text_config(second, width=16))
        text_encoder_3 = T5EncoderModel(clip_parts.t5_config(third, width=32))
        vae = clip_parts.autoencoder(
            latent_channels=16,
            scaling_factor=1.5305,
            shift_factor=0.0609,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
        transformer = SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=16,
            out_channels=16,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            caption_projection_dim=32,
            pooled_projection_dim=8 + 16,
            pos_embed_max_size=24,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        )
    StableDiffusion3Pipeline(
        vae=vae,
        text_encoder=text_encoder,
        text_encoder_2=text_encoder_2,
        text_encoder_3=text_encoder_3,
        tokenizer=first,
        tokenizer_2=second,
        tokenizer_3=third,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    ).save_pretrained(folder, safe_serialization=True)
    return folder
