"""Train what finds the subject in a picture: `python -m examples.small_world.train_finder`.

A SegFormer (Xie et al. 2021) of a quarter million weights, on renders with their true masks. Half of what it
sees went through the base's autoencoder, some of it with noise in the latents: it is to work on generated,
soft pictures. Resumable: run it again. A few minutes on one CPU core, the same weights on the same machine.
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
from examples.small_world.render import SIZE, render_array, subject_mask
from examples.small_world.shapes import CLASSES
from examples.small_world.train_base import to_pixels
from examples.small_world.train_encoders import degrade
from examples.small_world.world import Identity, Scene, random_identity, random_scene

HERE = Path(__file__).parent
SPLIT = "finder"
FINDER = Recipe(steps=800, batch=16, learning_rate=2e-3, warmup=50, ema=0.99)
LABELS = {0: "background", 1: "subject"}
ACCESSORY_SHARE = 0.5
"""Twice the corpus' own: what sits on a subject is the hardest part of the background."""
LATENT_NOISE = 0.35
"""Most of the noise in a decoded picture's latents, as a share of their spread."""
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


class Marked(NamedTuple):
    """Pictures and where the subject is in each."""

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
            strides=[
                2,
                2,
                2,
                2,
            ],  # half the usual first step: at 64 pixels a tail is two pixels wide
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
    """The `index`-th subject of a split, and how it is seen."""
    rng = random.Random(f"{split}/{index}")
    identity = random_identity(rng, rng.choice(list(CLASSES)))
    return identity, random_scene(rng, accessory_share=ACCESSORY_SHARE)


def rendered(split: str, count: int) -> Marked:
    """Pictures with their true masks."""
    pairs = [example(split, index) for index in range(count)]
    return Marked(
        np.stack([render_array(*pair) for pair in pairs]),
        np.stack([subject_mask(*pair) for pair in pairs]),
    )


@torch.inference_mode()
def softened(vae: Any, images: NDArray[np.uint8], noise: float, seed: int = 0) -> NDArray[np.uint8]:
    """The pictures through an autoencoder, with up to `noise` of their spread in their latents."""
    place, draw = device(), torch.Generator().manual_seed(seed)
    parts = []
    for part in torch.split(torch.from_numpy(images), 16):
        latents = vae.encode(to_pixels(part).to(place)).latent_dist.mean
        amount = noise * torch.rand(len(part), 1, 1, 1, generator=draw) * latents.std().cpu()
        latents = latents + (amount * torch.randn(latents.shape, generator=draw)).to(place)
        decoded = vae.decode(latents).sample.clamp(-1, 1).cpu()
        parts.append(decoded.add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).numpy())
    return np.concatenate(parts)


def make_marked(folder: Path, base: Path, count: int) -> Marked:
    """`count` renders and as many softened copies of every fourth, made once and kept in `folder`."""
    file = folder / f"{SPLIT}-{count}.npz"
    if not file.exists():
        from diffusers import AutoencoderKL

        folder.mkdir(parents=True, exist_ok=True)
        vae = AutoencoderKL.from_pretrained(base / "vae", dtype=torch.float32).to(device())
        sharp = rendered(SPLIT, count)
        soft = softened(vae, sharp.images[::4], LATENT_NOISE)
        partial = file.with_suffix(".partial.npz")
        np.savez(
            partial,
            images=np.concatenate([sharp.images, soft]),
            masks=np.concatenate([sharp.masks, sharp.masks[::4]]),
        )
        partial.rename(file)
    with np.load(file) as kept:
        return Marked(kept["images"], kept["masks"])


def train_finder(marked: Marked, recipe: Recipe, folder: Path) -> tuple[Any, dict[str, float]]:
    """Cross entropy per pixel; half of every batch is softened pictures, all are degraded further."""
    images, masks = torch.from_numpy(marked.images), torch.from_numpy(marked.masks).long()
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
    """Each colour stronger or weaker by up to a seventh, as a model's own palette may have it."""
    gain = 1 + 0.3 * (torch.rand(len(pixels), 3, 1, 1, device=pixels.device) - 0.5)
    return ((pixels + 1) * gain - 1).clamp(-1, 1)


def save(model: Any, out: Path, facts: dict[str, Any]) -> None:
    """A folder that `from_pretrained` loads: fp16 safetensors and the preprocessing."""
    model.cpu().half().save_pretrained(out, safe_serialization=True)
    for name, content in {"preprocessor_config": PROCESSOR, "training": facts}.items():
        (out / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--base", type=Path, default=HERE / "base", help="whose autoencoder softens"
    )
    parser.add_argument("--out", type=Path, default=HERE / "finder")
    parser.add_argument("--work", type=Path, default=Path(".dreambooth/small_world"))
    parser.add_argument("--images", type=int, default=4_000)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the steps and images")
    options = parser.parse_args()
    torch.manual_seed(2)
    recipe = FINDER._replace(steps=max(2, round(FINDER.steps * options.scale)))
    marked = make_marked(options.work, options.base, max(40, round(options.images * options.scale)))
    model, facts = train_finder(marked, recipe, options.work)
    save(model, options.out, {"split": SPLIT, "images": len(marked.images), **facts})


if __name__ == "__main__":
    main()
