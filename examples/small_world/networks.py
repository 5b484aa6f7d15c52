"""Networks of the small world's base: architectures, pipeline, warm start, and their inputs."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from examples.small_world.tokenizer import MAX_TOKENS


def autoencoder(latent_channels: int = 4) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=latent_channels,
        sample_size=64,
        block_out_channels=(48, 96, 128),
        layers_per_block=1,
        norm_num_groups=16,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
    )


def unet(latent_channels: int = 4) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16,
        in_channels=latent_channels,
        out_channels=latent_channels,
        cross_attention_dim=192,
        block_out_channels=(64, 128, 192),
        layers_per_block=2,
        norm_num_groups=16,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )


def text_encoder(tokenizer: Any) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=192,
            intermediate_size=768,
            num_hidden_layers=4,
            num_attention_heads=6,
            max_position_embeddings=MAX_TOKENS,
            projection_dim=192,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def noise_scheduler() -> Any:
    """DDIM with linear betas: the last timestep is almost pure noise, so that dark images are possible."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def pipeline(vae: Any, denoiser: Any, tokenizer: Any) -> Any:
    """A Stable Diffusion pipeline; `denoiser` has the keys `unet` and `text_encoder`."""
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline(
        vae=vae,
        unet=denoiser["unet"],
        text_encoder=denoiser["text_encoder"],
        tokenizer=tokenizer,
        scheduler=noise_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def warm_start(network: nn.Module, old: dict[str, Tensor], latent_channels: int) -> None:
    """Copy all weights of `old`, into the first latent channels where `network` has more of them.

    Weights from new input channels to old output channels are 0: the initial network computes the old
    one's function.
    """
    new = network.state_dict()
    for name, weight in old.items():
        target = new[name]
        if target.shape == weight.shape:
            target.copy_(weight)
            continue
        channels = [
            _channels(before, now, latent_channels)
            for before, now in zip(weight.shape, target.shape, strict=True)
        ]
        target[channels[0]] = 0
        target[torch.meshgrid(*channels, indexing="ij")] = weight.to(target.dtype)
    network.load_state_dict(new)


def _channels(before: int, now: int, latent_channels: int) -> Tensor:
    """Indices of `before` old channels among `now`; means and log variances are two halves."""
    if before == now or now != 2 * latent_channels:
        return torch.arange(before)
    half = torch.arange(before // 2)
    return torch.cat([half, latent_channels + half])


def load_weights(folder: Path, part: str) -> dict[str, Tensor]:
    """Weights of one component of a base, in float32."""
    from safetensors.torch import load_file

    (file,) = (folder / part).glob("*.safetensors")
    return {name: weight.float() for name, weight in load_file(file).items()}


def tokenize(tokenizer: Any, texts: list[str]) -> Tensor:
    """Token ids, int32 (n, MAX_TOKENS)."""
    ids = tokenizer(texts, padding="max_length", truncation=True, max_length=MAX_TOKENS).input_ids
    return torch.tensor(np.array(ids, dtype=np.int32))


def to_pixels(images: Tensor) -> Tensor:
    """uint8 (n, h, w, 3) -> float32 (n, 3, h, w) in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float().div(127.5).sub(1)
