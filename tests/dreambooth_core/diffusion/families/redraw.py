"""Sample an image of a tiny model; as a program, from folders that another process wrote."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch

from dreambooth_core.config import Sampler
from dreambooth_core.diffusion import families
from dreambooth_core.diffusion.families import Family, Parts, load_family


def image_digest(family: Family, parts: Parts, sampler: Sampler | None = None) -> str:
    """Digest of the image of one prompt and seed, after two steps."""
    guidance = dict(family.guidance(sampler or Sampler()))
    if "negative_prompt" in guidance:
        guidance["negative_prompt"] = [guidance["negative_prompt"]]
    side = max(16, family.pixel_multiple)
    found = family.pipeline(parts)(
        prompt=["a dog"],
        num_inference_steps=2,
        height=side,
        width=side,
        generator=[torch.Generator().manual_seed(7)],
        **guidance,
    )
    return hashlib.sha256(found.images[0].tobytes()).hexdigest()


def load_and_sample(job: dict[str, Any]) -> dict[str, Any]:
    """Digest `reloaded` of the image, and the missing and unexpected keys of the weights' files."""
    family, base = load_family(job["family"]), Path(job["base"])
    tuned = {name: Path(folder) for name, folder in job["tuned"].items()}
    parts = family.load(base, tuned)
    missing, unexpected = [], []
    for name, model in parts.components.items():
        if isinstance(model, torch.nn.Module):
            _, keys = type(model).from_pretrained(
                tuned.get(name, base / name), output_loading_info=True, local_files_only=True
            )
            missing += keys["missing_keys"]
            unexpected += keys["unexpected_keys"]
    return {"reloaded": image_digest(family, parts), "missing": missing, "unexpected": unexpected}


if __name__ == "__main__":
    families.__path__.append(sys.argv[1])
    torch.set_num_threads(int(sys.argv[2]))
    print(json.dumps({label: load_and_sample(job) for label, job in json.load(sys.stdin).items()}))
