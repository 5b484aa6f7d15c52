"""A FluxPipeline folder of about 1 MB, [dev] or [schnell]: 32x32 pixels, 16x16x4 latents."""

from pathlib import Path

from tests.tiny_bases import clip_parts, tokenizers_of_bytes

VARIANTS = {"schnell": {"guidance_embeds": False}}


def build(folder: Path, guidance_embeds: bool = True) -> Path:
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextModel, T5EncoderModel

    first = tokenizers_of_bytes.clip(folder / "tokenizer")
    second = tokenizers_of_bytes.t5()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text_encoder = CLIPTextModel(clip_parts.text_config(first, width=16))
        text_encoder_2 = T5EncoderModel(clip_parts.t5_config(second, width=16))
        vae = clip_parts.autoencoder(
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
        transformer = FluxTransformer2DModel(
            in_channels=4 * 4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            pooled_projection_dim=16,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=(4, 6, 6),
        )
    shifting = {"shift": 3.0, "use_dynamic_shifting": True} if guidance_embeds else {}
    FluxPipeline(
        vae=vae,
        text_encoder=text_encoder,
        text_encoder_2=text_encoder_2,
        tokenizer=first,
        tokenizer_2=second,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(**shifting),
    ).save_pretrained(folder, safe_serialization=True)
    return folder
