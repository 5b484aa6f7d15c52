"""Synthetic results of a run for tests of reports: noise images, fixed scores."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dreambooth_core.config import Config
from dreambooth_core.data.dataset import Finding, Validation
from dreambooth_core.data.ingest import IngestedPhotos
from dreambooth_core.diffusion.sampling import encode_png
from dreambooth_core.metrics.statistics import compare, estimate, of_base
from dreambooth_core.reports.summary import StageResults
from dreambooth_core.storage import records
from dreambooth_core.storage.blobs import image_set, put_blob
from dreambooth_core.storage.records import (
    ImageScores,
    ImageSet,
    ModelVersion,
    Reason,
    SampleSet,
    Scores,
    ScoreTable,
    Stage,
    ValidationResult,
    Verdict,
    Weights,
)
from dreambooth_core.storage.stores import Store, open_store

STAGES = {
    "validate": Stage(status="done", seconds=0.5),
    "train": Stage(status="done", seconds=12.5, cpu_seconds=20.0),
    "evaluate": Stage(status="reused", seconds=0.25, saved=records.Cost(seconds=75.0)),
}
PROMPTS = {
    "a <b> photo of {subject}": "scene",
    "{subject} on the beach": "scene",
    "{subject} in a hat": "accessory",
}
SEEDS = 2
SUBJECT = "sks robot"
LOWER = {"memorisation", "prior_drift"}


def run_of(folder: Path) -> tuple[Config, Store, StageResults]:
    """A config with a base without weights, a store, and results in it."""
    base = folder / "base"
    (base / "unet").mkdir(parents=True)
    (base / "unet" / "config.json").write_text("{}")
    (base / "model_index.json").write_text('{"unet": ["diffusers", "UNet2DConditionModel"]}')
    config = Config.model_validate(
        {
            "name": "tiny",
            "subject": {"images": str(folder), "class_noun": "robot"},
            "model": {"base": str(base), "resolution": 32},
            "storage": {"uri": f"file://{folder / 'store'}", "endpoint": None},
        }
    )
    store = open_store(config.storage)
    return config, store, results_of(store)


def noise_images(
    store: Store, kind: type[Any], prompts: Sequence[str], seed: int, side: int = 8
) -> Any:
    """A set of noise images, one per prompt; equal prompts have seeds 0, 1, ..."""
    draw = np.random.default_rng(seed)
    images = []
    for index, prompt in enumerate(prompts):
        picture = Image.fromarray(draw.integers(0, 255, (side, side, 3), dtype=np.uint8))
        number = list(prompts[:index]).count(prompt)
        blob = put_blob(store, encode_png(picture, prompt, number))
        image = records.Image(name=f"{index}.png", blob=blob, prompt=prompt, seed=number)
        images.append(image)
    return image_set(store, "sets", images, kind)


def scores_of(store: Store, seed: int, identity: float = 0.75, copied: str | None = None) -> Scores:
    """Scores with image scores. `identity`: that of the first image, decreasing.

    `copied`: digest of the photo that the second image nearly copies.
    """
    filled = [each.format(subject=SUBJECT) for each in PROMPTS for _ in range(SEEDS)]
    samples = noise_images(store, SampleSet, filled, seed)
    base = noise_images(store, SampleSet, [each.replace("sks ", "") for each in filled], 1000)
    classes = noise_images(store, SampleSet, ["a photo of a robot"] * 2, seed + 1)
    base_classes = noise_images(store, SampleSet, ["a photo of a robot"] * 2, 1001)
    rows = [
        ImageScores(
            prompt=template,
            kind=PROMPTS[template],
            seed=image.seed,
            image=image.blob.sha256,
            base_image=other.blob.sha256,
            scores={
                "identity": identity - index / 64,
                "prompt_fidelity": 0.25 + index / 128,
                "memorisation": float(index == 1 and copied is not None),
                "a_new_metric": 0.5,
            },
            base_scores={"identity": index / 64, "prompt_fidelity": 0.25, "memorisation": 0.0},
            resembles=copied if index == 1 else None,
        )
        for index, (template, image, other) in enumerate(
            zip(
                (t for t in PROMPTS for _ in range(SEEDS)), samples.images, base.images, strict=True
            )
        )
    ]
    rows += [
        ImageScores(
            prompt="a photo of a {class_noun}",
            kind="class",
            seed=image.seed,
            image=image.blob.sha256,
            base_image=other.blob.sha256,
            scores={"prior_drift": 0.0625 * image.seed},
            base_scores={"prior_drift": 0.0},
        )
        for image, other in zip(classes.images, base_classes.images, strict=True)
    ]
    names = list(dict.fromkeys(name for row in rows for name in row.scores))
    found = {name: estimate(name, rows) for name in names}
    return Scores(
        uri="file:///s",
        digest=f"{seed:064d}",
        plan="p" * 64,
        metrics={name: value.value for name, value in found.items()},
        base_metrics={
            name: estimate(name, of_base(rows)).value for name in names if name != "a_new_metric"
        },
        reference={"identity": 0.9375},
        estimates=found,
        table=put_blob(store, ScoreTable(rows=tuple(rows)).model_dump_json().encode()),
        samples=samples,
        base_samples=base,
        class_samples=classes,
        base_class_samples=base_classes,
    )


def verdict_of(store: Store, candidate: Scores, champion: Scores | None) -> Verdict:
    """Verdict against the champion, else against the base."""
    from dreambooth_core.metrics.statistics import rows_of

    ours = rows_of(store, candidate)
    theirs = rows_of(store, champion) if champion else of_base(ours)
    named = ("identity", "prompt_fidelity", "memorisation", "prior_drift")
    return Verdict(
        uri="file:///v",
        digest="5" * 64,
        outcome="keep",
        sentence="It is not <better> than the champion.",
        reasons=(
            Reason(rule="integrity", metric="", outcome="passed", sentence="all is there"),
            Reason(rule="superiority", metric="identity", outcome="open", sentence="0 is inside"),
        ),
        comparisons=tuple(compare(name, ours, theirs, 0.95, name not in LOWER) for name in named),
        against="tiny/1" if champion else "base",
        rounds=2,
        candidate=candidate,
        champion=champion,
    )


def results_of(store: Store) -> StageResults:
    """Results of all stages, with a champion, a near copy and a verdict."""
    finding = Finding(
        level="soft", file="<x>.png", check="blur", measure="1", limit="2", remedy="sharpen"
    )
    checked = Validation(folder="x", findings=(finding,), accepted=("x.png",), digest="0" * 64)
    photos = noise_images(store, ImageSet, ["a photo of sks robot"] * 3, 1, side=640)
    scores = scores_of(store, 3, copied=photos.images[2].blob.sha256)
    return StageResults(
        intake=IngestedPhotos(images=photos, validation=checked),
        classes=noise_images(store, ImageSet, ["a photo of a robot"] * 30, 2),
        weights=Weights(
            uri="file:///w",
            digest="1" * 64,
            code="3b5c0de-dirty",
            method="full",
            files={},
            steps=30,
            chosen_step=20,
            steps_per_second=2.5,
            losses=tuple((step, 0.5, 0.25) for step in range(1, 31)),
            validations=tuple(
                ValidationResult(
                    step=step,
                    stable_loss=1 / step,
                    subject_fidelity=0.5,
                    prompt_fidelity=0.25,
                    pres=0.125,
                )
                for step in (10, 20, 30)
            ),
            rates={"denoiser": ((1, 1e-4), (30, 1e-5))},
        ),
        scores=scores,
        version=ModelVersion(name="tiny", version="2", aliases=("candidate",), run_id="0" * 32),
        verdict=verdict_of(store, scores, scores_of(store, 5, identity=0.5)),
        samples=noise_images(store, SampleSet, ["a robot"] * 2, 7),
    )
