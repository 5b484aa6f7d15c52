"""Measure base, encoders and detector against `BAR`: `python -m examples.small_world.check`, JSON on stdout.

Everything is measured on held-out seeds.
"""

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from examples.small_world import check_detector
from examples.small_world.corpus import example, truth, view
from examples.small_world.networks import to_pixels
from examples.small_world.render import render, render_array
from examples.small_world.shapes import CLASSES
from examples.small_world.world import BACKGROUNDS, random_identity, random_scene

HERE = Path(__file__).parent
SPLIT = "check"
BAR = {
    "autoencoder_psnr_db": 26.0,
    "class_accuracy": 0.85,
    "background_accuracy": 0.80,
    "encoder_class_accuracy": 0.97,
    "encoder_background_accuracy": 0.97,
    "identity_top1": 0.90,
    "diversity_ratio": 0.80,
    "detector_iou": 0.80,
    "detector_iou_autoencoded": 0.78,
    "detector_found": 0.97,
}
INFERENCE_STEPS = 20
GUIDANCE_SCALE = 3.0


class Encoders:
    """The small world's CLIP and identity encoder; embeddings are rows of unit length."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer, CLIPModel, ViTModel

        self.clip: Any = CLIPModel.from_pretrained(folder / "clip").float().eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "clip")
        self.vit: Any = ViTModel.from_pretrained(folder / "identity", add_pooling_layer=False)
        self.vit = self.vit.float().eval()

    def images(self, pixels: Tensor) -> Tensor:
        hidden = self.clip.vision_model(pixels).pooler_output
        return F.normalize(self.clip.visual_projection(hidden), dim=-1)

    def texts(self, texts: list[str]) -> Tensor:
        ids = self.tokenizer(texts, padding=True, return_tensors="pt").input_ids
        return F.normalize(
            self.clip.text_projection(self.clip.text_model(ids).pooler_output), dim=-1
        )

    def identity(self, pixels: Tensor) -> Tensor:
        return F.normalize(self.vit(pixels).last_hidden_state[:, 0], dim=-1)


def stack(images: list[Image.Image]) -> Tensor:
    return to_pixels(torch.from_numpy(np.stack([np.asarray(i.convert("RGB")) for i in images])))


def autoencoder_psnr(vae: Any, count: int = 256) -> float:
    """Mean PSNR in dB of `count` 8-bit renders, decoded from the posterior's mean."""
    images = np.stack([render_array(*example(SPLIT, i)[:2]) for i in range(count)])
    pixels = to_pixels(torch.from_numpy(images))
    values = []
    for part in torch.split(pixels, 16):
        decoded = vae.decode(vae.encode(part).latent_dist.mean).sample.clamp(-1, 1)
        error = ((decoded - part) / 2).square().mean((1, 2, 3))
        values.append(-10 * error.log10())
    return float(torch.cat(values).mean())


def class_hits(encoders: Encoders, pixels: Tensor, nouns: list[str]) -> float:
    """Share of images whose class prompt is the nearest of all class prompts."""
    classes = list(CLASSES)
    texts = encoders.texts([f"a photo of a {noun}" for noun in classes])
    wanted = torch.tensor([classes.index(noun) for noun in nouns])
    return float(((encoders.images(pixels) @ texts.T).argmax(1) == wanted).float().mean())


def background_hits(encoders: Encoders, pixels: Tensor, labels: list[tuple[str, str]]) -> float:
    """Share of images whose background's prompt is the nearest among all backgrounds of its class.

    `labels`: class noun and background per image.
    """
    names = list(BACKGROUNDS)
    hits = []
    for embedding, (noun, background) in zip(encoders.images(pixels), labels, strict=True):
        texts = encoders.texts([f"a {noun} {phrase}" for phrase in BACKGROUNDS.values()])
        hits.append(int((texts @ embedding).argmax()) == names.index(background))
    return sum(hits) / len(hits)


def identity_top1(encoders: Encoders, subjects: int = 50) -> float:
    """Top-1 retrieval of `subjects` identities of one class from another view; mean over classes."""
    accuracies = []
    for noun in CLASSES:
        queries, gallery = (_view_embeddings(encoders, noun, v, subjects) for v in (0, 1))
        right = (queries @ gallery.T).argmax(1) == torch.arange(subjects)
        accuracies.append(float(right.float().mean()))
    return sum(accuracies) / len(accuracies)


def _view_embeddings(encoders: Encoders, noun: str, number: int, subjects: int) -> Tensor:
    views = [view(f"{SPLIT}/{noun}", subject, number, noun) for subject in range(subjects)]
    return encoders.identity(to_pixels(torch.from_numpy(np.stack(views))))


def spread(encoders: Encoders, pixels: Tensor) -> float:
    """Mean pairwise identity-encoder distance, 1 - cosine."""
    embeddings = encoders.identity(pixels)
    n = len(embeddings)
    similarity = embeddings @ embeddings.T
    return float(1 - (similarity.sum() - n) / (n * (n - 1)))


def draw(pipeline: Any, prompts: list[str], batch: int = 8) -> list[Image.Image]:
    images: list[Image.Image] = []
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        seeds = [torch.Generator().manual_seed(start + i) for i in range(len(part))]
        images += pipeline(
            part,
            num_inference_steps=INFERENCE_STEPS,
            guidance_scale=GUIDANCE_SCALE,
            height=64,
            width=64,
            generator=seeds,
        ).images
        print(f"\r{len(images)}/{len(prompts)} images", end="", file=sys.stderr, flush=True)
    return images


@torch.inference_mode()
def check(
    base: Path, encoder_folder: Path, each: int, sheet: Path | None = None
) -> dict[str, float]:
    """All figures of `BAR`, from `each` images per class and per background, and 80 x `each` renders.

    `sheet`: file for a contact sheet of the generated images.
    """
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    encoders = Encoders(encoder_folder)
    pipeline = StableDiffusionPipeline.from_pretrained(base, dtype=torch.float32)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    nouns = [noun for noun in CLASSES for _ in range(each)]
    rng = random.Random(SPLIT)
    labels = [(rng.choice(list(CLASSES)), name) for name in BACKGROUNDS for _ in range(each)]
    by_class = draw(pipeline, [f"a photo of a {noun}" for noun in nouns])
    by_background = draw(pipeline, [f"a {noun} {BACKGROUNDS[name]}" for noun, name in labels])
    if sheet is not None:
        contact_sheet(by_class + by_background, each).save(sheet)
    detector = check_detector.shipped()
    found = detector.find(by_class + by_background, "subject")
    rendered = [example(SPLIT, 10_000 + i)[:2] for i in range(80 * each)]
    renders = stack([render(*pair) for pair in rendered])
    facts = [truth(*pair) for pair in rendered]
    pixels = stack(by_class)
    ratios = []
    for row, noun in enumerate(CLASSES):
        views = [render(random_identity(rng, noun), random_scene(rng)) for _ in range(4 * each)]
        drawn = pixels[row * each : (row + 1) * each]
        ratios.append(spread(encoders, drawn) / spread(encoders, stack(views)))
    return {
        "autoencoder_psnr_db": round(autoencoder_psnr(pipeline.vae), 2),
        "class_accuracy": round(class_hits(encoders, pixels, nouns), 4),
        "background_accuracy": round(background_hits(encoders, stack(by_background), labels), 4),
        "encoder_class_accuracy": round(
            class_hits(encoders, renders, [str(f.class_noun) for f in facts]), 4
        ),
        "encoder_background_accuracy": round(
            background_hits(
                encoders, renders, [(str(f.class_noun), str(f.background)) for f in facts]
            ),
            4,
        ),
        "identity_top1": round(identity_top1(encoders), 4),
        "diversity_ratio": round(sum(ratios) / len(ratios), 4),
        "detector_iou": round(check_detector.overlap(detector)["mask"], 4),
        "detector_iou_autoencoded": round(
            check_detector.overlap(detector, pipeline.vae)["mask"], 4
        ),
        "detector_found": round(sum(region is not None for region in found) / len(found), 4),
    }


def contact_sheet(images: list[Image.Image], columns: int) -> Image.Image:
    sheet = Image.new("RGB", (64 * columns, 64 * (len(images) // columns)))
    for number, image in enumerate(images):
        sheet.paste(image, (64 * (number % columns), 64 * (number // columns)))
    return sheet


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, default=HERE / "base")
    parser.add_argument("--encoders", type=Path, default=HERE / "encoders")
    parser.add_argument("--each", type=int, default=12, help="images per class and per background")
    parser.add_argument(
        "--sheet", type=Path, help="file for a contact sheet of the generated images"
    )
    options = parser.parse_args()
    figures = check(options.base, options.encoders, options.each, options.sheet)
    print(json.dumps(figures, indent=2))
    missed = [name for name, least in BAR.items() if figures[name] < least]
    if missed:
        shown = ", ".join(f"{name} {figures[name]} < {BAR[name]}" for name in missed)
        print(f"below the bar: {shown}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
