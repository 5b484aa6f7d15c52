"""Train the base model from nothing: `python -m examples.small_world.train_base`.

Autoencoder, then UNet and text encoder, in Stable Diffusion's own format. Resumable: run it again. On a
GPU it takes about half an hour, on two CPU cores days; `--scale 0.01` shows that it works.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.small_world.corpus import Corpus, make_corpus
from examples.small_world.loop import Recipe, device, train
from examples.small_world.tokenizer import MAX_TOKENS, make_tokenizer

HERE = Path(__file__).parent
SPLIT = "base"
AUTOENCODER = Recipe(steps=6_000, batch=64, learning_rate=1e-3, weight_decay=0.0, seconds=150)
DENOISER = Recipe(steps=14_000, batch=512, learning_rate=6e-4, seconds=360)
CAPTION_DROPOUT = 0.1
KL_WEIGHT = 1e-6


def autoencoder() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        sample_size=64,
        block_out_channels=(48, 96, 128),
        layers_per_block=1,
        norm_num_groups=16,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
    )


def unet() -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
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
    """Linear betas leave almost nothing of the image at the last timestep: night can be dark, snow bright."""
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


def to_pixels(images: Tensor) -> Tensor:
    """uint8 (n, h, w, 3) -> float32 (n, 3, h, w) in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float().div(127.5).sub(1)


def train_autoencoder(images: Tensor, recipe: Recipe, folder: Path) -> tuple[Any, dict[str, float]]:
    """`images`: uint8 (n, 64, 64, 3). L1 plus half MSE, and a KL term that only keeps the latents bounded."""

    def loss(network: nn.Module, indices: Tensor) -> Tensor:
        pixels = to_pixels(images[indices])
        posterior = network.encode(pixels).latent_dist  # type: ignore[operator]
        decoded = network.decode(posterior.sample()).sample.float()  # type: ignore[operator]
        kl: Tensor = posterior.kl().mean()
        return F.l1_loss(decoded, pixels) + 0.5 * F.mse_loss(decoded, pixels) + KL_WEIGHT * kl

    vae = autoencoder()
    facts = train("autoencoder", vae, loss, len(images), recipe, folder)
    with torch.no_grad():
        mean = torch.cat(
            [
                vae.encode(to_pixels(part)).latent_dist.mean
                for part in torch.split(images[:4096], 256)
            ]
        )
    vae.register_to_config(scaling_factor=round(1 / mean.std().item(), 4))
    return vae, facts


def train_denoiser(
    vae: Any,
    tokenizer: Any,
    images: Tensor,
    captions: Sequence[Sequence[str]],
    recipe: Recipe,
    folder: Path,
) -> tuple[Any, Any, dict[str, float]]:
    """UNet and text encoder together, v-prediction (Salimans & Ho 2022, appendix D)."""
    place = images.device
    means, deviations = [], []
    with torch.no_grad():
        for part in torch.split(images, 512):
            posterior = vae.encode(to_pixels(part)).latent_dist
            means.append(posterior.mean.half() * vae.config.scaling_factor)
            deviations.append(posterior.std.half() * vae.config.scaling_factor)
    mean, deviation = torch.cat(means), torch.cat(deviations)
    each = len(captions[0])
    tokens = (
        tokenize(tokenizer, [text for row in captions for text in row])
        .view(-1, each, MAX_TOKENS)
        .to(place)
    )
    empty = tokenize(tokenizer, [""]).to(place)
    alphas = noise_scheduler().alphas_cumprod.to(place)

    def loss(network: nn.Module, indices: Tensor) -> Tensor:
        latents = mean[indices].float()
        latents = latents + deviation[indices].float() * torch.randn_like(latents)
        choice = torch.randint(each, indices.shape, device=place)
        ids = tokens[indices, choice].long()
        dropped = torch.rand(len(ids), 1, device=place) < CAPTION_DROPOUT
        conditioning = network["text_encoder"](torch.where(dropped, empty, ids))[0]  # type: ignore[index]
        noise = torch.randn_like(latents)
        timesteps = torch.randint(len(alphas), indices.shape, device=place)
        alpha = alphas[timesteps].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        target = alpha.sqrt() * noise - (1 - alpha).sqrt() * latents
        return F.mse_loss(network["unet"](noisy, timesteps, conditioning).sample.float(), target)  # type: ignore[index]

    both = nn.ModuleDict({"unet": unet(), "text_encoder": text_encoder(tokenizer)})
    facts = train("denoiser", both, loss, len(images), recipe, folder)
    return both["unet"], both["text_encoder"], facts


def tokenize(tokenizer: Any, texts: list[str]) -> Tensor:
    """int32 (n, MAX_TOKENS)."""
    ids = tokenizer(texts, padding="max_length", truncation=True, max_length=MAX_TOKENS).input_ids
    return torch.tensor(np.array(ids, dtype=np.int32))


def save_base(
    out: Path, vae: Any, denoiser: Any, text: Any, tokenizer: Any, facts: dict[str, Any]
) -> None:
    """As fp16 safetensors: half the size, and a difference no picture shows."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline(
        vae=vae.cpu().half(),
        unet=denoiser.cpu().half(),
        text_encoder=text.cpu().half(),
        tokenizer=tokenizer,
        scheduler=noise_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(out, safe_serialization=True)
    (out / "training.json").write_text(json.dumps(facts, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE / "base")
    parser.add_argument("--work", type=Path, default=Path(".dreambooth/small_world"))
    parser.add_argument("--images", type=int, default=250_000)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the steps and images")
    options = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)

    corpus: Corpus = make_corpus(
        options.work, SPLIT, max(200, round(options.images * options.scale))
    )
    images = torch.from_numpy(corpus.images).to(device())
    captions = [[caption.text for caption in row[1:]] for row in corpus.captions]
    tokenizer = make_tokenizer(row[0] for row in captions[:20_000])
    first, second = (
        r._replace(steps=max(2, round(r.steps * options.scale))) for r in (AUTOENCODER, DENOISER)
    )
    vae, vae_facts = train_autoencoder(images, first, options.work)
    denoiser, text, facts = train_denoiser(vae, tokenizer, images, captions, second, options.work)
    save_base(
        options.out,
        vae,
        denoiser,
        text,
        tokenizer,
        {
            "images": len(images),
            "split": SPLIT,
            "device": str(device()),
            "autoencoder": vae_facts | {"recipe": first._asdict()},
            "denoiser": facts | {"recipe": second._asdict()},
        },
    )


if __name__ == "__main__":
    main()
