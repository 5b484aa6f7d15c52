"""A Flux2KleinPipeline folder of about 1 MB: latents of 16 channels at 1/16 of the pixels."""

from pathlib import Path

from tests.tiny_bases import qwen_parts


def build(folder: Path, is_distilled: bool = False) -> Path:
    import torch
    from diffusers import (
        AutoencoderKLFlux2,
        FlowMatchEulerDiscreteScheduler,
        Flux2KleinPipeline,
        Flux2Transformer2DModel,
    )
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = qwen_parts.tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # the pipeline reads the states behind layers 9, 18 and 27
        text_encoder = Qwen3ForCausalLM(Qwen3Config(**qwen_parts.sizes(tokenizer, 28), head_dim=8))
        vae = AutoencoderKLFlux2(
            block_out_channels=(8, 8, 8, 8),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=32,
        )
        vae.bn.running_mean.normal_()
        vae.bn.running_var.uniform_(0.5, 2.0)
        transformer = Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=48,
            timestep_guidance_channels=32,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=False,
        )
    Flux2KleinPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        is_distilled=is_distilled,
    ).save_pretrained(folder, safe_serialization=True)
    return folder
