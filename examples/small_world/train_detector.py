"""Train the detector of the subject: `python -m examples.small_world.train_detector`.

A SegFormer (Xie et al. 2021) of 0.27 M weights, trained on renders with their true masks. Half of each
batch went through the base's autoencoder with noise in the latents, since generated images are soft.
The same command resumes it. A few minutes on one CPU core; deterministic on one machine.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from examples.small_world.loop import Recipe, device, train
from examples.small_world.networks import to_pixels
from examples.small_world.render import SIZE, render_array, subject_mask
from examples.small_world.shapes import CLASSES
from examples.small_world.train_encoders import degrade
from examples.small_world.world import Identity, Scene, random_identity, random_scene

HERE = Path(__file__).parent
SPLIT = "finder"
"""Seeds the training's renders; changing it would change the shipped weights."""
DETECTOR = Recipe(steps=800, batch=16, learning_rate=2e-3, warmup=50, ema=0.99)
LABELS = {0: "background", 1: "subject"}
ACCESSORY_SHARE = 0.5
"""Twice that of the corpus: accessories are the hardest part of the background."""
LATENT_NOISE = 0.35
"""Largest noise in a decoded image's latents, relative to their standard deviation."""
PROCESSOR = {
    "image_processor_type": "SegformerImageProcessor",
    "do_resize": True,
    "size": {"height": SIZE, "width": SIZE},
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "do_reduce_labels": False,
}


class MaskedImages(NamedTuple):
    """Images with the masks of their subjects."""

    images: NDArray[np.uint8]
    """(n, 64, 64, 3)"""
    masks: NDArray[np.bool_]
    """(n, 64, 64)"""


def segmenter() -> Any:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    return SegformerForSemanticSegmentation(
        SegformerConfig(
            depths=[1, 1, 1, 1],
            hidden_sizes=[16, 32, 64, 96],
            num_attention_heads=[1, 2, 4, 4],
            sr_ratios=[8, 4, 2, 1],
            mlp_ratios=[2, 2, 2, 2],
            patch_sizes=[5, 3, 3, 3],
            strides=[2, 2, 2, 2],  # the usual first stride is 4, too coarse for images of 64 pixels
            decoder_hidden_size=48,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            classifier_dropout_prob=0.0,
            drop_path_rate=0.0,
            id2label=LABELS,
            label2id={name: number for number, name in LABELS.items()},
        )
    )


def example(split: str, index: int) -> tuple[Identity, Scene]:
    """Identity and scene of a split's `index`-th image."""
    rng = random.Random(f"{split}/{index}")
    identity = random_identity(rng, rng.choice(list(CLASSES)))
    return identity, random_scene(rng, accessory_share=ACCESSORY_SHARE)


def render_masked(split: str, count: int) -> MaskedImages:
    """Renders with their true masks."""
    pairs = [example(split, index) for index in range(count)]
    return MaskedImages(
        np.stack([render_array(*pair) for pair in pairs]),
        np.stack([subject_mask(*pair) for pair in pairs]),
    )


@torch.inference_mode()
def autoencode(
    vae: Any, images: NDArray[np.uint8], noise: float, seed: int = 0
) -> NDArray[np.uint8]:
    """The images encoded and decoded, uint8 (n, h, w, 3).

    Noise in the latents: up to `noise` times their standard deviation, drawn per image.
    """
    dev, draw = device(), torch.Generator().manual_seed(seed)
    parts = []
    for part in torch.split(torch.from_numpy(images), 16):
        latents = vae.encode(to_pixels(part).to(dev)).latent_dist.mean
        amount = noise * torch.rand(len(part), 1, 1, 1, generator=draw) * latents.std().cpu()
        latents = latents + (amount * torch.randn(latents.shape, generator=draw)).to(dev)
        decoded = vae.decode(latents).sample.clamp(-1, 1).cpu()
        parts.append(decoded.add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).numpy())
    return np.concatenate(parts)


def make_training_set(folder: Path, base: Path, count: int) -> MaskedImages:
    """`count` renders and an autoencoded copy of every fourth, cached in `folder`."""
    file = folder / f"{SPLIT}-{count}.npz"
    if not file.exists():
        from diffusers import AutoencoderKL

        folder.mkdir(parents=True, exist_ok=True)
        vae = AutoencoderKL.from_pretrained(base / "vae", dtype=torch.float32).to(device())
        sharp = render_masked(SPLIT, count)
        soft = autoencode(vae, sharp.images[::4], LATENT_NOISE)
        partial = file.with_suffix(".partial.npz")
        np.savez(
            partial,
            images=np.concatenate([sharp.images, soft]),
            masks=np.concatenate([sharp.masks, sharp.masks[::4]]),
        )
        partial.rename(file)
    with np.load(file) as saved:
        return MaskedImages(saved["images"], saved["masks"])


def train_detector(
    data: MaskedImages, recipe: Recipe, folder: Path
) -> tuple[Any, dict[str, float]]:
    """Train on cross entropy per pixel, with augmentation; half of each batch is autoencoded images."""
    images, masks = torch.from_numpy(data.images), torch.from_numpy(data.masks).long()
    images, masks = images.to(device()), masks.to(device())
    soft = len(images) // 5

    def loss(network: nn.Module, indices: Tensor) -> Tensor:
        half = len(indices) // 2
        rows = torch.cat([indices[:half] % (len(images) - soft), -1 - indices[half:] % soft])
        pixels, truth = to_pixels(images[rows]), masks[rows]
        if torch.rand(()) < 0.5:
            pixels, truth = pixels.flip(-1), truth.flip(-1)
        logits = network(degrade(tinted(pixels))).logits
        logits = F.interpolate(logits, truth.shape[-2:], mode="bilinear", align_corners=False)
        return F.cross_entropy(logits, truth)

    network = segmenter()
    return network, train(SPLIT, network, loss, len(images), recipe, folder)


def tinted(pixels: Tensor) -> Tensor:
    """Augmentation: each colour channel scaled by a random factor in [0.85, 1.15]."""
    gain = 1 + 0.3 * (torch.rand(len(pixels), 3, 1, 1, device=pixels.device) - 0.5)
    return ((pixels + 1) * gain - 1).clamp(-1, 1)


def save(model: Any, out: Path, facts: dict[str, Any]) -> None:
    """Write a folder for `from_pretrained`: fp16 safetensors and preprocessing."""
    model.cpu().half().save_pretrained(out, safe_serialization=True)
    for name, content in {"preprocessor_config": PROCESSOR, "training": facts}.items():
        (out / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--base", type=Path, default=HERE / "base", help="base with the autoencoder"
    )
    parser.add_argument("--out", type=Path, default=HERE / "detector")
    parser.add_argument("--work", type=Path, default=Path(".dreambooth/small_world"))
    parser.add_argument("--images", type=int, default=4_000)
    parser.add_argument("--scale", type=float, default=1.0, help="factor on steps and images")
    options = parser.parse_args()
    torch.manual_seed(2)
    recipe = DETECTOR._replace(steps=max(2, round(DETECTOR.steps * options.scale)))
    count = max(40, round(options.images * options.scale))
    data = make_training_set(options.work, options.base, count)
    model, facts = train_detector(data, recipe, options.work)
    save(model, options.out, {"split": SPLIT, "images": len(data.images), **facts})


if __name__ == "__main__":
    main()
