"""Exported models sample the same images in a fresh process with diffusers only.

Bit-identical in float32 for whole weights and for adapters that are fused before sampling, as peft
then adds the same product to the same weights. With adapters that are not fused, sums have another
order and images agree to 1e-4 of a range of 1.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dreambooth_core.diffusion import exports, textual_inversion
from dreambooth_core.diffusion.exports import TrainedModel
from dreambooth_core.diffusion.exports._merged import merged
from dreambooth_core.diffusion.families import load_family
from tests.dreambooth_core.diffusion.exports import draw_with_diffusers
from tests.dreambooth_core.diffusion.exports.draw_with_diffusers import draw
from tests.dreambooth_core.diffusion.exports.trained import trained
from tests.tiny_bases import FluxPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline

SIDE = 32
PROMPT = "a photo of {} robot"
UNET = ["unet", "text_encoder"]
METHODS = ("full", "lora", "dora", "lokr", "textual_inversion", "pivotal")
PARTS = {"sd": UNET, "sd2": UNET, "sdxl": [*UNET, "text_encoder_2"], "flux": ["transformer"]}
PIPELINES = {"sdxl": "StableDiffusionXLPipeline", "flux": "FluxPipeline"}
FAMILIES = {"sd": "stable_diffusion", "sd2": "stable_diffusion"}


@dataclass(frozen=True)
class Case:
    base: str
    method: str
    export: str
    how: str
    fuse: bool = True

    def __str__(self) -> str:
        suffix = "" if self.fuse else "-unfused"
        return f"{self.base}-{self.method}-{self.export}{suffix}"


CASES = [
    *(Case("sd", method, "diffusers", "folder") for method in METHODS),
    *(Case("sd", method, "single_file", "single_file") for method in ("full", "lokr")),
    *(Case("sd", method, "lora_diffusers", "lora") for method in ("lora", "dora", "pivotal")),
    *(Case("sd", method, "lora_kohya", "lora") for method in ("lora", "pivotal")),
    Case("sd", "lora", "lora_kohya", "lora", fuse=False),
    Case("sd", "textual_inversion", "embedding", "embedding"),
    Case("sd2", "lora", "single_file", "single_file"),
    Case("sdxl", "full", "diffusers", "folder"),
    Case("sdxl", "full", "single_file", "single_file"),
    Case("sdxl", "pivotal", "diffusers", "folder"),
    Case("sdxl", "pivotal", "lora_diffusers", "lora"),
    Case("sdxl", "pivotal", "lora_kohya", "lora"),
    Case("flux", "lora", "diffusers", "folder"),
    Case("flux", "lora", "lora_diffusers", "lora"),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[tuple[str, str], TrainedModel]:
    """A trained model for each base and method that a case needs."""
    folder = tmp_path_factory.mktemp("models")
    bases = {
        "sd": StableDiffusionPipeline.build(folder / "sd"),
        "sd2": StableDiffusionPipeline.build(folder / "sd2"),
        "sdxl": StableDiffusionXLPipeline.build(folder / "sdxl"),
        "flux": FluxPipeline.build(folder / "flux"),
    }
    settings = bases["sd2"] / "text_encoder" / "config.json"
    settings.write_text(settings.read_text().replace("quick_gelu", "gelu"))
    options: dict[str, Any] = {"train": {"text_encoder": False}}
    wanted = {(case.base, case.method) for case in CASES}
    return {
        (base, method): trained(
            FAMILIES.get(base, base),
            bases[base],
            method,
            folder / f"{base}-{method}",
            **(options if base == "flux" else {}),
        )
        for base, method in sorted(wanted)
    }


@pytest.fixture(scope="module")
def drawn(
    models: Mapping[tuple[str, str], TrainedModel], tmp_path_factory: pytest.TempPathFactory
) -> Mapping[Case, Path]:
    """The images of all cases, sampled in one process without this project."""
    folder = tmp_path_factory.mktemp("drawn")
    jobs = [_job(case, models[case.base, case.method], folder / str(case)) for case in CASES]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    subprocess.run(
        [sys.executable, draw_with_diffusers.__file__, str(folder / "jobs.json")],
        check=True,
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    return {case: folder / str(case) for case in CASES}


@pytest.fixture(scope="module")
def ours(models: Mapping[tuple[str, str], TrainedModel]) -> Mapping[tuple[str, str], np.ndarray]:
    return {key: _ours(source) for key, source in models.items()}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_image_equals_ours(
    case: Case,
    drawn: Mapping[Case, Path],
    ours: Mapping[tuple[str, str], np.ndarray],
) -> None:
    error = drawn[case] / "error.txt"
    assert not error.exists(), error.read_text()
    image, expected = np.load(drawn[case] / "image.npy"), ours[case.base, case.method]
    if case.fuse:
        np.testing.assert_array_equal(image, expected)
    else:
        np.testing.assert_allclose(image, expected, rtol=0, atol=1e-4)


def test_trained_weights_change_the_image(
    models: Mapping[tuple[str, str], TrainedModel], ours: Mapping[tuple[str, str], np.ndarray]
) -> None:
    untouched = {}
    for (base, method), image in ours.items():
        source = models[base, method]
        if base not in untouched:
            family = load_family(source.family)
            pipeline = family.pipeline(family.load(source.base))
            untouched[base] = draw(pipeline, PROMPT.format("sks"), SIDE)
        assert np.abs(image - untouched[base]).max() > 1e-3


def _ours(source: TrainedModel) -> np.ndarray:
    prompt = textual_inversion.insert_tokens(
        textual_inversion.exported_tokens(source.weights), PROMPT.format("sks")
    )
    return draw(load_family(source.family).pipeline(merged(source)), prompt, SIDE)


def _job(case: Case, source: TrainedModel, folder: Path) -> dict[str, Any]:
    written = exports.export(case.export, source, folder)
    tokens = textual_inversion.exported_tokens(source.weights)
    embeddings: list[Path] = []
    path = str(written[0])
    if case.how == "embedding":
        embeddings = written
    if case.export == "lora_kohya":
        embeddings, path = written[1:], f"{written[0].parent}::{written[0].name}"
    if case.export == "lora_diffusers":
        embeddings = sorted(written[0].glob("toy-*.safetensors"))
    word = "toy-sks" if embeddings else textual_inversion.insert_tokens(tokens, "sks")
    return {
        "how": case.how,
        "path": path,
        "base": str(source.base),
        "pipeline": PIPELINES.get(case.base, "StableDiffusionPipeline"),
        "components": PARTS[case.base],
        "fuse": case.fuse,
        "embeddings": [str(file) for file in embeddings],
        "prompt": PROMPT.format(word),
        "side": SIDE,
        "image": str(folder / "image.npy"),
        "error": str(folder / "error.txt"),
    }
