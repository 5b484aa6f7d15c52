"""Validation of a base in training: PSNR of eyes and faces, reconstruction sheets, sample sheets."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from examples.small_world.corpus import example
from examples.small_world.render import Box, part_boxes, render_array
from examples.small_world.shapes import CLASSES
from examples.small_world.world import FACES, Faces

SPLIT = "check"
BOXES = {"eyes": "psnr_eyes_db", "face": "psnr_faces_db"}
SHEET_COLUMNS = 12
INFERENCE_STEPS = 15
GUIDANCE_SCALE = 3.0


class FaceFigures:
    """PSNR of an autoencoder on `count` held-out renders; callable as `Validation.figures`.

    `sheets`: folder for sheets of reconstructions; None writes none.
    """

    def __init__(self, faces: Faces = FACES, sheets: Path | None = None, count: int = 256) -> None:
        pairs = [example(SPLIT, i, faces)[:2] for i in range(count)]
        self.images = np.stack([render_array(*pair) for pair in pairs])
        self.boxes = [part_boxes(*pair) for pair in pairs]
        self.sheets = sheets

    def __call__(self, vae: nn.Module, pictures: int) -> dict[str, float]:
        """Means over renders in dB: whole renders, boxes of eyes, boxes of faces."""
        decoded = reconstructions(vae, self.images)
        if self.sheets is not None:
            self.sheets.mkdir(parents=True, exist_ok=True)
            shown = [i for i, boxes in enumerate(self.boxes) if "face" in boxes]
            sheet = pairs_sheet(self.images[shown], decoded[shown])
            sheet.save(self.sheets / f"autoencoder-{pictures:09d}.png")
        rows = list(zip(self.images, decoded, self.boxes, strict=True))
        figures = {"psnr_db": float(np.mean([psnr(a, b) for a, b, _ in rows]))}
        for name, figure in BOXES.items():
            values = [psnr(a, b, boxes[name]) for a, b, boxes in rows if name in boxes]
            figures[figure] = float(np.mean(values))
        return {name: round(value, 2) for name, value in figures.items()}


def reconstructions(vae: Any, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images decoded from the posterior's mean; uint8 (n, h, w, 3) in and out."""
    dev = next(vae.parameters()).device
    out: list[Tensor] = []
    with torch.no_grad():
        for part in torch.split(torch.from_numpy(images), 16):
            pixels = part.to(dev).permute(0, 3, 1, 2).float() / 127.5 - 1
            decoded = vae.decode(vae.encode(pixels).latent_dist.mean).sample.clamp(-1, 1)
            out.append(((decoded + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu())
    return torch.cat(out).numpy()


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8], box: Box | None = None) -> float:
    """PSNR in dB of two 8-bit images (h, w, 3), or of a box in them; at most 60."""
    left, top, right, bottom = box or (0, 0, a.shape[1], a.shape[0])
    error = a[top:bottom, left:right].astype(float) - b[top:bottom, left:right]
    return float(-10 * np.log10(max(np.square(error / 255).mean(), 1e-6)))


def pairs_sheet(above: NDArray[np.uint8], below: NDArray[np.uint8], rows: int = 4) -> Image.Image:
    """Images in rows of twelve, each above its counterpart, magnified twice."""
    strips = []
    for start in range(0, min(len(above), rows * SHEET_COLUMNS), SHEET_COLUMNS):
        part = slice(start, start + SHEET_COLUMNS)
        if len(above[part]) == SHEET_COLUMNS:
            strips += [np.concatenate(list(images[part]), 1) for images in (above, below)]
    sheet = Image.fromarray(np.concatenate(strips))
    return sheet.resize((2 * sheet.width, 2 * sheet.height), Image.Resampling.NEAREST)


def drawn_sheet(pipeline: Any, file: Path, each: int = 4) -> None:
    """Write a sheet of `each` generated images per class noun, a row per noun, seeds 0 to `each` - 1."""
    from diffusers import DPMSolverMultistepScheduler

    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    strips = []
    for noun in CLASSES:
        images = pipeline(
            [f"a photo of a {noun}"] * each,
            num_inference_steps=INFERENCE_STEPS,
            guidance_scale=GUIDANCE_SCALE,
            height=64,
            width=64,
            generator=[torch.Generator().manual_seed(n) for n in range(each)],
        ).images
        strips.append(np.concatenate([np.asarray(image) for image in images], 1))
    file.parent.mkdir(parents=True, exist_ok=True)
    half = len(strips) // 2
    columns = [np.concatenate(part) for part in (strips[:half], strips[half : 2 * half])]
    Image.fromarray(np.concatenate(columns, 1)).save(file)
