"""Sample images with diffusers only; nothing of this project is imported.

Usage: draw_with_diffusers.py JOBS.json. A job has the way of loading, the prompt, and the files of
the image (.npy, (height, width, 3) in [0, 1]) and of the error.
"""

import json
import sys
import traceback
from pathlib import Path

import diffusers
import numpy as np
import torch


def load(job: dict[str, str]) -> diffusers.DiffusionPipeline:
    if job["how"] == "folder":
        return diffusers.DiffusionPipeline.from_pretrained(job["path"])
    if job["how"] == "single_file":
        kind = getattr(diffusers, job["pipeline"])
        return kind.from_single_file(job["path"], config=job["base"], local_files_only=True)
    pipeline = diffusers.DiffusionPipeline.from_pretrained(job["base"])
    for file in job.get("embeddings", []):
        embed(pipeline, Path(file))
    if job["how"] == "lora":
        folder, _, file = job["path"].partition("::")
        pipeline.load_lora_weights(folder, weight_name=file or None)
        if job["fuse"]:
            pipeline.fuse_lora(components=job["components"])
    return pipeline


def embed(pipeline: diffusers.DiffusionPipeline, file: Path) -> None:
    from safetensors.torch import load_file

    rows = load_file(file)
    if len(rows) == 1:
        pipeline.load_textual_inversion(file, token=file.stem)
        return
    encoders = {
        "clip_l": (pipeline.text_encoder, pipeline.tokenizer),
        "clip_g": (pipeline.text_encoder_2, pipeline.tokenizer_2),
    }
    for key, (encoder, tokenizer) in encoders.items():
        pipeline.load_textual_inversion(
            rows[key], token=file.stem, text_encoder=encoder, tokenizer=tokenizer
        )


def draw(pipeline: diffusers.DiffusionPipeline, prompt: str, side: int) -> np.ndarray:
    """Two steps of DDIM from noise of seed 7; flow models keep their own sampler.

    Weights are copied first: in a memory-mapped file their alignment depends on the other tensors,
    and CPU kernels sum in another order for another alignment (differences of 4e-6 of the range).
    """
    for part in pipeline.components.values():
        for weight in part.parameters() if isinstance(part, torch.nn.Module) else ():
            weight.data = weight.data.clone()
    pipeline.set_progress_bar_config(disable=True)
    if "flow" not in type(pipeline.scheduler).__name__.lower():
        pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
    return pipeline(
        prompt,
        height=side,
        width=side,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(7),
        output_type="np",
    ).images[0]


if __name__ == "__main__":
    for job in json.loads(Path(sys.argv[1]).read_text()):
        try:
            np.save(job["image"], draw(load(job), job["prompt"], job["side"]))
        except Exception:
            Path(job["error"]).write_text(traceback.format_exc())
    assert not any(name.startswith("dreambooth") for name in sys.modules)
