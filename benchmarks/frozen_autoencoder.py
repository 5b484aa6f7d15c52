"""Memory saved by a frozen autoencoder: `python benchmarks/frozen_autoencoder.py`.

Peak memory of one step of full training with the text encoder and AdamW in float32, one photo and one
class image, computed with fake tensors. The original project claims that freezing saves 40 %.

- trained: gradients reach the encoder through the latents;
- frozen: the photos are encoded at each step, without gradients;
- left: the latents are cached and the autoencoder is not in memory, as in this project.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dreambooth_core.diffusion.families import Parts, load_family
from dreambooth_core.training.dry_step import LiveStorages, RealIndices, materialize
from dreambooth_core.training.memory_plan import size
from dreambooth_core.training.optimizers import state_bytes

Autoencoder = Literal["trained", "frozen", "left"]
EXAMPLES = 2
CLAIM = 0.40
FAMILY = load_family("stable_diffusion")
SMALL_WORLD = Path(__file__).parent.parent / "examples" / "small_world" / "base"


def small_world() -> Parts:
    return FAMILY.load(SMALL_WORLD)


def stable_diffusion_1_5() -> Parts:
    """The published architecture: 860 M parameters in the UNet, 84 M in the VAE, 123 M in CLIP."""
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("cpu"):
        scheduler = DDPMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False
        )
    text = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=77,
    )
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        sample_size=512,
    )
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    models = {"text_encoder": CLIPTextModel(text), "vae": vae, "unet": unet}
    return Parts({"scheduler": scheduler, **models})


def step_bytes(parts: Parts, side: int, autoencoder: Autoencoder) -> int:
    """Peak bytes of a step: weights, AdamW's state, gradients and activations."""
    held = ["unet", "text_encoder", *(["vae"] if autoencoder != "left" else [])]
    models: list[nn.Module] = [parts[name].train() for name in held]
    with FakeTensorMode(allow_non_fake_inputs=True):
        for name, model in zip(held, models, strict=True):
            materialize(model, torch.device("cpu"))
            model.requires_grad_(name != "vae" or autoencoder == "trained")
        weights = [weight for model in models for weight in model.parameters()]
        with RealIndices(), LiveStorages(weights) as living:
            _loss(parts, side, autoencoder).backward()
    stepped = [weight for weight in weights if weight.grad is not None]
    state = sum(state_bytes("adamw", weight) for weight in stepped)
    return sum(weight.nbytes for weight in weights) + state + living.peak


def _loss(parts: Parts, side: int, autoencoder: Autoencoder) -> Tensor:
    ids = torch.zeros(EXAMPLES, parts["text_encoder"].config.max_position_embeddings).long()
    unet = parts["unet"].config
    latents = torch.empty(EXAMPLES, unet.in_channels, unet.sample_size, unet.sample_size)
    if autoencoder != "left":
        with torch.set_grad_enabled(autoencoder == "trained"):
            latents = FAMILY.encode_images(parts, torch.empty(EXAMPLES, 3, side, side)).mean
    conditioning = FAMILY.encode_prompts(parts, {"input_ids": ids})
    timesteps = torch.zeros(EXAMPLES).long()
    return FAMILY.predict(parts, latents, timesteps, conditioning).square().mean()


def lines(name: str, build: Callable[[], Parts], side: int) -> Iterator[str]:
    found = {}
    for autoencoder in get_args(Autoencoder):
        with torch.device("meta"):
            parts = build()
        found[autoencoder] = step_bytes(parts, side, autoencoder)
    yield f"{name}, {side} x {side} pixels"
    for autoencoder, count in found.items():
        saved = 1 - count / found["trained"]
        yield f"  {autoencoder:8} {size(count):>10}   saves {saved:6.1%}   claimed {CLAIM:.0%}"


def main() -> None:
    for line in lines("small world", small_world, 64):
        print(line)
    for line in lines("Stable Diffusion 1.5", stable_diffusion_1_5, 512):
        print(line)


if __name__ == "__main__":
    main()
